//! The units, package metadata and scripts agree with the binary and with each other.
//!
//! Place: what a test can see without installing anything; `tests/packaging/run.sh` installs it.

#![allow(clippy::disallowed_methods, reason = "they read the repository's own files")]

use std::collections::BTreeSet;
use std::env::VarError;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::CommandFactory as _;
use forebay::cli::Cli;
use forebay::config::{DEFAULT_FILE, Environment, Purpose, Request, load};

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

const UNITS: [&str; 4] = ["forebay.service", "forebay.socket", "forebay@.service", "forebay@.socket"];

/// Values of a unit's setting, in order.
fn settings(unit: &str, name: &str) -> Vec<String> {
    let text = file(&format!("packaging/systemd/{unit}"));
    let begin = format!("{name}=");
    text.lines().filter_map(|line| line.strip_prefix(&begin)).map(str::to_owned).collect()
}

/// The only file that there is, and no variable.
struct Only(&'static str);

impl Environment for Only {
    fn var(&self, _: &str) -> Result<String, VarError> {
        Err(VarError::NotPresent)
    }

    fn names(&self, _: &str) -> Vec<String> {
        Vec::new()
    }

    fn exists(&self, _: &Path) -> bool {
        false
    }

    fn is_writable_dir(&self, _: &Path) -> bool {
        true
    }

    fn read(&self, path: &Path) -> std::io::Result<String> {
        if path == Path::new(DEFAULT_FILE) { Ok(file(self.0)) } else { Err(std::io::ErrorKind::NotFound.into()) }
    }
}

#[test]
fn every_command_and_flag_of_the_units_is_one_of_the_binarys() {
    let mut seen = 0;
    for unit in UNITS {
        for name in ["ExecStartPre", "ExecStart", "ExecReload"] {
            for line in settings(unit, name) {
                let Some(words) = line.strip_prefix("/usr/bin/forebay ") else { continue };
                let args = std::iter::once("forebay").chain(words.split_whitespace());
                Cli::command().try_get_matches_from(args).unwrap_or_else(|error| panic!("{unit}: {line}: {error}"));
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 6);
}

#[test]
fn every_file_that_a_package_names_is_there_and_each_package_has_every_unit() {
    let cargo: toml::Table = toml::from_str(&file("Cargo.toml")).unwrap();
    let metadata = &cargo["package"]["metadata"];
    let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
    let deb: Vec<String> = metadata["deb"]["assets"].as_array().unwrap().iter().map(|asset| text(&asset[0])).collect();
    let rpm: Vec<String> =
        metadata["generate-rpm"]["assets"].as_array().unwrap().iter().map(|asset| text(&asset["source"])).collect();
    for assets in [&deb, &rpm] {
        for path in assets.iter().filter(|path| !path.starts_with("target/")) {
            let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
            let end = name.trim_start_matches('*');
            let found = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap();
            let found = found.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(end)).count();
            assert!(found > 0, "{path} is not there");
        }
        assert!(
            assets.contains(&"packaging/systemd/*.service".to_owned())
                && assets.contains(&"packaging/systemd/*.socket".to_owned())
        );
    }
    // The two packages bring the same, but for what is each one's own.
    let own = |path: &&String| path.starts_with("packaging/deb/lintian") || *path == "LICENSE";
    let [deb, rpm] = [&deb, &rpm].map(|assets| assets.iter().filter(|path| !own(path)).collect::<BTreeSet<_>>());
    assert_eq!(deb, rpm);
}

#[test]
fn the_socket_unit_holds_the_listeners_that_the_installed_configuration_has() {
    let request = Request { file: None, flags: Vec::new(), dev: false, purpose: Purpose::Agent };
    let loaded = load(&Only("packaging/deb/forebay.toml"), &request).expect("the installed configuration is good as it is");
    let listen = loaded.config.listen;
    let expected = [listen.socket.unwrap().display().to_string(), listen.http.unwrap().to_string()];
    assert_eq!(settings("forebay.socket", "ListenStream"), expected);
    assert_eq!(loaded.config.spool.dir, Path::new("/var/lib/forebay"));
    assert_eq!(loaded.config.drain_timeout, Duration::from_secs(10));
    assert_eq!(settings("forebay.service", "TimeoutStopSec"), ["75"], "above drain_timeout with what else an end takes");
}

#[test]
fn the_template_differs_from_the_plain_unit_only_in_its_places() {
    let own =
        ["Description", "Environment=", "StateDirectory=", "RuntimeDirectory=", "EnvironmentFile=", "LoadCredential=", "Also="];
    let kept = |unit: &str| {
        let text = file(&format!("packaging/systemd/{unit}"));
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.filter(|line| !own.iter().any(|own| line.starts_with(own))).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(kept("forebay.service"), kept("forebay@.service"));
}

#[test]
fn the_changelog_of_the_package_has_the_version() {
    let version = format!("forebay ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(file("packaging/deb/changelog").starts_with(&version), "packaging/deb/changelog does not begin with {version}");
}
