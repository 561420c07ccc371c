//! `forebay iam-policy`: the documents of the real binary, compared with golden files.
//!
//! Goal: what a person pastes into IAM changes only on purpose. Method: configurations in, documents out, byte for byte;
//! `FOREBAY_WRITE_DOCS=1` writes the golden files anew. What the documents mean is judged by a real evaluator of policies in
//! `tests/interop`.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test ends where something fails; it runs a real process on real files"
)]

use std::path::Path;
use std::process::Command;

const ROLES: &str = r#"
[[stream]]
name = "clicks"
region = "eu-west-1"
role_arn = "arn:aws:iam::111122223333:role/events"
external_id = "source-1"

[[stream]]
name = "views"
region = "eu-central-1"
role_arn = "arn:aws:iam::111122223333:role/events"
external_id = "source-2"

[[stream]]
name = "arn:aws:kinesis:us-east-1:444455556666:stream/audit"
role_arn = "arn:aws:iam::444455556666:role/audit"
profile = "security"

[[stream]]
name = "own"
region = "eu-west-1"

[[source]]
name = "web"
stream = "clicks"
"#;

/// Exit code, stdout, stderr of `forebay iam-policy` with nothing of ours in its environment.
fn iam_policy(config: &str, args: &[&str], vars: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("forebay.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.env_clear().env("HOME", dir.path()).envs(vars.iter().copied());
    let output = command.arg("iam-policy").arg("--config").arg(&file).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Prints what the golden file holds; what it tells on stderr.
fn golden(name: &str, config: &str, args: &[&str], vars: &[(&str, &str)]) -> String {
    let (code, stdout, stderr) = iam_policy(config, args, vars);
    assert_eq!(code, Some(0), "{name}: {stderr}");
    serde_json::from_str::<serde_json::Value>(&stdout).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/iam").join(format!("{name}.json"));
    if std::env::var_os("FOREBAY_WRITE_DOCS").is_some() {
        std::fs::write(&path, &stdout).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(stdout, expected, "{}", path.display());
    stderr
}

#[test]
fn one_stream_makes_one_bare_document() {
    let told = golden("one-stream", "", &["--stream", "clicks", "--region", "eu-west-1", "--account", "123456789012"], &[]);
    assert!(told.contains("--kms-key") && !told.contains("not known"), "{told}");
}

#[test]
fn what_is_not_known_is_a_star_and_told() {
    let told = golden("unknown", "[[stream]]\nname = \"clicks\"\n", &[], &[]);
    assert!(told.contains("the region of stream \"clicks\"") && told.contains("the account of stream \"clicks\""), "{told}");
    let told = golden("one-stream", "", &["--stream", "clicks", "--account", "123456789012"], &[("AWS_REGION", "eu-west-1")]);
    assert!(!told.contains("not known"), "{told}");
}

#[test]
fn the_region_decides_the_partition() {
    let key = "arn:aws-cn:kms:cn-north-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    golden("china", "", &["--stream", "clicks", "--region", "cn-north-1", "--account", "123456789012", "--kms-key", key], &[]);
    let arn = "arn:aws-us-gov:kinesis:us-gov-west-1:123456789012:stream/clicks";
    golden("government", "", &["--stream", arn, "--kms-key", "alias/events"], &[]);
}

#[test]
fn every_role_gets_its_policy_and_a_trust_with_its_external_ids() {
    let told = golden("roles", ROLES, &["--account", "123456789012"], &[]);
    assert!(told.contains("--principal"), "{told}");
    let principal = ["--principal", "arn:aws:iam::123456789012:role/app"];
    let role = ["--role", "arn:aws:iam::111122223333:role/events", "--trust"];
    golden("trust", ROLES, &[&role[..], &principal[..]].concat(), &[]);
}

#[test]
fn a_role_that_no_stream_has_is_a_usage_error_and_no_stream_a_configuration_error() {
    let (code, stdout, stderr) = iam_policy(ROLES, &["--role", "arn:aws:iam::111122223333:role/evnts"], &[]);
    assert_eq!((code, stdout.as_str()), (Some(64), ""), "{stderr}");
    let (code, stdout, stderr) = iam_policy("", &[], &[]);
    assert_eq!((code, stdout.as_str()), (Some(78), ""), "{stderr}");
    let (code, stdout, _) = iam_policy("", &["--stream", "clicks", "--account", "12"], &[]);
    assert_eq!((code, stdout.as_str()), (Some(64), ""));
}
