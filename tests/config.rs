//! What is configured is what is in force, and what is wrong is told: all of it, with place, value and remedy.
//!
//! Everything is read from maps through `Environment`, so that no test depends on the machine or on another. What the
//! real binary does with it (exit codes, reports) stands in `cli.rs`.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "config/errors.rs"]
mod errors;

use std::collections::BTreeMap;
use std::env::VarError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay::config::{
    Aggregate, Config, Environment, Fallback, KeyFallback, Kind, Loaded, OnFull, Order, Override, Problems, Purpose, Request,
    Secret, SectionKind, SyncClass, env_name, load,
};
use forebay::limits;

const EXAMPLE: &str = include_str!("../packaging/forebay.toml");
const FILE: &str = "/etc/forebay/forebay.toml";
const ONE_STREAM: &str = "[[stream]]\nname = \"clicks\"\n";

/// A machine of maps.
#[derive(Clone, Debug, Default)]
struct Maps {
    vars: BTreeMap<String, String>,
    files: BTreeMap<PathBuf, String>,
    denied: Vec<PathBuf>,
    writable: Vec<PathBuf>,
}

impl Environment for Maps {
    fn var(&self, name: &str) -> Result<String, VarError> {
        self.vars.get(name).cloned().ok_or(VarError::NotPresent)
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        self.vars.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        if self.denied.iter().any(|denied| denied == path) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_writable_dir(&self, path: &Path) -> bool {
        self.writable.iter().any(|writable| writable == path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }
}

impl Maps {
    fn file(text: &str) -> Self {
        Self::default().with_file(FILE, text)
    }

    fn with_file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.into(), text.into());
        self
    }

    fn with_var(mut self, name: &str, value: &str) -> Self {
        self.vars.insert(name.into(), value.into());
        self
    }

    fn load(&self) -> Result<Loaded, Problems> {
        self.load_as(&agent())
    }

    fn load_as(&self, request: &Request) -> Result<Loaded, Problems> {
        load(self, request)
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|problems| panic!("{problems}")).config
    }

    /// The report of a configuration that must be wrong, with the number of problems.
    fn report(&self) -> (usize, String) {
        let problems = self.load().map(|loaded| loaded.config).expect_err("a faulty configuration");
        (problems.0.len(), problems.to_string())
    }

    /// The report of the only problem there is.
    fn one_problem(&self) -> String {
        let (many, report) = self.report();
        assert_eq!(many, 1, "{report}");
        report
    }
}

fn agent() -> Request {
    Request { file: None, flags: Vec::new(), dev: false, purpose: Purpose::Agent }
}

fn flag(section: SectionKind, key: &'static str, flag: &'static str, value: &str) -> Override {
    Override { section, key, flag, value: value.into() }
}

/// Every part stands in the text.
fn assert_tells(report: &str, parts: &[&str]) {
    for part in parts {
        assert!(report.contains(part), "{part:?} is missing in:\n{report}");
    }
}

// === defaults and the example ===

#[test]
fn one_stream_is_enough_and_all_else_has_its_documented_default() {
    let config = Maps::file(ONE_STREAM).config();
    assert_eq!(config.listen.socket.as_deref(), Some(Path::new("/run/forebay/forebay.sock")));
    assert_eq!(config.listen.http, Some("127.0.0.1:4710".parse().unwrap()));
    assert_eq!((config.listen.https, &config.listen.http_socket), (None, &None));
    assert_eq!((config.listen.admin, config.listen.metrics), (Some("127.0.0.1:4711".parse().unwrap()), None));
    assert!(
        config.listen.allowed_uids.is_empty()
            && config.listen.allowed_hosts.is_empty()
            && config.listen.allowed_origins.is_empty()
    );
    assert_eq!(config.spool.dir, Path::new("/var/lib/forebay"));
    assert_eq!(config.spool.max_bytes, 10 << 30);
    assert_eq!(config.spool.segment_bytes, limits::SEGMENT_BYTES_DEFAULT);
    assert_eq!(config.spool.checkpoint_interval, Duration::from_millis(200));
    assert_eq!((config.spool.sync, config.spool.on_full, config.spool.reserve), (SyncClass::Always, OnFull::Block, None));
    assert_eq!(config.drain_timeout, Duration::from_secs(10));
    let [stream] = &config.streams[..] else { panic!("{config:?}") };
    assert_eq!((stream.name.as_str(), &stream.region, &stream.endpoint), ("clicks", &None, &None));
    assert_eq!((stream.aggregate, stream.order), (Aggregate::Off, Order::Key));
    assert_eq!(stream.linger, Duration::from_millis(50));
    assert_eq!(stream.record_bytes_max, limits::AGGREGATE_BYTES_DEFAULT);
    assert_eq!(stream.request_bytes_max, limits::REQUEST_BYTES_MAX - limits::MARGIN_BYTES);
    assert_eq!((stream.requests_max, stream.request_timeout), (16, Duration::from_secs(10)));
    assert_eq!((stream.ttl, config.spool.dead_max_bytes), (Duration::ZERO, 1 << 30));
    let [source] = &config.sources[..] else { panic!("{config:?}") };
    assert_eq!((source.name.as_str(), source.stream.as_str()), ("default", "clicks"));
    assert_eq!(source.partition_key, ["/userId", "/anonymousId"]);
    assert_eq!(source.partition_key_fallback, KeyFallback::Random);
    assert_eq!(source.max_event_bytes, limits::EVENT_BYTES_MAX);
    assert!(source.keys.is_empty() && source.spool_quota.is_none());
}

#[test]
fn the_example_equals_the_defaults() {
    assert_eq!(Maps::file(EXAMPLE).config(), Maps::file(ONE_STREAM).config());
}

#[test]
fn the_example_holds_every_key_with_its_sentence_and_its_default() {
    let flowing = EXAMPLE.replace("\n# ", " ");
    for section in SectionKind::ALL {
        for key in section.keys() {
            let written = match key.fallback {
                Fallback::Toml(default) => format!("\n{} = {default}\n", key.name),
                Fallback::Unset if key.name == "stream" => "\nstream = \"clicks\"\n".into(),
                Fallback::Unset => format!("\n# {} = ", key.name),
                Fallback::Required => format!("\n{} = ", key.name),
            };
            assert!(EXAMPLE.contains(&written), "{written:?} is missing in the example");
            let first_words: String = key.about.split([';', ':', ',', '.']).next().unwrap_or_default().into();
            assert!(flowing.contains(&first_words) || key.name == "name", "{}: {first_words:?} is missing", key.name);
        }
    }
}

#[test]
fn the_keys_that_are_comments_in_the_example_are_good_too() {
    let mut text = String::new();
    for line in EXAMPLE.lines().filter(|line| !line.starts_with("keys =") && !line.starts_with("# access_keys_file")) {
        let value = line.strip_prefix("# ").filter(|rest| rest.split_once(" = ").is_some_and(|(name, _)| !name.contains(' ')));
        text.push_str(value.unwrap_or(line));
        text.push('\n');
    }
    let config = Maps::file(&text).with_file("/etc/forebay/keys", "k1\n\nk2\n").config();
    assert_eq!(config.streams[0].external_id.as_deref(), Some("workspace-42"));
    assert_eq!(config.streams[0].endpoint.as_deref(), Some("http://127.0.0.1:4567"));
    assert_eq!(config.sources[0].keys, [Secret("k1".into()), Secret("k2".into())]);
}

// === whatever comes ===

proptest::proptest! {
    /// Any value under any key, in the file and in the environment, is read or told; nothing panics, for no asker.
    #[test]
    fn no_input_makes_the_reading_panic(
        values in proptest::collection::vec((0usize..64, "\\PC{0,12}|[0-9]{1,20}(ms|s|GiB|KB)?|\\$\\{[A-Z]{0,2}\\}?|\\[.{0,8}"), 0..12),
        tail in "(?s).{0,40}",
        dev: bool,
    ) {
        let keys: Vec<_> = SectionKind::ALL.into_iter().flat_map(|s| s.keys().iter().map(move |key| (s, key.name))).collect();
        let mut maps = Maps::default().with_var("A", "${A}").with_var("HOME", "/h");
        let mut text = String::new();
        for (at, value) in &values {
            let (section, key) = keys[at % keys.len()];
            maps = maps.with_var(&env_name(section, at % 3, key), value);
            let header = if section.repeats() { format!("[[{}]]\n", section.name()) } else { String::new() };
            text.push_str(&format!("{header}{key} = {value:?}\n"));
        }
        let maps = maps.with_file(FILE, &text).with_file("/tail.toml", &format!("{text}{tail}"));
        for purpose in [Purpose::Agent, Purpose::Client, Purpose::Reader] {
            for file in [None, Some("/tail.toml".into())] {
                match maps.load_as(&Request { file, dev, purpose, ..agent() }) {
                    Ok(loaded) => proptest::prop_assert!(!loaded.in_force.to_toml().is_empty()),
                    Err(problems) => proptest::prop_assert!(!problems.0.is_empty()),
                }
            }
        }
    }
}

// === layers ===

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let text = format!("{ONE_STREAM}region = \"eu-west-1\"\nlinger = \"1ms\"\n[spool]\nmax_bytes = \"1GiB\"\n");
    let maps = Maps::file(&text)
        .with_var("FOREBAY_STREAM__0__REGION", "eu-west-2")
        .with_var("FOREBAY_STREAM__0__LINGER", "2ms")
        .with_var("FOREBAY_LISTEN__SOCKET", "/env.sock");
    let flags =
        vec![flag(SectionKind::Stream, "region", "--region", "eu-west-3"), flag(SectionKind::Listen, "http", "--http", "")];
    let loaded = maps.load_as(&Request { flags, ..agent() }).unwrap();
    assert_eq!(loaded.config.streams[0].region.as_deref(), Some("eu-west-3"));
    assert_eq!(loaded.config.streams[0].linger, Duration::from_millis(2));
    assert_eq!(loaded.config.spool.max_bytes, 1 << 30);
    assert_eq!(loaded.config.listen.socket.as_deref(), Some(Path::new("/env.sock")));
    assert_eq!(loaded.config.listen.http, None);
    let shown = loaded.in_force.to_json();
    let origin =
        |pointer: &str| (shown.pointer(&format!("{pointer}/origin")).cloned(), shown.pointer(&format!("{pointer}/at")).cloned());
    assert_eq!(origin("/stream/0/region"), (Some("flag".into()), Some("--region".into())));
    assert_eq!(origin("/stream/0/linger"), (Some("env".into()), Some("FOREBAY_STREAM__0__LINGER".into())));
    assert_eq!(origin("/spool/max_bytes"), (Some("file".into()), Some(format!("{FILE}:6").into())));
    assert_eq!(origin("/spool/segment_bytes"), (Some("default".into()), None));
    assert_eq!(origin("/source/0/stream"), (Some("derived".into()), Some("stream[0].name".into())));
}

/// Keys that a source of plain events may not have.
const NOT_OF_EVENTS: [&str; 3] = ["limits", "access_keys", "access_keys_file"];

#[test]
fn every_key_can_be_given_by_the_environment_alone() {
    let mut maps = Maps::default().with_file("/keys", "secret\n");
    for section in SectionKind::ALL {
        for key in section.keys() {
            let value = match key.kind {
                _ if NOT_OF_EVENTS.contains(&key.name) => continue,
                // Of one kind of source only, which need not be the one that is given here.
                _ if key.about.starts_with("With kind = ") => match key.fallback {
                    Fallback::Toml(default) => default.trim_matches('"').into(),
                    _ => panic!("{}: without a default it cannot be written down for other kinds", key.name),
                },
                Kind::Choice { .. } if key.name == "kind" => "events".into(),
                Kind::Choice { offered } => offered[offered.len() - 1].to_owned(),
                Kind::Address => format!("[::1]:{}", 5000 + (key.name.as_bytes()[0] as usize) * 10 + key.name.len()),
                Kind::AnyAddress => "10.0.0.1:9400".into(),
                Kind::Bytes { max, .. } => (max - 1).to_string(),
                Kind::Time { max, .. } => format!("{}ms", max.as_millis() - 1),
                Kind::TimeOrOff { max, .. } => format!("{}ms", max.as_millis() - 1),
                Kind::Sync { max, .. } => format!("interval:{}ms", max.as_millis()),
                Kind::Share { .. } => "50%".into(),
                Kind::Count { max, .. } => max.to_string(),
                Kind::Ids => "1000, 1001".into(),
                Kind::Bool => "false".into(),
                Kind::Texts(_) if key.name == "partition_key" => "/a,/b".into(),
                Kind::Texts(_) if key.name == "allowed_origins" => "[\"https://a.example\", \"https://b.example\"]".into(),
                Kind::Texts(_) if key.name == "encryption_keys" => "env:NEW_KEY,file:/run/old-key".into(),
                Kind::Texts(_) if ["allow", "deny"].contains(&key.name) => "/a=b,/c".into(),
                Kind::Texts(_) if key.name == "add" => "a=b,c={host}".into(),
                Kind::Texts(_) => "one.example,two.example".into(),
                Kind::Secrets(_) => continue,
                Kind::SecretsFile { .. } => "/keys".into(),
                Kind::Text(_) => match key.name {
                    "role_arn" => "arn:aws:iam::123456789012:role/r".into(),
                    "endpoint" => "http://localhost:1".into(),
                    "dedupe_id" => "/id".into(),
                    "http_socket" => "another".into(),
                    _ => "given".into(),
                },
            };
            maps = maps.with_var(&env_name(section, 0, key.name), &value);
        }
    }
    let loaded = maps.load().unwrap_or_else(|problems| panic!("{problems}"));
    let config = &loaded.config;
    assert_eq!(config.listen.allowed_uids, [1000, 1001]);
    assert_eq!(config.listen.allowed_hosts, ["one.example", "two.example"]);
    assert_eq!(config.listen.allowed_origins, ["https://a.example", "https://b.example"]);
    assert_eq!(config.sources[0].partition_key, ["/a", "/b"]);
    assert_eq!(config.sources[0].keys, [Secret("secret".into())]);
    assert_eq!((config.streams[0].requests_max, config.streams[0].order), (64, Order::None));
    assert_eq!(config.drain_timeout, Duration::from_millis(3_599_999));
    for section in &loaded.in_force.sections {
        let given = |name: &str| name != "keys" && !NOT_OF_EVENTS.contains(&name);
        for setting in section.settings.iter().filter(|setting| given(setting.key.name)) {
            assert_eq!(setting.origin.name(), "env", "{}", setting.key.name);
        }
    }
}

#[test]
fn a_second_stream_can_come_from_the_environment_but_not_leave_a_gap() {
    let two = Maps::file(&format!("{ONE_STREAM}[[source]]\nname = \"web\"\nstream = \"audit\"\n"));
    let good = two.clone().with_var("FOREBAY_STREAM__1__NAME", "audit");
    assert_eq!(good.config().streams[1].name, "audit");
    let (_, report) = two.with_var("FOREBAY_STREAM__2__NAME", "audit").report();
    assert_tells(&report, &["stream[1]", "without gaps"]);
    let huge = Maps::file(ONE_STREAM).with_var("FOREBAY_STREAM__99999999999__NAME", "x").one_problem();
    assert_tells(&huge, &["FOREBAY_STREAM__99999999999__NAME", "above 255"]);
}

#[test]
fn variables_of_others_are_left_alone_and_misspelt_ones_are_told() {
    // What Kubernetes puts into each container beside a service called "forebay", and a secret for `${...}`.
    let maps = Maps::file(&format!("{ONE_STREAM}[[source]]\nname = \"web\"\nkeys = [\"${{FOREBAY_WEB_KEY}}\"]\n"))
        .with_var("FOREBAY_SERVICE_HOST", "10.0.0.1")
        .with_var("FOREBAY_PORT_4710_TCP_ADDR", "10.0.0.1")
        .with_var("FOREBAY_PORT", "tcp://10.0.0.1:4710")
        .with_var("FOREBAY_LOG_LEVEL", "debug")
        .with_var("FOREBAY_WEB_KEY", "wk");
    assert_eq!(maps.config().sources[0].keys, [Secret("wk".into())]);
    for (slip, near) in [
        ("FOREBAY_SPOOL__MAX_BYTE", "FOREBAY_SPOOL__MAX_BYTES"),
        ("FOREBAY_SPOOL_MAX_BYTES", "FOREBAY_SPOOL__MAX_BYTES"),
        ("FOREBAY_STREAM__0__REGOIN", "FOREBAY_STREAM__0__REGION"),
        ("FOREBAY_STREAM__REGION", "FOREBAY_STREAM__0__REGION"),
        ("FOREBAY_DRAIN_TIMEOT", "FOREBAY_DRAIN_TIMEOUT"),
        ("FOREBAY_Listen__Socket", "FOREBAY_LISTEN__SOCKET"),
    ] {
        let report = maps.clone().with_var(slip, "1").one_problem();
        assert_tells(&report, &[slip, "unknown variable"]);
        if !slip.contains("Listen") {
            assert_tells(&report, &[&format!("nearest known one is {near}")]);
        }
    }
}

#[test]
fn variables_inside_texts_are_expanded_in_the_file_and_must_be_set() {
    let text = format!(
        "{ONE_STREAM}region = \"${{REGION}}\"\nlinger = \"${{N}}ms\"\nprofile = \"$${{plain}}\"\n[[source]]\nname = \"web\"\nkeys = [\"a-${{K}}\", \"${{NOT_SET}}\", \"${{NEITHER}}\"]\n"
    );
    let maps = Maps::file(&text).with_var("REGION", "eu-north-1").with_var("N", "7").with_var("K", "secret-part");
    let (many, report) = maps.report();
    assert_eq!(many, 2, "{report}");
    assert_tells(
        &report,
        &["source[0].keys[1] = \"***\"", "variable NOT_SET is not set", "source[0].keys[2]", "NEITHER", "forebay.toml, line 8"],
    );
    assert!(!report.contains("secret-part"));
    let config = maps.with_var("NOT_SET", "x").with_var("NEITHER", "y").config();
    assert_eq!(config.streams[0].region.as_deref(), Some("eu-north-1"));
    assert_eq!(config.streams[0].linger, Duration::from_millis(7));
    assert_eq!(config.streams[0].profile.as_deref(), Some("${plain}"));
    assert_eq!(config.sources[0].keys[0], Secret("a-secret-part".into()));
}

#[test]
fn what_a_variable_expanded_to_is_in_no_message() {
    let text = format!("{ONE_STREAM}endpoint = \"${{URL}}\"\n");
    let report = Maps::file(&text).with_var("URL", "hunter2").one_problem();
    assert_tells(&report, &["stream[0].endpoint = \"${URL}\"", "a URL with http or https"]);
    assert!(!report.contains("hunter2"), "{report}");
}

// === secrets ===

#[test]
fn keys_come_from_a_file_one_a_line_and_an_empty_file_does_not_open_the_source() {
    let text = format!("{ONE_STREAM}[[source]]\nname = \"web\"\nkeys_file = \"/keys\"\n");
    let maps = Maps::file(&text);
    assert_eq!(
        maps.clone().with_file("/keys", "  one\r\n\ntwo").config().sources[0].keys,
        [Secret("one".into()), Secret("two".into())]
    );
    assert_tells(&maps.clone().with_file("/keys", "\n\n").one_problem(), &["source[0].keys_file = \"/keys\"", "holds no key"]);
    assert_tells(&maps.one_problem(), &["source[0].keys_file", "cannot be read"]);
    let bad_line = maps.with_file("/keys", "fine\nhas a space\n").one_problem();
    assert_tells(&bad_line, &["line 2 of the file"]);
    assert!(!bad_line.contains("has a space") && !bad_line.contains("fine"), "{bad_line}");
}

#[test]
fn keys_and_keys_file_exclude_each_other_in_one_layer_and_the_higher_layer_wins() {
    let both = format!("{ONE_STREAM}[[source]]\nname = \"web\"\nkeys = [\"a\"]\nkeys_file = \"/keys\"\n");
    assert_tells(&Maps::file(&both).with_file("/keys", "b").one_problem(), &["source[0].keys_file", "keep one of them"]);
    let plain = format!("{ONE_STREAM}[[source]]\nname = \"web\"\nkeys = [\"a\"]\n");
    let from_file = Maps::file(&plain).with_file("/keys", "b").with_var("FOREBAY_SOURCE__0__KEYS_FILE", "/keys").config();
    assert_eq!(from_file.sources[0].keys, [Secret("b".into())]);
    let file = format!("{ONE_STREAM}[[source]]\nname = \"web\"\nkeys_file = \"/keys\"\n");
    let from_env = Maps::file(&file).with_file("/keys", "b").with_var("FOREBAY_SOURCE__0__KEYS", "c,d").config();
    assert_eq!(from_env.sources[0].keys, [Secret("c".into()), Secret("d".into())]);
}

#[test]
fn no_form_of_what_is_in_force_shows_a_write_key() {
    let text = format!("{ONE_STREAM}[[source]]\nname = \"web\"\nkeys = [\"topsecret\", \"hush\"]\n");
    let loaded = Maps::file(&text).load().unwrap();
    let forms = format!("{}{}{:?}", loaded.in_force.to_toml(), loaded.in_force.to_json(), loaded);
    assert!(!forms.contains("topsecret") && !forms.contains("hush"));
    assert_tells(&loaded.in_force.to_toml(), &["keys = [\"***\", \"***\"]"]);
}

// === --dev ===

#[test]
fn dev_needs_nothing_and_keeps_to_places_of_the_user() {
    let dev = Request { dev: true, ..agent() };
    let maps = Maps::default().with_var("XDG_STATE_HOME", "/home/u/.state").with_var("XDG_RUNTIME_DIR", "/run/user/7");
    let loaded = Maps { writable: vec!["/run/user/7".into()], ..maps.clone() }.load_as(&dev).unwrap();
    assert_eq!(loaded.config.streams[0].name, "dev");
    assert_eq!(loaded.config.streams[0].region.as_deref(), Some("us-east-1"));
    assert_eq!(loaded.config.spool.dir, Path::new("/home/u/.state/forebay"));
    assert_eq!(loaded.config.listen.socket.as_deref(), Some(Path::new("/run/user/7/forebay.sock")));
    assert_eq!(loaded.config.sources[0].stream, "dev");
    assert_tells(&loaded.notes.join("\n"), &["/home/u/.state/forebay", "/run/user/7/forebay.sock"]);
    let bare = Maps::default().load_as(&dev).unwrap().config;
    assert_eq!(bare.spool.dir, Path::new("forebay-dev"));
    assert_eq!(bare.listen.socket.as_deref(), Some(Path::new("forebay-dev/forebay.sock")));
    let deep = format!("/{}", "d".repeat(100));
    let report = Maps::default().with_var("XDG_STATE_HOME", &deep).load_as(&dev).unwrap_err().to_string();
    assert_tells(&report, &["listen.socket", "choose another with --socket"]);
    let usual = Maps { writable: vec!["/run/forebay".into(), "/run/user/7".into()], ..maps }.load_as(&dev).unwrap().config;
    assert_eq!(usual.listen.socket.as_deref(), Some(Path::new("/run/forebay/forebay.sock")));
}

#[test]
fn dev_never_opens_the_spool_of_the_configuration_unless_the_flag_says_so() {
    let maps = Maps::file(&format!("{ONE_STREAM}[spool]\ndir = \"/var/lib/forebay\"\n"));
    let dev = Request { dev: true, ..agent() };
    assert_eq!(maps.load_as(&dev).unwrap().config.spool.dir, Path::new("/var/lib/forebay/@dev"));
    let from_env = maps.clone().with_var("FOREBAY_SPOOL__DIR", "/data/").load_as(&dev).unwrap().config;
    assert_eq!(from_env.spool.dir, Path::new("/data/@dev"));
    let expanded = Maps::file(&format!("{ONE_STREAM}[spool]\ndir = \"${{DATA}}/x\"\n")).with_var("DATA", "/data");
    let loaded = expanded.load_as(&dev).unwrap();
    assert_eq!(loaded.config.spool.dir, Path::new("/data/x/@dev"));
    let again = Maps::file(&loaded.in_force.to_toml()).load_as(&dev).unwrap().config;
    assert_eq!(again.spool.dir, Path::new("/data/x/@dev"));
    let flags = vec![flag(SectionKind::Spool, "dir", "--spool-dir", "/tmp/mine")];
    assert_eq!(maps.load_as(&Request { flags, ..dev }).unwrap().config.spool.dir, Path::new("/tmp/mine"));
}

// === clients ===

#[test]
fn a_client_needs_no_stream_and_minds_only_what_it_uses() {
    let client = Request { purpose: Purpose::Client, ..agent() };
    let reader = Request { purpose: Purpose::Reader, ..agent() };
    assert!(Maps::default().load_as(&client).unwrap().config.streams.is_empty());
    let denied = Maps { denied: vec![FILE.into()], ..Maps::default() };
    assert_eq!(denied.load_as(&client).unwrap().file, None);
    let text = format!(
        "[listen]\nsocket = \"/a.sock\"\n{ONE_STREAM}region = \"${{NOT_SET}}\"\n[[source]]\nname = \"w\"\nkeys_file = \"/root/keys\"\n"
    );
    let maps = Maps::file(&text);
    assert_eq!(maps.load_as(&client).unwrap().config.listen.socket.as_deref(), Some(Path::new("/a.sock")));
    assert_eq!(maps.load_as(&reader).unwrap_err().0.len(), 1);
    assert_tells(&Maps::file("[listen]\nadmin = \"x\"\n").load_as(&client).unwrap_err().to_string(), &["listen.admin"]);
}

#[test]
fn a_client_finds_the_socket_of_a_dev_agent_when_the_usual_one_is_absent() {
    let client = Request { purpose: Purpose::Client, ..agent() };
    let maps = Maps::default().with_var("XDG_RUNTIME_DIR", "/run/user/7");
    let socket = |maps: &Maps| maps.load_as(&client).unwrap().config.listen.socket;
    assert_eq!(socket(&maps).as_deref(), Some(Path::new("/run/forebay/forebay.sock")));
    let dev = maps.with_file("/run/user/7/forebay.sock", "");
    assert_eq!(socket(&dev).as_deref(), Some(Path::new("/run/user/7/forebay.sock")));
    assert_eq!(
        socket(&dev.clone().with_file("/run/forebay/forebay.sock", "")).as_deref(),
        Some(Path::new("/run/forebay/forebay.sock"))
    );
    assert_eq!(socket(&dev.with_var("FOREBAY_LISTEN__SOCKET", "/mine")).as_deref(), Some(Path::new("/mine")));
}

// === what is in force, printed ===

#[test]
fn what_is_printed_reads_back_as_the_same_configuration() {
    let text = format!(
        "{ONE_STREAM}region = \"eu-west-1\"\nprofile = 'a \"$${{b}}\" \\ ü'\nlinger = \"1500us\"\n[listen]\nallowed_uids = [0, 4294967295]\nhttp = \"\"\n"
    );
    let first = Maps::file(&text).load().unwrap();
    let second = Maps::file(&first.in_force.to_toml())
        .load()
        .unwrap_or_else(|problems| panic!("{problems}\n{}", first.in_force.to_toml()));
    assert_eq!(first.config, second.config);
    assert_tells(
        &first.in_force.to_toml(),
        &["# role_arn", "# not set", "# default", "# /etc/forebay/forebay.toml, line 3", "# from stream[0].name"],
    );
}
