//! How the values fit together, and the making of [`Config`] from them.
//!
//! Place: last step of `load`, after `resolve` has read every value on its own. Fills what follows from other
//! values (the region of an ARN, the only stream of a source, the one source that nobody named), then judges the
//! whole. Never judges a value again that `resolve` found faulty: one slip is told once.

use std::path::PathBuf;
use std::time::Duration;

use super::errors::{Origin, Problem, nearest};
use super::layers::place;
use super::resolve::{InForce, Section, Typed};
use super::schema::{SectionKind, stream_arn};
use super::{
    Aggregate, AmplitudeConfig, Config, DataEncoding, KeyFallback, Listen, MParticleConfig, OnFull, Order, RecordDistribution,
    RuleConfig, SegmentConfig, SegmentProfile, SizeLimits, SourceConfig, SourceKind, SpoolConfig, StreamConfig, SyncClass,
};
use crate::coding::KeySource;
use crate::ingest::rules::filter::is_type;
use crate::limits;

/// Segments that must fit a source's quota. Its events in the newest segment stay there however well they are delivered; with
/// room for another one it can always go on.
const QUOTA_SEGMENTS_MIN: u64 = 2;

/// Segments that must fit `max_bytes`: one being written, one being sealed, one being delivered, one to spare.
const SEGMENTS_MIN: u64 = 4;

/// Fills the gaps that other values decide.
pub(crate) fn derive(in_force: &mut InForce) {
    let streams: Vec<String> = in_force.all(SectionKind::Stream).map(|stream| stream.word("name")).collect();
    for section in &mut in_force.sections {
        let at = place(section.kind, section.index, "name");
        match section.kind {
            SectionKind::Stream if section.text("region").is_none() && section.sound(&["region"]) => {
                if let Some((region, _)) = stream_arn(&section.word("name")) {
                    let region = Typed::Text(Some(region.to_owned()));
                    section.fill("region", region, Origin::Derived(at));
                }
            }
            SectionKind::Source if section.text("stream").is_none() && section.sound(&["stream"]) => {
                if let [only] = &streams[..] {
                    section.fill("stream", Typed::Text(Some(only.clone())), Origin::Derived("stream[0].name".into()));
                }
            }
            _ => {}
        }
    }
}

/// Judges what is in force as a whole.
pub(crate) fn check(in_force: &InForce, problems: &mut Vec<Problem>) {
    check_listen(in_force.one(SectionKind::Listen), problems);
    check_spool(in_force.one(SectionKind::Spool), problems);
    let streams: Vec<&Section> = in_force.all(SectionKind::Stream).collect();
    let sources: Vec<&Section> = in_force.all(SectionKind::Source).collect();
    check_unique(&streams, problems);
    check_unique(&sources, problems);
    for stream in &streams {
        check_stream(stream, problems);
    }
    check_sources(&sources, &streams, problems);
    check_event_sizes(&sources, &streams, problems);
    for source in &sources {
        check_kind(source, problems);
        check_rules(source, problems);
        check_quota(source, in_force.one(SectionKind::Spool), problems);
    }
}

fn check_listen(listen: &Section, problems: &mut Vec<Problem>) {
    for (key, other) in [
        ("admin", "http"),
        ("https", "http"),
        ("https", "admin"),
        ("metrics", "http"),
        ("metrics", "https"),
        ("metrics", "admin"),
    ] {
        let address = listen.address(key).filter(|address| address.port() != 0);
        if address.is_some() && address == listen.address(other) && listen.sound(&[key, other]) {
            problems.push(listen.problem(key, format!("the same address as listen.{other}; each needs its own port")));
        }
    }
    let (socket, http_socket) = (listen.word("socket"), listen.word("http_socket"));
    if !socket.is_empty() && socket == http_socket && listen.sound(&["socket", "http_socket"]) {
        problems.push(listen.problem("http_socket", "the same path as listen.socket; each needs its own"));
    }
    let none =
        socket.is_empty() && http_socket.is_empty() && listen.address("http").is_none() && listen.address("https").is_none();
    if none && listen.sound(&["socket", "http_socket", "http", "https"]) {
        let wrong = "socket, http, https and http_socket are all off, so no event could come in; turn one on";
        problems.push(listen.problem("socket", wrong));
    }
    for key in ["tls_certificate", "tls_key"] {
        if listen.address("https").is_some() && listen.text(key).is_none() && listen.sound(&["https", key]) {
            let wrong = format!("needs listen.{key}; `forebay dev-cert` makes a certificate and a key for this machine");
            problems.push(listen.problem("https", wrong));
        }
    }
}

fn check_spool(spool: &Section, problems: &mut Vec<Problem>) {
    let (max, segment) = (spool.bytes("max_bytes"), spool.bytes("segment_bytes"));
    if spool.sound(&["max_bytes", "segment_bytes"]) && max < SEGMENTS_MIN * segment {
        let shown = super::units::show_bytes(segment);
        let least = super::units::show_bytes(SEGMENTS_MIN * segment);
        let wrong = format!("too small for {SEGMENTS_MIN} segments of {shown} (spool.segment_bytes)");
        problems.push(spool.problem("max_bytes", wrong).allowed(format!("at least \"{least}\", or smaller segments")));
    }
}

/// Keys of `[[source]]` that mean something for some kinds only.
const KEYS_OF_KINDS: &[(&str, &[SourceKind])] = &[
    ("events", &[SourceKind::Amplitude]),
    ("forward_identify", &[SourceKind::Amplitude]),
    ("stringify_user_properties", &[SourceKind::Amplitude]),
    ("send_as_batch", &[SourceKind::MParticle]),
    ("forward", &[SourceKind::MParticle]),
    ("include", &[SourceKind::MParticle]),
    ("exclude_metadata", &[SourceKind::MParticle]),
    ("unique_id", &[SourceKind::MParticle]),
    // Whoever writes to Kinesis signs with an access key, or not at all.
    ("keys", &[SourceKind::Events, SourceKind::Segment, SourceKind::Amplitude, SourceKind::MParticle]),
    ("access_keys", &[SourceKind::Kinesis]),
    ("profile", &[SourceKind::Segment]),
    ("payload", &[SourceKind::Segment]),
    ("use_message_id", &[SourceKind::Segment]),
    ("types", &[SourceKind::Segment]),
    ("integration", &[SourceKind::Segment]),
    ("project_id", &[SourceKind::Segment]),
    ("dedupe_id", &[SourceKind::Events, SourceKind::Kinesis]),
    ("limits", &[SourceKind::Segment, SourceKind::Amplitude, SourceKind::MParticle]),
];

/// How long the ids of a vendor's events are remembered by default: SDKs send again for some minutes.
const DEDUPE_OF_VENDORS: Duration = Duration::from_secs(600);

fn check_kind(source: &Section, problems: &mut Vec<Problem>) {
    let kind = SourceKind::of_word(&source.word("kind"));
    for &(key, kinds) in KEYS_OF_KINDS {
        // Whoever writes the default down changes nothing by it: as what `forebay config` prints does.
        let setting = source.setting(key);
        let given = setting.value != super::resolve::default(setting.key, &super::RealEnvironment);
        if given && !kinds.contains(&kind) && source.sound(&["kind", key]) {
            let kinds: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
            let wrong = format!("has no meaning for a source of kind {:?}; take it away", kind.word());
            problems.push(source.problem(key, wrong).allowed(format!("kind = {}", super::schema::quoted(&kinds))));
        }
    }
}

/// Rules that need what the kind does not give, or each other.
fn check_rules(source: &Section, problems: &mut Vec<Problem>) {
    if !source.sound(&["kind"]) {
        return;
    }
    let kind = SourceKind::of_word(&source.word("kind"));
    let without_id = matches!(kind, SourceKind::Events | SourceKind::Kinesis);
    let dedupe = source.time_or_off("dedupe").is_some_and(|window| !window.is_zero());
    if without_id && source.sound(&["dedupe", "dedupe_id"]) {
        if dedupe && source.text("dedupe_id").is_none() {
            let wrong = format!("an event of kind {:?} has no id of its own; say with dedupe_id where it is found", kind.word());
            problems.push(source.problem("dedupe", wrong).allowed("dedupe_id = \"/messageId\", or dedupe = \"off\""));
        }
        if !dedupe && source.text("dedupe_id").is_some() {
            let wrong = "has no meaning without dedupe; give the time too, or take this away";
            problems.push(source.problem("dedupe_id", wrong));
        }
    }
    for key in ["allow", "deny"] {
        let named = source.texts(key).into_iter().find(|entry| is_type(entry));
        if let Some(named) = named.filter(|_| without_id && source.sound(&[key])) {
            let wrong = format!("{named:?} is a type of event, and events of kind {:?} have none", kind.word());
            problems.push(source.problem(key, wrong).allowed("a pointer and its text, such as \"/event=Signed Up\""));
        }
    }
}

fn check_quota(source: &Section, spool: &Section, problems: &mut Vec<Problem>) {
    if !source.sound(&["spool_quota"]) || !spool.sound(&["max_bytes", "segment_bytes"]) {
        return;
    }
    let (max, segment) = (spool.bytes("max_bytes"), spool.bytes("segment_bytes"));
    let Some(quota) = source.share("spool_quota", max) else { return };
    let least = QUOTA_SEGMENTS_MIN * segment;
    if !(least..=max).contains(&quota) {
        let [max, segment, least] = [max, segment, least].map(super::units::show_bytes);
        let wrong = match quota < QUOTA_SEGMENTS_MIN * spool.bytes("segment_bytes") {
            true => format!("too small for {QUOTA_SEGMENTS_MIN} segments of {segment} (spool.segment_bytes)"),
            false => "more than the whole spool (spool.max_bytes)".to_owned(),
        };
        problems.push(source.problem("spool_quota", wrong).allowed(format!("\"{least}\" to \"{max}\", or that in percent")));
    }
}

fn check_stream(stream: &Section, problems: &mut Vec<Problem>) {
    if stream.text("external_id").is_some() && stream.text("role_arn").is_none() && stream.sound(&["external_id", "role_arn"]) {
        problems.push(stream.problem("external_id", "has no meaning without role_arn; give the role too, or take this away"));
    }
    if let (Some((arn_region, _)), Some(region)) = (stream_arn(&stream.word("name")), stream.text("region"))
        && arn_region != region
        && stream.sound(&["name", "region"])
    {
        problems
            .push(stream.problem("region", format!("the stream's ARN says {arn_region:?}; leave this out or make them agree")));
    }
}

/// Names must differ among streams, and among sources. A stream by its name and by its ARN is the same one.
fn check_unique(sections: &[&Section], problems: &mut Vec<Problem>) {
    for (at, section) in sections.iter().enumerate().filter(|(_, section)| section.sound(&["name"])) {
        let name = section.word("name");
        let same = |other: &&&Section| other.sound(&["name"]) && plain(&other.word("name")) == plain(&name);
        if let Some(first) = sections[..at].iter().find(same) {
            let first_at = place(first.kind, first.index, "name");
            problems.push(section.problem("name", format!("the same name as {first_at}; each may stand once")));
        }
    }
}

fn plain(name: &str) -> &str {
    stream_arn(name).map_or(name, |(_, name)| name)
}

fn check_sources(sources: &[&Section], streams: &[&Section], problems: &mut Vec<Problem>) {
    let names: Vec<String> = streams.iter().filter(|stream| stream.sound(&["name"])).map(|stream| stream.word("name")).collect();
    if names.len() != streams.len() || streams.is_empty() {
        // A stream without a good name, or none at all, is told elsewhere; sources are judged once that is mended.
        return;
    }
    let known = super::schema::quoted(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for source in sources.iter().filter(|source| source.sound(&["stream"])) {
        match source.text("stream") {
            None => {
                let at = place(SectionKind::Source, source.index, "stream");
                problems
                    .push(Problem::new(at, "missing; with several streams a source must name its own").allowed(known.clone()));
            }
            Some(name) if !names.contains(&name) => {
                let near = nearest(&name, names.iter().map(String::as_str)).map(|near| format!("{near:?}"));
                problems.push(source.problem("stream", "no [[stream]] has this name").nearest(near).allowed(known.clone()));
            }
            Some(_) => {}
        }
    }
    if sources.is_empty() && streams.len() > 1 {
        let wrong =
            format!("missing; with {} streams, say which source feeds which: [[source]] with name and stream", streams.len());
        problems.push(Problem::new("source", wrong).allowed(format!("stream = one of {known}")));
    }
}

/// The largest event of a source must fit a request to its stream, whatever its key: else it could be taken and never sent.
fn check_event_sizes(sources: &[&Section], streams: &[&Section], problems: &mut Vec<Problem>) {
    for source in sources.iter().filter(|source| source.sound(&["stream", "max_event_bytes"])) {
        let of_it = |stream: &&&Section| source.text("stream").is_some_and(|name| stream.word("name") == name);
        let Some(stream) = streams.iter().find(of_it).filter(|stream| stream.sound(&["name", "request_bytes_max"])) else {
            continue;
        };
        let (event, request) = (source.bytes("max_event_bytes"), stream.bytes("request_bytes_max"));
        let key = limits::KEY_BYTES_MAX as u64;
        if event + key > request {
            let at = place(stream.kind, stream.index, "request_bytes_max");
            let [most, needed] = [request - key, event + key].map(super::units::show_bytes);
            let wrong = format!("such an event with the longest key does not fit a request ({at})");
            let allowed = format!("at most \"{most}\", or a request_bytes_max of \"{needed}\" or more");
            problems.push(source.problem("max_event_bytes", wrong).allowed(allowed));
        }
    }
}

/// The configuration as the rest of the program takes it. Only meaningful where no problem was found.
pub(crate) fn build(in_force: &InForce) -> Config {
    let (listen, spool) = (in_force.one(SectionKind::Listen), in_force.one(SectionKind::Spool));
    Config {
        listen: Listen {
            socket: listen.text("socket").filter(|path| !path.is_empty()).map(PathBuf::from),
            allowed_uids: listen.ids("allowed_uids"),
            http: listen.address("http"),
            https: listen.address("https"),
            tls_certificate: listen.text("tls_certificate").map(PathBuf::from),
            tls_key: listen.text("tls_key").map(PathBuf::from),
            http_socket: listen.text("http_socket").filter(|path| !path.is_empty()).map(PathBuf::from),
            admin: listen.address("admin"),
            metrics: listen.address("metrics"),
            allowed_hosts: listen.texts("allowed_hosts"),
            allowed_origins: listen.texts("allowed_origins"),
        },
        spool: SpoolConfig {
            dir: spool.word("dir").into(),
            max_bytes: spool.bytes("max_bytes"),
            segment_bytes: spool.bytes("segment_bytes"),
            checkpoint_interval: spool.time("checkpoint_interval"),
            sync: SyncClass::of_text(&spool.word("sync")),
            on_full: match spool.word("on_full").as_str() {
                "reject" => OnFull::Reject,
                "drop_oldest" => OnFull::DropOldest,
                _ => OnFull::Block,
            },
            reserve: spool.bytes_if_given("reserve"),
            dead_max_bytes: spool.bytes("dead_max_bytes"),
            encryption_keys: spool.texts("encryption_keys").iter().filter_map(|text| KeySource::parse(text)).collect(),
        },
        streams: in_force.all(SectionKind::Stream).map(build_stream).collect(),
        sources: in_force.all(SectionKind::Source).map(|source| build_source(source, spool.bytes("max_bytes"))).collect(),
        drain_timeout: in_force.one(SectionKind::Root).time("drain_timeout"),
    }
}

fn build_stream(stream: &Section) -> StreamConfig {
    StreamConfig {
        name: stream.word("name"),
        region: stream.text("region"),
        role_arn: stream.text("role_arn"),
        external_id: stream.text("external_id"),
        endpoint: stream.text("endpoint"),
        profile: stream.text("profile"),
        aggregate: match stream.word("aggregate").as_str() {
            "kpl" => Aggregate::Kpl,
            "lines" => Aggregate::Lines,
            _ => Aggregate::Off,
        },
        order: match stream.word("order").as_str() {
            "none" => Order::None,
            _ => Order::Key,
        },
        record_distribution: match stream.word("record_distribution").as_str() {
            "keys" => RecordDistribution::Keys,
            _ => RecordDistribution::Ask,
        },
        ask_mode_within: stream.time("ask_mode_within"),
        linger: stream.time("linger"),
        record_bytes_max: usize_of(stream.bytes("record_bytes_max")),
        request_bytes_max: usize_of(stream.bytes("request_bytes_max")),
        requests_max: usize_of(stream.count("requests_max")),
        request_timeout: stream.time("request_timeout"),
        ttl: stream.time("ttl"),
        spool_compression: stream.word("spool_compression") == "zstd",
    }
}

fn build_source(source: &Section, spool_max_bytes: u64) -> SourceConfig {
    SourceConfig {
        name: source.word("name"),
        kind: SourceKind::of_word(&source.word("kind")),
        stream: source.word("stream"),
        partition_key: own_key_rule(source),
        partition_key_fallback: match source.word("partition_key_fallback").as_str() {
            "reject" => KeyFallback::Reject,
            _ => KeyFallback::Random,
        },
        keys: source.secrets("keys"),
        access_keys: source.secrets("access_keys"),
        max_event_bytes: usize_of(source.bytes("max_event_bytes")),
        spool_quota: source.share("spool_quota", spool_max_bytes),
        amplitude: AmplitudeConfig {
            events: source.texts("events").into_iter().collect(),
            forward_identify: source.bool("forward_identify"),
            stringify_user_properties: source.bool("stringify_user_properties"),
        },
        mparticle: MParticleConfig {
            send_as_batch: source.bool("send_as_batch"),
            forward: source.texts("forward").into_iter().collect(),
            include: source.texts("include").into_iter().collect(),
            exclude_metadata: source.texts("exclude_metadata").into_iter().collect(),
            unique_id: source.text("unique_id").filter(|id| !id.is_empty()),
        },
        segment: SegmentConfig {
            profile: SegmentProfile::of_word(&source.word("profile")),
            facade: match source.word("payload").as_str() {
                "facade" => Some(true),
                "verbatim" => Some(false),
                _ => None,
            },
            use_message_id: source.bool("use_message_id"),
            types: source.texts("types"),
            integration: source.text("integration").filter(|name| !name.is_empty()),
            project_id: source.text("project_id").filter(|id| !id.is_empty()),
        },
        rules: build_rules(source),
    }
}

fn build_rules(source: &Section) -> RuleConfig {
    let without_id = matches!(SourceKind::of_word(&source.word("kind")), SourceKind::Events | SourceKind::Kinesis);
    let dedupe = if without_id { Duration::ZERO } else { DEDUPE_OF_VENDORS };
    RuleConfig {
        allow: source.texts("allow"),
        deny: source.texts("deny"),
        add: source.texts("add"),
        dedupe: source.time_or_off("dedupe").unwrap_or(dedupe),
        dedupe_id: source.text("dedupe_id"),
        limits: if source.word("limits") == "vendor" { SizeLimits::Vendor } else { SizeLimits::Kinesis },
        data_encoding: if source.word("data_encoding") == "base64" { DataEncoding::Base64 } else { DataEncoding::Json },
    }
}

/// The pointers that hold for a source: a vendor's rule for its key gives way only to pointers that somebody wrote down.
fn own_key_rule(source: &Section) -> Vec<String> {
    let written = !matches!(source.setting("partition_key").origin, Origin::Default);
    if source.word("kind") == SourceKind::Events.word() || written { source.texts("partition_key") } else { Vec::new() }
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).expect("the schema's ranges lie below 2^32")
}
