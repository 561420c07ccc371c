//! Which batches are taken, which of their events, and under which key.

use super::*;

fn judge(json: &str) -> Result<Batch<'_>, Wrong> {
    Batch::judge(json, &MParticleConfig::default(), 10)
}

fn key(json: &str) -> String {
    judge(&format!("{{\"environment\":\"production\",{json}}}")).unwrap().key().into_owned()
}

#[test]
fn a_batch_needs_its_environment_and_events_that_are_such() {
    for good in [
        r#"{"environment":"production"}"#,
        r#"{"environment":"development","events":null}"#,
        r#" {"environment":"production","events":[{"event_type":"custom_event"}, {"event_type":"no such","data":7}]} "#,
    ] {
        assert!(judge(good).is_ok(), "{good}");
    }
    for (bad, wrong) in [
        ("[]", Wrong::NoBatch),
        ("{}", Wrong::Environment),
        (r#"{"environment":null}"#, Wrong::Environment),
        (r#"{"environment":"staging"}"#, Wrong::Environment),
        (r#"{"environment":"production","events":{}}"#, Wrong::Events),
        (r#"{"environment":"production","events":[1]}"#, Wrong::Events),
        (r#"{"environment":"production","events":[{}]}"#, Wrong::Events),
        (r#"{"environment":"production","events":[{"event_type":""}]}"#, Wrong::Events),
    ] {
        assert_eq!(judge(bad).err(), Some(wrong), "{bad}");
    }
    let many = format!(r#"{{"environment":"production","events":[{}1]}}"#, "1,".repeat(10));
    assert_eq!(judge(&many).err(), Some(Wrong::TooLarge));
    let deep = format!(r#"{{"environment":"production","x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(judge(&deep).err(), Some(Wrong::Depth));
}

#[test]
fn a_bulk_body_is_an_array() {
    assert_eq!(batches(b" [{} ,1]", 2).unwrap(), ["{}", "1"]);
    assert_eq!(batches(b"{}", 2), Err(Wrong::NoBatches));
    assert_eq!(batches(b"[1", 2), Err(Wrong::NotJson));
    assert_eq!(batches(b"[1,2,3]", 2), Err(Wrong::TooLarge));
    assert_eq!(batches(b"\xff", 2), Err(Wrong::NotJson));
    for wrong in [&b"{} {}"[..], b"x", b"", b"{\"environment\":\"production\"", b"\xff"] {
        assert_eq!(batch(wrong).and_then(|json| judge(json).map(|_| ())), Err(Wrong::NotJson));
    }
}

#[test]
fn arrays_and_objects_are_counted_in_events_too_and_of_events_sent_twice_the_last_count() {
    let nested = |most: usize| {
        // The batch, its events, the event: three.
        let value = format!("{}{}", "[".repeat(most - 3), "]".repeat(most - 3));
        format!(r#"{{"environment":"production","events":[{{"event_type":"a","data":{value}}}]}}"#)
    };
    assert!(judge(&nested(DEPTH_MAX)).is_ok());
    assert_eq!(judge(&nested(DEPTH_MAX + 1)).err(), Some(Wrong::Depth));
    let kinds = |events: &str| {
        let json = format!(r#"{{"environment":"production",{events}}}"#);
        judge(&json).map(|batch| batch.events.iter().map(|event| event.kind.to_string()).collect::<Vec<_>>())
    };
    let twice = r#""events":[7],"events":[{"event_type":"x","event_type":"\u0061"},{"event_type":"b"}]"#;
    assert_eq!(kinds(twice).unwrap(), ["a", "b"]);
    assert_eq!(kinds(r#""events":[{"event_type":"a"}],"events":null"#).unwrap(), Vec::<String>::new());
    assert_eq!(kinds(r#""events":[{"event_type":"a"}],"events":7"#), Err(Wrong::Events));
    assert_eq!(kinds(r#""events":[{"event_type":"a","event_type":null}]"#), Err(Wrong::Events));
}

#[test]
fn the_key_is_mpid_then_customer_then_identity_then_device() {
    let device = r#""device_info":{"brand":"b","android_uuid":"a-1","ios_idfv":"i-1"}"#;
    let identities = r#""user_identities":{"email":"e","customerid":"c"}"#;
    assert_eq!(key(&format!(r#""mpid":-196509116834317511,{identities},{device}"#)), "-196509116834317511");
    assert_eq!(key(&format!(r#""mpid":"7346244611012968789",{identities}"#)), "7346244611012968789");
    assert_eq!(key(&format!(r#""mpid":0,{identities},{device}"#)), "c");
    assert_eq!(key(r#""user_identities":{"customerid":"python","customer_id":"api"}"#), "api");
    assert_eq!(key(r#""user_identities":{"facebook":"","email":"e","other":"o"}"#), "e");
    assert_eq!(key(&format!(r#""user_identities":{{"customer_id":null}},{device}"#)), "i-1");
    assert_eq!(key(&format!(r#""mp_deviceid":"d-1",{device}"#)), "d-1");
    assert_eq!(key(r#""mpid":null"#), "");
}

#[test]
fn switches_decide_which_events_are_forwarded_and_what_has_none_always_is() {
    let kinds = [
        "session_start",
        "session_end",
        "first_run",
        "application_state_transition",
        "screen_view",
        "crash_report",
        "breadcrumb",
        "network_performance",
        "custom_event",
        "push_registration",
        "push_message",
        "commerce_event",
        "user_attribute_change",
        "user_identity_change",
        "opt_out",
        "profile",
        "uninstall",
    ];
    let events: Vec<String> = kinds.iter().map(|kind| format!("{{\"event_type\":\"{kind}\"}}")).collect();
    let json = format!(r#"{{"environment":"production","events":[{}]}}"#, events.join(","));
    let forwarded = |config: &MParticleConfig| Batch::judge(&json, config, 100).unwrap().events.len();
    assert_eq!(forwarded(&MParticleConfig::default()), kinds.len() - 2);
    let only = |word: &str| MParticleConfig { forward: [word.to_owned()].into(), ..Default::default() };
    for (word, many) in MParticleConfig::FORWARD.into_iter().zip([4, 1, 2, 1, 1, 2, 1, 1, 1]) {
        assert_eq!(forwarded(&only(word)), 3 + many, "{word}");
    }
}

#[test]
fn a_batch_without_events_is_a_record_unless_that_is_switched_off() {
    let batch = judge(r#"{"environment":"production"}"#).unwrap();
    assert_eq!(batch.records(&MParticleConfig::default()), 1);
    assert_eq!(batch.records(&MParticleConfig { send_as_batch: false, ..Default::default() }), 1);
    assert_eq!(batch.records(&MParticleConfig { include: Default::default(), ..Default::default() }), 0);
    let two = judge(r#"{"environment":"production","events":[{"event_type":"a"},{"event_type":"b"}]}"#).unwrap();
    assert_eq!(two.records(&MParticleConfig { include: Default::default(), ..Default::default() }), 1);
    assert_eq!(two.records(&MParticleConfig { send_as_batch: false, ..Default::default() }), 2);
}

#[test]
fn mparticles_own_limits_are_262144_bytes_and_100_batches() {
    assert_eq!(keep_limits(262_144, 100), Ok(()));
    assert_eq!(keep_limits(262_145, 1), Err(Wrong::OverLimit));
    assert_eq!(keep_limits(1, 101), Err(Wrong::OverLimit));
}
