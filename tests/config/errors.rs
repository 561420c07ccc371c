//! What is wrong is told, all at once, with place, value, what is allowed and the remedy; and where good and bad part.
//!
//! Place: part of `config.rs`, with its maps in place of files and environment.

use std::time::Duration;

use forebay::config::{
    DataEncoding, OnFull, Order, Request, RuleConfig, Secret, SectionKind, SegmentConfig, SegmentProfile, SyncClass,
};

use super::{FILE, Maps, ONE_STREAM, agent, assert_tells, flag};

#[test]
fn all_errors_are_told_at_once_each_with_place_value_and_what_is_allowed() {
    let text = "drain_timeout = 10\n[listen]\nhttp = \"0.0.0.0:4710\"\nsokcet = \"/x\"\n[spool]\nmax_bytes = \"10G\"\nsegment_bytes = true\n\
                [[stream]]\nname = \"clicks\"\nlinger = \"1h\"\naggregate = \"kpi\"\nrequests_max = 0\n\
                [[source]]\nname = \"web\"\nstream = \"click\"\npartition_key = [\"userId\", \"/ok\", 7]\n";
    let (many, report) = Maps::file(text).with_var("FOREBAY_STREAM__0__REGION", "EU west").report();
    assert_eq!(many, 12, "{report}");
    assert_tells(
        &report,
        &[
            "the configuration has 12 errors",
            "drain_timeout = 10  (/etc/forebay/forebay.toml, line 1)\n      the unit is missing",
            "listen.http = \"0.0.0.0:4710\"",
            "not a loopback address",
            "listen.sokcet  (/etc/forebay/forebay.toml, line 4)\n      unknown key; the nearest known one is listen.socket",
            "spool.max_bytes = \"10G\"",
            "GiB (1024 cubed) or GB (1000 cubed)",
            "allowed: a size from 256MiB to 1PiB",
            "spool.segment_bytes = true",
            "a text in quotes is needed, a boolean was given",
            "stream[0].linger = \"1h\"",
            "too large\n      allowed: a time from 0ms to 10s",
            "stream[0].aggregate = \"kpi\"",
            "the nearest known one is \"kpl\"",
            "stream[0].requests_max = 0",
            "allowed: a whole number from 1 to 64",
            "stream[0].region = \"EU west\"  (environment, FOREBAY_STREAM__0__REGION)",
            "source[0].stream = \"click\"",
            "the nearest known one is \"clicks\"",
            "source[0].partition_key[0] = \"userId\"",
            "RFC 6901",
            "source[0].partition_key[2] = 7",
        ],
    );
}

#[test]
fn a_source_of_kind_segment_is_as_its_profile_has_it_unless_told_otherwise() {
    let with = |lines: &str| Maps::file(&format!("{ONE_STREAM}[[source]]\nname = \"s\"\n{lines}\n"));
    let of = |lines: &str| with(&format!("kind = \"segment\"\n{lines}")).config().sources[0].clone();
    assert_eq!(of("").segment, SegmentConfig::default());
    assert!(of("").partition_key.is_empty());
    let told = "profile = \"actions\"\npayload = \"facade\"\nuse_message_id = true\ntypes = [\"track\"]\nintegration = \"Lake\"\n\
                project_id = \"p\"\npartition_key = [\"/userId\"]";
    let source = of(told);
    assert_eq!(
        source.segment,
        SegmentConfig {
            profile: SegmentProfile::Actions,
            facade: Some(true),
            use_message_id: true,
            types: vec!["track".into()],
            integration: Some("Lake".into()),
            project_id: Some("p".into()),
        }
    );
    assert_eq!(source.partition_key, ["/userId"]);
    assert_tells(
        &with("profile = \"actions\"").one_problem(),
        &["has no meaning for a source of kind \"events\"", "\"segment\""],
    );
    assert_tells(&with("kind = \"segment\"\ntypes = [\"tracks\"]").one_problem(), &["types[0] = \"tracks\"", "\"screen\""]);
}

#[test]
fn access_keys_are_for_the_kinesis_api_and_write_keys_are_not() {
    let with = |lines: &str| Maps::file(&format!("{ONE_STREAM}[[source]]\nname = \"s\"\n{lines}\n"));
    assert_eq!(with("kind = \"kinesis\"\naccess_keys = [\"AKID:s:cret\"]").config().sources[0].access_keys[0].0, "AKID:s:cret");
    assert_tells(
        &with("access_keys = [\"AKID:secret\"]").one_problem(),
        &["source[0].access_keys", "has no meaning for a source of kind \"events\"", "allowed: kind = \"kinesis\""],
    );
    assert_tells(
        &with("kind = \"kinesis\"\nkeys = [\"k\"]").one_problem(),
        &["source[0].keys", "has no meaning for a source of kind \"kinesis\""],
    );
    let file = with("kind = \"kinesis\"\naccess_keys_file = \"/access\"").with_file("/access", "A:1\n\nB:2:3\n");
    assert_eq!(file.config().sources[0].access_keys, [Secret("A:1".into()), Secret("B:2:3".into())]);
    for wrong in ["AKID", "AKID:", ":secret", "AK ID:secret", "AKID:sec ret"] {
        let report = with(&format!("kind = \"kinesis\"\naccess_keys = [{wrong:?}]")).one_problem();
        assert_tells(&report, &["source[0].access_keys[0] = \"***\"", "allowed: a list, each of it ID:SECRET"]);
        assert!(!report.contains("ecret\""), "{report}");
    }
}

#[test]
fn a_key_of_another_kind_of_source_is_told_unless_it_says_what_holds_anyway() {
    let with = |lines: &str| Maps::file(&format!("{ONE_STREAM}[[source]]\nname = \"s\"\n{lines}\n"));
    for (kind, line) in [
        ("events", "forward_identify = true"),
        ("events", "unique_id = \"a\""),
        ("amplitude", "forward = []"),
        ("mparticle", "events = [\"a\"]"),
    ] {
        let report = with(&format!("kind = {kind:?}\n{line}")).one_problem();
        assert_tells(&report, &[line, &format!("has no meaning for a source of kind {kind:?}"), "allowed: kind = "]);
    }
    with("kind = \"events\"\nforward_identify = false\nevents = []\nsend_as_batch = true").config();
    let config = with("kind = \"amplitude\"\nforward_identify = true\nevents = [\"a\"]").config();
    assert!(config.sources[0].amplitude.forward_identify && config.sources[0].amplitude.events.contains("a"));
    let report = with("kind = \"mparticle\"\nforward = [\"crash\", \"crashes\"]").one_problem();
    assert_tells(&report, &["source[0].forward[1] = \"crashes\"", "allowed: a list, each of it \"lifecycle\""]);
    let report = with("kind = \"mparticle\"\nsend_as_batch = \"maybe\"").one_problem();
    assert_tells(&report, &["source[0].send_as_batch = \"maybe\"", "neither true nor false", "allowed: true, false"]);
}

#[test]
fn an_event_that_would_not_fit_a_request_is_refused_with_both_remedies() {
    let with = |event: &str, request: &str| {
        Maps::file(&format!(
            "{ONE_STREAM}request_bytes_max = \"{request}\"\n[[source]]\nname = \"s\"\nmax_event_bytes = \"{event}\"\n"
        ))
    };
    assert_eq!(with("10238KiB", "10239KiB").config().sources[0].max_event_bytes, (10 << 20) - 2048);
    assert_tells(
        &with("6MiB", "5119KiB").one_problem(),
        &[
            "source[0].max_event_bytes = \"6MiB\"",
            "such an event with the longest key does not fit a request (stream[0].request_bytes_max)",
            "allowed: at most \"5118KiB\", or a request_bytes_max of \"6145KiB\" or more",
        ],
    );
    assert_tells(&with("10MiB", "10239KiB").one_problem(), &["too large", "allowed: a size from 1B to 10238KiB"]);
}

#[test]
fn sync_classes_are_read_told_as_written_and_wrong_ones_refused_with_what_is_allowed() {
    let sync = |text: &str| Maps::file(&format!("{ONE_STREAM}[spool]\nsync = {text}\n"));
    for (text, class, shown) in [
        ("\"always\"", SyncClass::Always, "always"),
        ("\"os\"", SyncClass::Os, "os"),
        ("\"interval:50ms\"", SyncClass::Interval(Duration::from_millis(50)), "interval:50ms"),
        ("\"interval:0.5s\"", SyncClass::Interval(Duration::from_millis(500)), "interval:500ms"),
    ] {
        let loaded = sync(text).load().unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!((loaded.config.spool.sync, loaded.config.spool.sync.to_string()), (class, shown.to_owned()));
        assert!(loaded.in_force.to_toml().contains(&format!("\nsync = \"{shown}\" ")), "{}", loaded.in_force.to_toml());
    }
    for (text, told) in [
        ("\"interval\"", "the time is missing, as in \"interval:50ms\""),
        ("\"interval:50\"", "the unit is missing"),
        ("\"interval:0ms\"", "too small"),
        ("\"interval:1m\"", "too large"),
        ("\"alway\"", "the nearest known one is \"always\""),
        ("\"os:1s\"", "the nearest known one is \"os\""),
        ("true", "a text in quotes is needed"),
    ] {
        let allowed = "allowed: \"always\", \"os\", or \"interval:\" with a time from 1ms to 10s, such as \"interval:50ms\"";
        assert_tells(&sync(text).one_problem(), &["spool.sync = ", told, allowed]);
    }
}

#[test]
fn what_happens_without_room_and_the_reserve_are_read() {
    let spool = |lines: &str| Maps::file(&format!("{ONE_STREAM}[spool]\n{lines}\n"));
    let config = spool("on_full = \"reject\"\nreserve = \"1GiB\"").config();
    assert_eq!((config.spool.on_full, config.spool.reserve), (OnFull::Reject, Some(1 << 30)));
    assert_eq!(spool("reserve = 0").config().spool.reserve, Some(0));
    assert_tells(&spool("on_full = \"refuse\"").one_problem(), &["the nearest known one is \"reject\"", "allowed: \"block\""]);
    assert_tells(&spool("reserve = \"10%\"").one_problem(), &["spool.reserve = \"10%\"", "allowed: a size from 0B to 1PiB"]);
    assert!(spool("").load().unwrap().in_force.to_toml().contains("# reserve"), "what is not set is shown as such");
}

#[test]
fn a_quota_is_a_size_or_a_part_of_the_spool_and_must_hold_two_segments() {
    let quota = |value: &str| {
        let spool = "[spool]\nmax_bytes = \"1GiB\"\nsegment_bytes = \"32MiB\"\n";
        Maps::file(&format!("{ONE_STREAM}[[source]]\nname = \"web\"\nspool_quota = {value}\n{spool}"))
    };
    for (value, bytes) in [("\"25%\"", 256 << 20), ("\"64MiB\"", 64 << 20), ("\"100%\"", 1 << 30), ("268435456", 256 << 20)] {
        assert_eq!(quota(value).config().sources[0].spool_quota, Some(bytes), "{value}");
    }
    let shown = quota("\"25%\"").load().unwrap().in_force.to_json();
    assert_eq!(shown["source"][0]["spool_quota"]["value"], "25%");
    for (value, told) in [
        ("\"5%\"", "too small for 2 segments of 32MiB"),
        ("\"63MiB\"", "too small for 2 segments of 32MiB"),
        ("\"2GiB\"", "more than the whole spool"),
    ] {
        assert_tells(&quota(value).one_problem(), &["source[0].spool_quota = ", told, "allowed: \"64MiB\" to \"1GiB\""]);
    }
    for (value, told) in [
        ("\"101%\"", "too large"),
        ("\"0%\"", "too small"),
        ("\"2.5%\"", "not whole percent"),
        ("\"25x\"", "no such unit"),
        ("-1", "below zero"),
    ] {
        assert_tells(&quota(value).one_problem(), &["source[0].spool_quota = ", told, "whole percent of spool.max_bytes"]);
    }
}

#[test]
fn unknown_names_are_told_with_the_nearest_one_even_in_another_section() {
    for (text, path, near) in [
        ("drain_timout = \"1s\"\n", "drain_timout", "drain_timeout"),
        ("[lisen]\nhttp = \"\"\n", "lisen", "[listen]"),
        ("[[streams]]\nname = \"x\"\n", "streams", "[[stream]]"),
        ("[spool]\nlinger = \"1ms\"\n", "spool.linger", "stream[0].linger"),
    ] {
        assert_tells(
            &Maps::file(&format!("{text}{ONE_STREAM}")).one_problem(),
            &[path, &format!("the nearest known one is {near}")],
        );
    }
}

#[test]
fn tables_in_the_wrong_form_are_told_how_they_are_written() {
    assert_tells(&Maps::file("[stream]\nname = \"x\"\n").report().1, &["stream  (", "write [[stream]]"]);
    assert_tells(&Maps::file(&format!("{ONE_STREAM}[[spool]]\ndir = \"x\"\n")).one_problem(), &["write [spool]"]);
    assert_tells(&Maps::file("listen = 3\n[[stream]]\nname = \"x\"").one_problem(), &["write [listen]"]);
}

#[test]
fn text_that_is_no_toml_is_told_by_line_and_column_without_its_contents() {
    let (many, report) = Maps::file("[[stream]]\nname = \"clicks\nkeys = [\"hush\"]\n[listen\n").report();
    assert!(many >= 2, "{report}");
    assert_tells(&report, &["forebay.toml, line 2, column", "not TOML"]);
    assert!(!report.contains("hush"), "{report}");
    assert!(!report.contains("--dev"), "a file that cannot be read may hold the stream:\n{report}");
}

#[test]
fn relations_between_values_are_judged() {
    let stream = |more: &str| Maps::file(&format!("{ONE_STREAM}{more}")).one_problem();
    assert_tells(
        &stream("[spool]\nmax_bytes = \"256MiB\"\nsegment_bytes = \"65MiB\"\n"),
        &["spool.max_bytes = \"256MiB\"", "4 segments of 65MiB", "at least \"260MiB\""],
    );
    assert_tells(&stream("[listen]\nadmin = \"127.0.0.1:4710\"\n"), &["listen.admin", "the same address as listen.http"]);
    assert_tells(&stream("[listen]\nsocket = \"\"\nhttp = \"\"\n"), &["no event could come in"]);
    let tls = "tls_certificate = \"/c\"\ntls_key = \"/k\"\n";
    for (listen, told) in [
        (format!("https = \"127.0.0.1:4710\"\n{tls}"), "the same address as listen.http"),
        (format!("https = \"127.0.0.1:4711\"\n{tls}"), "the same address as listen.admin"),
        ("https = \"127.0.0.1:4712\"\ntls_key = \"/k\"\n".into(), "needs listen.tls_certificate; `forebay dev-cert`"),
        ("https = \"127.0.0.1:4712\"\ntls_certificate = \"/c\"\n".into(), "needs listen.tls_key; `forebay dev-cert`"),
        (format!("https = \"0.0.0.0:4712\"\n{tls}"), "not a loopback address"),
        ("socket = \"/x.sock\"\nhttp_socket = \"/x.sock\"\n".into(), "the same path as listen.socket"),
    ] {
        assert_tells(&stream(&format!("[listen]\n{listen}")), &[told]);
    }
    assert_tells(&stream("external_id = \"abc\"\n"), &["stream[0].external_id", "role_arn"]);
    assert_tells(
        &stream("[[stream]]\nname = \"clicks\"\n[[source]]\nname = \"a\"\nstream = \"clicks\"\n"),
        &["stream[1].name", "stream[0].name"],
    );
    assert_tells(&stream("[[source]]\nname = \"a\"\n[[source]]\nname = \"a\"\n"), &["source[1].name = \"a\"", "source[0].name"]);
    assert_tells(
        &stream("[[stream]]\nname = \"audit\"\n[[source]]\nname = \"a\"\n"),
        &["source[0].stream", "\"clicks\", \"audit\""],
    );
    assert_tells(&stream("[[stream]]\nname = \"audit\"\n"), &["source", "which source feeds which"]);
    assert_tells(&stream("[[stream]]\n[[source]]\nname = \"a\"\nstream = \"nowhere\"\n"), &["stream[1].name", "missing"]);
    let long = format!("[listen]\nsocket = \"/{}\"\n", "s".repeat(107));
    assert_tells(&stream(&long), &["listen.socket", "at most 107 bytes"]);
}

#[test]
fn an_arn_names_its_region_and_contradicts_another() {
    let arn = "[[stream]]\nname = \"arn:aws:kinesis:eu-west-1:123456789012:stream/clicks\"\n";
    let config = Maps::file(arn).config();
    assert_eq!(config.streams[0].region.as_deref(), Some("eu-west-1"));
    assert_eq!(config.sources[0].stream, config.streams[0].name);
    assert_tells(&Maps::file(&format!("{arn}region = \"us-east-1\"\n")).one_problem(), &["stream[0].region", "\"eu-west-1\""]);
    assert_tells(
        &Maps::file(&format!("{arn}[[source]]\nname = \"a\"\nstream = \"x\"\n{ONE_STREAM}")).report().1,
        &["the same name"],
    );
}

#[test]
fn without_any_stream_the_two_shortest_ways_to_start_are_shown() {
    let report = Maps::default().one_problem();
    assert_tells(&report, &["forebay run --dev", "forebay run --stream NAME --region REGION", FILE]);
    assert_tells(&Maps::file("").one_problem(), &["no [[stream]] in /etc/forebay/forebay.toml"]);
}

#[test]
fn a_named_file_must_exist_and_the_usual_one_need_not() {
    let request = Request { file: Some("/no.toml".into()), ..agent() };
    let report = Maps::default().load_as(&request).unwrap_err().to_string();
    assert_tells(&report, &["the configuration has 1 error\n", "--config /no.toml", "cannot be read"]);
    assert_eq!(Maps::default().with_var("FOREBAY_STREAM__0__NAME", "x").config().streams[0].name, "x");
    let denied = Maps { denied: vec![FILE.into()], ..Maps::default() };
    assert_tells(&denied.one_problem(), &[FILE, "cannot be read"]);
}

#[test]
fn stream_flags_make_a_stream_or_change_the_only_one_and_refuse_to_guess() {
    let flags =
        vec![flag(SectionKind::Stream, "name", "--stream", "s"), flag(SectionKind::Stream, "region", "--region", "eu-west-1")];
    let request = Request { flags, ..agent() };
    let made = Maps::default().load_as(&request).unwrap().config;
    assert_eq!((made.streams[0].name.as_str(), made.streams[0].region.as_deref()), ("s", Some("eu-west-1")));
    let changed = Maps::file(&format!("{ONE_STREAM}order = \"none\"\n")).load_as(&request).unwrap().config;
    assert_eq!((changed.streams[0].name.as_str(), changed.streams[0].order), ("s", Order::None));
    let two = Maps::file(&format!("{ONE_STREAM}[[stream]]\nname = \"b\"\n[[source]]\nname = \"a\"\nstream = \"b\"\n"));
    let report = two.load_as(&request).unwrap_err().to_string();
    assert_tells(&report, &["--stream = \"s\"", "--region = \"eu-west-1\"", "works with one stream"]);
}

#[test]
fn rules_of_a_source_are_read_and_judged_by_their_forms() {
    let source = |rules: &str| Maps::file(&format!("{ONE_STREAM}[[source]]\nname = \"web\"\n{rules}\n"));
    let good = source(
        "partition_key = [\"{/context/site}-{/userId}\", \"random\"]\nallow = [\"/type=track\"]\ndeny = [\"/test\"]\n\
         add = [\"env=a=b\", \"host={host}\"]\ndedupe = \"90s\"\ndedupe_id = \"/messageId\"\ndata_encoding = \"base64\"",
    );
    let rules = good.config().sources.remove(0).rules;
    assert_eq!((rules.allow, rules.deny), (vec!["/type=track".to_owned()], vec!["/test".to_owned()]));
    assert_eq!((rules.add.len(), rules.dedupe, rules.dedupe_id.as_deref()), (2, Duration::from_secs(90), Some("/messageId")));
    assert_eq!(rules.data_encoding, DataEncoding::Base64);
    assert_eq!(source("").config().sources.remove(0).rules, RuleConfig::default(), "nothing for plain events");
    assert!(source("dedupe = \"off\"").config().sources[0].rules.dedupe.is_zero());
    for (rules, parts) in [
        ("partition_key = [\"{/a\"]", ["source[0].partition_key[0]", "a template of pointers"]),
        ("allow = [\"\"]", ["source[0].allow[0]", "/pointer=text"]),
        ("deny = [\"Signed Up\"]", ["source[0].deny", "/event=Signed Up"]),
        ("add = [\"a={hots}\"]", ["source[0].add[0]", "{received_at}"]),
        ("add = [\"a\"]", ["source[0].add[0]", "name=value"]),
        ("dedupe = \"25h\"\ndedupe_id = \"/id\"", ["source[0].dedupe", "\"off\", or a time from 1s to 1d"]),
        ("dedupe = \"10m\"", ["source[0].dedupe", "dedupe_id = \"/messageId\""]),
        ("dedupe_id = \"/id\"", ["source[0].dedupe_id", "no meaning without dedupe"]),
        ("dedupe = \"10m\"\ndedupe_id = \"id\"", ["source[0].dedupe_id", "a JSON pointer"]),
        ("limits = \"vendor\"", ["source[0].limits", "no meaning for a source of kind \"events\""]),
        ("data_encoding = \"base46\"", ["source[0].data_encoding", "\"base64\""]),
    ] {
        assert_tells(&source(rules).one_problem(), &parts);
    }
}
