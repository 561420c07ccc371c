//! Every key there is: its kind, range, default and one sentence.
//!
//! Place: the one list from which `layers` knows which names exist, `resolve` how to read a value, `show` what
//! to print, and the tests what the example file must hold. A new key is one row here and one field in
//! [`super::Config`]. Defaults are TOML text and are read by the same code as a person's values, so a default
//! that breaks its own range fails a test.
//!
//! Absent on purpose: how keys relate to each other (that is `check`).

mod source;

use std::time::Duration;

use super::units::{show_bytes, show_time};
use crate::coding::keys::{KeySource, SOURCES_ALLOWED};
use crate::limits;

/// Where a key stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionKind {
    /// Above the first table.
    Root,
    /// `[listen]`.
    Listen,
    /// `[spool]`.
    Spool,
    /// `[[stream]]`.
    Stream,
    /// `[[source]]`.
    Source,
}

impl SectionKind {
    /// In the order of the file.
    pub const ALL: [Self; 5] = [Self::Root, Self::Listen, Self::Spool, Self::Stream, Self::Source];

    /// Name of the table; empty for the root.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "",
            Self::Listen => "listen",
            Self::Spool => "spool",
            Self::Stream => "stream",
            Self::Source => "source",
        }
    }

    /// May stand several times, as `[[name]]`.
    #[must_use]
    pub const fn repeats(self) -> bool {
        matches!(self, Self::Stream | Self::Source)
    }

    /// Its keys, in the order of the file.
    #[must_use]
    pub const fn keys(self) -> &'static [Key] {
        match self {
            Self::Root => &ROOT,
            Self::Listen => &LISTEN,
            Self::Spool => &SPOOL,
            Self::Stream => &STREAM,
            Self::Source => &source::SOURCE,
        }
    }

    /// The key of this name.
    pub(crate) fn key(self, name: &str) -> Option<&'static Key> {
        self.keys().iter().find(|key| key.name == name)
    }
}

/// What holds when nobody gives a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// An error.
    Required,
    /// The key has no value.
    Unset,
    /// This TOML value.
    Toml(&'static str),
}

/// A test that a text must pass, and how to say it.
#[derive(Debug)]
pub struct Rule {
    /// What is allowed, for people.
    pub allowed: &'static str,
    /// The test.
    pub holds: fn(&str) -> bool,
}

/// How a value is read.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Text that passes a rule.
    Text(&'static Rule),
    /// One of a few words.
    Choice {
        /// Those words.
        offered: &'static [&'static str],
    },
    /// A loopback address with port; `""` is off.
    Address,
    /// Any address with port; `""` is off.
    AnyAddress,
    /// A size in bytes, both ends included.
    Bytes {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A time, both ends included.
    Time {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// `off`, or a time, both ends included.
    TimeOrOff {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// When written events are synced: `always`, `os`, or `interval:TIME` with a time in this range.
    Sync {
        /// Shortest.
        min: Duration,
        /// Longest.
        max: Duration,
    },
    /// A part of another size: a size, or whole percent of it.
    Share {
        /// The key of that size, with its section.
        of: &'static str,
    },
    /// A whole number, both ends included.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Yes or no.
    Bool,
    /// A list of texts that each pass a rule.
    Texts(&'static Rule),
    /// A list of user ids.
    Ids,
    /// A list of texts that are never shown.
    Secrets(&'static Rule),
    /// A file with one value a line for the secret key named here.
    SecretsFile {
        /// That key.
        of: &'static str,
    },
}

impl Kind {
    /// What is allowed, for people.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Text(rule) => rule.allowed.into(),
            Self::Choice { offered } => quoted(offered),
            Self::Address => {
                "a loopback address with its port, such as \"127.0.0.1:4710\" or \"[::1]:4710\", or \"\" for off".into()
            }
            Self::AnyAddress => "an address with its port, such as \"0.0.0.0:4713\" or \"[::]:4713\", or \"\" for off".into(),
            Self::Bytes { min, max } => {
                format!(
                    "a size from {} to {}, such as \"{}\", or a number of bytes",
                    show_bytes(*min),
                    show_bytes(*max),
                    show_bytes(*min)
                )
            }
            Self::Time { min, max } => {
                format!("a time from {} to {}, such as \"{}\"", show_time(*min), show_time(*max), show_time(*max))
            }
            Self::TimeOrOff { min, max } => {
                format!("\"off\", or a time from {} to {}, such as \"{}\"", show_time(*min), show_time(*max), show_time(*max))
            }
            Self::Sync { min, max } => {
                let (min, max) = (show_time(*min), show_time(*max));
                format!("\"always\", \"os\", or \"interval:\" with a time from {min} to {max}, such as \"interval:50ms\"")
            }
            Self::Share { of } => format!("a size, such as \"2GiB\", or whole percent of {of} from \"1%\" to \"100%\""),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Bool => "true, false".into(),
            Self::Texts(rule) => format!("a list, each of it {}", rule.allowed),
            Self::Ids => format!("a list of user ids from 0 to {}, such as [1000, 1001]", u32::MAX),
            Self::Secrets(rule) => format!("a list, each of it {}", rule.allowed),
            Self::SecretsFile { of } => format!("the path of a readable file of at most 1 MiB with one value of `{of}` a line"),
        }
    }

    /// Its values must not be shown.
    #[must_use]
    pub const fn is_secret(&self) -> bool {
        matches!(self, Self::Secrets(_))
    }

    /// Takes a list.
    #[must_use]
    pub const fn is_list(&self) -> bool {
        matches!(self, Self::Texts(_) | Self::Ids | Self::Secrets(_))
    }
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// As written in the file.
    pub name: &'static str,
    /// How it is read.
    pub kind: Kind,
    /// What holds when nobody gives it.
    pub fallback: Fallback,
    /// One sentence for people.
    pub about: &'static str,
}

const fn key(name: &'static str, kind: Kind, fallback: Fallback, about: &'static str) -> Key {
    Key { name, kind, fallback, about }
}

pub(crate) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}

const MIB: u64 = 1 << 20;

/// Bytes that the path of a Unix socket may take: `sun_path` is 108 with its final zero (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

const _: () = {
    // The largest record that can be configured fits the smallest request that can be configured,
    // and the largest fits what may be under way.
    assert!(limits::RECORD_BYTES_MAX - limits::MARGIN_BYTES <= MIB as usize);
    assert!(limits::REQUEST_BYTES_CEILING <= limits::IN_FLIGHT_BYTES_MAX);
};

static PATH: Rule = Rule { allowed: "a path", holds: |path| !path.is_empty() && !path.contains('\0') };
static SOCKET: Rule = Rule {
    allowed: "a path of at most 107 bytes (a limit of the operating system), or \"\" for off",
    holds: |path| path.len() <= SOCKET_PATH_BYTES_MAX && !path.contains('\0'),
};
static HOST: Rule = Rule {
    allowed: "a host name without scheme and port, such as \"agent.internal\"",
    holds: |host| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
};
static ORIGIN: Rule = Rule {
    allowed: "an origin as browsers send it, such as \"https://app.example.com\"",
    holds: |origin| is_url(origin) && origin.matches('/').count() == 2,
};
static STREAM_NAME: Rule = Rule {
    allowed: "a stream's name (1 to 128 of a-z, A-Z, 0-9, '_', '.', '-') or its ARN (arn:aws:kinesis:REGION:ACCOUNT:stream/NAME)",
    holds: |name| is_name(name) || stream_arn(name).is_some(),
};
static REGION: Rule = Rule {
    allowed: "an AWS region, such as \"eu-west-1\"",
    holds: |region| {
        (1..=64).contains(&region.len()) && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    },
};
static ROLE: Rule = Rule { allowed: "a role's ARN, such as \"arn:aws:iam::123456789012:role/events\"", holds: is_role_arn };
static EXTERNAL_ID: Rule = Rule {
    allowed: "2 to 1224 of a-z, A-Z, 0-9 and _+=,.@:/-",
    holds: |id| (2..=1224).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b)),
};
static URL: Rule = Rule { allowed: "a URL with http or https, such as \"http://127.0.0.1:4567\"", holds: is_url };
static PROFILE: Rule =
    Rule { allowed: "the name of a profile in the shared AWS configuration", holds: |name| !name.trim().is_empty() };
static POINTER: Rule = Rule {
    allowed: "a JSON pointer (RFC 6901) such as \"/userId\" or \"/context/traits/id\"; `~` is written ~0 and `/` in a name ~1",
    holds: is_pointer,
};
static KEY_SOURCE: Rule = Rule { allowed: SOURCES_ALLOWED, holds: |text| KeySource::parse(text).is_some() };

static ROOT: [Key; 1] = [key(
    "drain_timeout",
    Kind::Time { min: Duration::ZERO, max: Duration::from_secs(3600) },
    Fallback::Toml("\"10s\""),
    "How long SIGTERM waits for delivery; what is left then stays in the spool for the next start.",
)];

static LISTEN: [Key; 11] = [
    key(
        "socket",
        Kind::Text(&SOCKET),
        Fallback::Toml("\"/run/forebay/forebay.sock\""),
        "The Unix socket, mode 0660; \"\" turns it off.",
    ),
    key(
        "allowed_uids",
        Kind::Ids,
        Fallback::Toml("[]"),
        "User ids that may connect to the socket; none listed: whoever may open it.",
    ),
    key("http", Kind::Address, Fallback::Toml("\"127.0.0.1:4710\""), "Events over HTTP, loopback only; \"\" turns it off."),
    key(
        "https",
        Kind::Address,
        Fallback::Toml("\"\""),
        "The same over TLS, HTTP/1.1 and HTTP/2, loopback only, for SDKs that refuse plain HTTP; \"\" is off.",
    ),
    key(
        "tls_certificate",
        Kind::Text(&PATH),
        Fallback::Unset,
        "PEM file of the certificate that `https` shows, with its chain; read again when it changes.",
    ),
    key("tls_key", Kind::Text(&PATH), Fallback::Unset, "PEM file of that certificate's key; read again when it changes."),
    key(
        "http_socket",
        Kind::Text(&SOCKET),
        Fallback::Toml("\"\""),
        "Events over HTTP on a Unix socket, mode 0660, for clients that take a socket's path; allowed_uids holds for it too; \"\" is \
         off.",
    ),
    key(
        "admin",
        Kind::Address,
        Fallback::Toml("\"127.0.0.1:4711\""),
        "Health, metrics and status, loopback only; \"\" turns it off.",
    ),
    key(
        "metrics",
        Kind::AnyAddress,
        Fallback::Toml("\"\""),
        "Metrics, health and readiness for whoever reaches this address, such as a Prometheus outside the pod; \"\" is off.",
    ),
    key(
        "allowed_hosts",
        Kind::Texts(&HOST),
        Fallback::Toml("[]"),
        "Names besides the loopback ones that a Host header may carry.",
    ),
    key(
        "allowed_origins",
        Kind::Texts(&ORIGIN),
        Fallback::Toml("[]"),
        "Browser origins that may send events; none listed: none may.",
    ),
];

static SPOOL: [Key; 9] = [
    key(
        "dir",
        Kind::Text(&PATH),
        Fallback::Toml("\"/var/lib/forebay\""),
        "Where the spools live, one directory a stream; needs a real, local disk.",
    ),
    key(
        "max_bytes",
        Kind::Bytes { min: 256 * MIB, max: 1 << 50 },
        Fallback::Toml("\"10GiB\""),
        "Ceiling for all files of one stream's spool; at least four segments.",
    ),
    key(
        "segment_bytes",
        Kind::Bytes { min: 8 * MIB, max: 512 * MIB },
        Fallback::Toml("\"64MiB\""),
        "Size at which a file of events is sealed and the next begun; disk space comes back in such steps.",
    ),
    key(
        "checkpoint_interval",
        Kind::Time { min: Duration::from_millis(10), max: Duration::from_secs(60) },
        Fallback::Toml("\"200ms\""),
        "How often deliveries are noted durably; after a crash at most this much is sent twice.",
    ),
    key(
        "sync",
        Kind::Sync { min: Duration::from_millis(1), max: Duration::from_secs(10) },
        Fallback::Toml("\"always\""),
        "What a receipt means: \"always\", the event is on disk (fdatasync); \"interval:TIME\", it is written, and synced at most \
         that much later; \"os\", it is written, and synced when its file is sealed.",
    ),
    key(
        "on_full",
        Kind::Choice { offered: &["block", "reject", "drop_oldest"] },
        Fallback::Toml("\"block\""),
        "What happens to new events while there is no room: \"block\", senders wait; \"reject\", they are refused at once, and \
         plain socket clients lose them; \"drop_oldest\", the oldest undelivered events are given up for them, a file at a time, \
         and counted as dropped. Only the last throws accepted events away.",
    ),
    key(
        "reserve",
        Kind::Bytes { min: 0, max: 1 << 50 },
        Fallback::Unset,
        "With less free than this on the disk of the spool, there is no room for new events, so that delivery, marks and dead \
         letters can go on; not set: 256MiB, or a twentieth of a disk below 5GiB.",
    ),
    key(
        "dead_max_bytes",
        Kind::Bytes { min: MIB, max: 1 << 50 },
        Fallback::Toml("\"1GiB\""),
        "Ceiling for one stream's dead letters, beside max_bytes; when it is reached, no event expires.",
    ),
    key(
        "encryption_keys",
        Kind::Texts(&KEY_SOURCE),
        Fallback::Toml("[]"),
        "Where the keys of encryption at rest (AES-256-GCM) come from: the first encrypts what is written from the next start on, \
         all of them decrypt. A key is 32 bytes, as they are, as hexadecimal digits or as base64.",
    ),
];

static STREAM: [Key; 17] = [
    key("name", Kind::Text(&STREAM_NAME), Fallback::Required, "The Kinesis data stream, by name or ARN."),
    key(
        "region",
        Kind::Text(&REGION),
        Fallback::Unset,
        "Its AWS region; not set: the ARN's, or as the AWS SDK finds it (AWS_REGION, profile, instance).",
    ),
    key("role_arn", Kind::Text(&ROLE), Fallback::Unset, "A role to assume for this stream."),
    key("external_id", Kind::Text(&EXTERNAL_ID), Fallback::Unset, "The external id that the role's trust policy asks for."),
    key("endpoint", Kind::Text(&URL), Fallback::Unset, "An endpoint instead of the region's own: VPC endpoint, FIPS, emulator."),
    key("profile", Kind::Text(&PROFILE), Fallback::Unset, "A profile of the shared AWS configuration to take credentials from."),
    key(
        "aggregate",
        Kind::Choice { offered: &["off", "kpl", "lines"] },
        Fallback::Toml("\"off\""),
        "\"off\": one event a record, readable by any consumer; \"kpl\": many, for consumers that take aggregates apart; \"lines\": \
         many, a line each.",
    ),
    key(
        "order",
        Kind::Choice { offered: &["key", "none"] },
        Fallback::Toml("\"key\""),
        "\"key\": one key's events arrive in the order of their receipts; \"none\": no promise, more at once.",
    ),
    key(
        "record_distribution",
        Kind::Choice { offered: &["ask", "keys"] },
        Fallback::Toml("\"ask\""),
        "\"ask\": Kinesis is asked (DescribeStreamSummary) whether the stream keeps to partition keys, and \"kpl\" waits for that or \
         for landings that prove it; \"keys\": it is taken to where it cannot be asked.",
    ),
    key(
        "ask_mode_within",
        Kind::Time { min: Duration::ZERO, max: Duration::from_secs(3600) },
        Fallback::Toml("\"100s\""),
        "The first such question comes at some moment of this time: an account has 20 a second. For a thousand agents that start \
         together; \"0s\" asks at once.",
    ),
    key(
        "linger",
        Kind::Time { min: Duration::ZERO, max: Duration::from_secs(10) },
        Fallback::Toml("\"50ms\""),
        "The longest an event waits for company before it is sent; \"0ms\" sends at once.",
    ),
    key(
        "record_bytes_max",
        Kind::Bytes { min: 1 << 10, max: (limits::RECORD_BYTES_MAX - limits::MARGIN_BYTES) as u64 },
        Fallback::Toml("\"256KiB\""),
        "Ceiling of an aggregated record; large ones find it hard to get into a shard that others use too.",
    ),
    key(
        "request_bytes_max",
        Kind::Bytes { min: MIB, max: limits::REQUEST_BYTES_CEILING as u64 },
        Fallback::Toml("\"5119KiB\""),
        "Ceiling of one PutRecords request; above 5MiB only where the account has the newer quota.",
    ),
    key("requests_max", Kind::Count { min: 1, max: 64 }, Fallback::Toml("16"), "Requests under way at once."),
    key(
        "request_timeout",
        Kind::Time { min: Duration::from_millis(100), max: Duration::from_secs(300) },
        Fallback::Toml("\"10s\""),
        "Time after which an unanswered request counts as \"may have been stored\" and is sent again.",
    ),
    key(
        "ttl",
        Kind::Time { min: Duration::ZERO, max: Duration::from_secs(30 * 86_400) },
        Fallback::Toml("\"0s\""),
        "Events older than this become dead letters instead of being sent; \"0s\": none does.",
    ),
    key(
        "spool_compression",
        Kind::Choice { offered: &["off", "zstd"] },
        Fallback::Toml("\"off\""),
        "\"zstd\": this stream's files are compressed, in blocks of up to 32 KiB; a damaged one then costs all its events.",
    ),
];

fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Region and name of a stream's ARN.
pub(crate) fn stream_arn(arn: &str) -> Option<(&str, &str)> {
    let mut parts = arn.splitn(6, ':');
    let partition = (parts.next()? == "arn").then(|| parts.next())??;
    let (service, region, account) = (parts.next()?, parts.next()?, parts.next()?);
    let name = parts.next()?.strip_prefix("stream/")?;
    let account_holds = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    let holds = partition.starts_with("aws") && service == "kinesis" && (REGION.holds)(region) && account_holds && is_name(name);
    holds.then_some((region, name))
}

fn is_role_arn(arn: &str) -> bool {
    // AWS' own pattern, as the destinations' vendors check it too: ^arn:aws…:iam::\d{12}:role/[A-Za-z0-9+=,.@_\-/]+$
    let Some((partition, rest)) = arn.strip_prefix("arn:").and_then(|rest| rest.split_once(":iam::")) else { return false };
    let Some((account, role)) = rest.split_once(":role/") else { return false };
    partition.starts_with("aws")
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && !role.is_empty()
        && role.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-/".contains(&b))
}

fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let Some(rest) = rest else { return false };
    let host = rest.split('/').next().unwrap_or("");
    !host.is_empty() && !host.starts_with(':') && url.bytes().all(|b| b.is_ascii_graphic()) && !host.contains('@')
}

fn is_pointer(pointer: &str) -> bool {
    // RFC 6901, section 3: empty, or tokens that each begin with '/'; '~' only as ~0 or ~1.
    let escapes = pointer.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
    (pointer.is_empty() || pointer.starts_with('/')) && escapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_pointers_follow_rfc_6901() {
        for pointer in ["", "/", "/userId", "/a~0b/c~1d", "/0", "/ü"] {
            assert!(is_pointer(pointer), "{pointer}");
        }
        for pointer in ["userId", "/a~", "/a~2", "$.userId", "~0"] {
            assert!(!is_pointer(pointer), "{pointer}");
        }
    }

    #[test]
    fn arns_are_taken_apart_only_when_whole() {
        assert_eq!(stream_arn("arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"), Some(("eu-west-1", "clicks")));
        assert_eq!(stream_arn("arn:aws-cn:kinesis:cn-north-1:123456789012:stream/a.b"), Some(("cn-north-1", "a.b")));
        for arn in [
            "arn:aws:kinesis:eu-west-1:1234:stream/clicks",
            "arn:aws:firehose:eu-west-1:123456789012:stream/clicks",
            "arn:aws:kinesis:eu-west-1:123456789012:clicks",
            "arn:aws:kinesis::123456789012:stream/clicks",
            "clicks",
            "",
        ] {
            assert_eq!(stream_arn(arn), None, "{arn}");
        }
        assert!(is_role_arn("arn:aws:iam::123456789012:role/team/events"));
        for arn in ["arn:aws:iam::12:role/x", "arn:aws:iam::123456789012:user/x", "role/x", "arn:aws:iam::123456789012:role/"] {
            assert!(!is_role_arn(arn), "{arn}");
        }
    }

    #[test]
    fn urls_need_scheme_and_host_and_hold_no_password() {
        for url in ["http://127.0.0.1:4567", "https://kinesis.eu-west-1.amazonaws.com", "https://x/"] {
            assert!(is_url(url), "{url}");
        }
        for url in ["127.0.0.1:4567", "ftp://x", "http://", "http://:80", "http://a b", "https://me:pw@host/"] {
            assert!(!is_url(url), "{url}");
        }
        assert!((ORIGIN.holds)("https://app.example.com:8443"));
        assert!(!(ORIGIN.holds)("https://app.example.com/"));
        assert!(!(ORIGIN.holds)("*"));
    }

    #[test]
    fn no_name_stands_twice_in_a_section_and_every_key_has_its_sentence() {
        for section in SectionKind::ALL {
            for (at, key) in section.keys().iter().enumerate() {
                assert!(section.keys()[..at].iter().all(|other| other.name != key.name), "{}", key.name);
                assert!(key.about.ends_with('.'), "{}", key.name);
            }
        }
    }
}
