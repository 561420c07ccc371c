//! What `check` finds on this machine: where the spool lies, how long a sync takes, how much room there is; and whether the
//! TLS listener's certificate can be used.
//!
//! A receipt is worth what the disk under it is worth. Memory and a container's own layer forget; a disk that answers a
//! sync faster than any disk can has not synced; one that takes long makes each receipt late. Only the directory of the
//! spools is touched, with one probe file, which is removed.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::Finding;
use crate::config::{Listen, SpoolConfig, SyncClass, show_bytes};
use crate::host::{Host, Space};
use crate::ingest::http::tls::Pair;

/// Syncs that are measured, if the disk is not too slow for so many.
const SYNCS: usize = 15;

/// The longest that measuring goes on.
const MEASURE_TIME: Duration = Duration::from_secs(3);

/// Bytes before each sync.
const PROBE_BYTES: usize = 4096;

/// Slower than this a sync makes receipts late.
const SYNC_SLOW: Duration = Duration::from_millis(50);

/// Faster than this no medium is that keeps its data without power: the quickest take some 25 µs.
const SYNC_TOO_FAST: Duration = Duration::from_micros(15);

/// The TLS listener's pair, where there is such a listener.
pub(super) fn certificate(listen: &Listen) -> Option<Finding> {
    let (Some(_), Some(certificate), Some(key)) = (listen.https, &listen.tls_certificate, &listen.tls_key) else { return None };
    Some(match Pair::read(certificate, key) {
        Ok(_) => Finding::ok("tls", format!("{} and its key can be used", certificate.display())),
        Err(error) => Finding::failure("tls", error.to_string()),
    })
}

/// All checks of the machine.
pub(super) fn check(config: &SpoolConfig, streams: usize, host: &Host) -> Vec<Finding> {
    let Some(place) = existing(&config.dir, host) else {
        return vec![Finding::unknown("spool", format!("nothing of {} exists", config.dir.display()))];
    };
    let mut findings = vec![match file_system(place) {
        Ok(kind) => judge_place(&config.dir, place, kind),
        Err(error) => Finding::unknown("spool", format!("{} could not be looked at: {error}", place.display())),
    }];
    if !config.encryption_keys.is_empty() {
        findings.push(match config.read_keys() {
            Ok(_) => Finding::ok("keys", "the keys of encryption at rest can be read"),
            Err(error) => Finding::failure("keys", error.to_string()),
        });
    }
    findings.push(match host.files.space(place) {
        Ok(space) => judge_room(config, streams, space),
        Err(error) => Finding::unknown("room", format!("free space of {} is not known: {error}", place.display())),
    });
    if place == config.dir {
        findings.push(match measure_syncs(place, host) {
            Ok(took) => judge_sync(config.sync, took),
            Err(error) => Finding::unknown(
                "sync",
                format!("no sync could be measured in {}: {error}; run this as the user of the agent", place.display()),
            ),
        });
    }
    findings
}

/// The nearest directory that exists, from `dir` upwards.
fn existing<'a>(dir: &'a Path, host: &Host) -> Option<&'a Path> {
    dir.ancestors().find(|place| host.files.space(place).is_ok())
}

/// A file system, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystem {
    /// Forgets with the power.
    Memory(&'static str),
    /// A container's writable layer: forgets with the container.
    Layer,
    /// On another machine.
    Network(&'static str),
    /// On a disk, or not known to us.
    Disk(&'static str),
}

/// Magic numbers of statfs(2).
fn file_system(place: &Path) -> io::Result<FileSystem> {
    Ok(of_magic(rustix::fs::statfs(place)?.f_type as u32))
}

const fn of_magic(magic: u32) -> FileSystem {
    match magic {
        0x0102_1994 => FileSystem::Memory("tmpfs"),
        0x8584_58f6 => FileSystem::Memory("ramfs"),
        0x794c_7630 => FileSystem::Layer,
        0x0000_6969 => FileSystem::Network("nfs"),
        0xff53_4d42 | 0xfe53_4d42 => FileSystem::Network("smb"),
        0x0102_1997 => FileSystem::Network("9p"),
        0x6573_5546 => FileSystem::Network("fuse"),
        0x0000_ef53 => FileSystem::Disk("ext4"),
        0x5846_5342 => FileSystem::Disk("xfs"),
        0x9123_683e => FileSystem::Disk("btrfs"),
        0x2fc1_2fc1 => FileSystem::Disk("zfs"),
        0xf2f5_2010 => FileSystem::Disk("f2fs"),
        _ => FileSystem::Disk("a file system of its own kind"),
    }
}

fn judge_place(dir: &Path, place: &Path, kind: FileSystem) -> Finding {
    let (shown, yet) = (dir.display(), if dir == place { "" } else { ", which does not exist yet" });
    match kind {
        FileSystem::Memory(name) => Finding::warning(
            "spool",
            format!("{shown}{yet} is on {name}, which is memory: a restart of the machine loses what has a receipt"),
        ),
        FileSystem::Layer => Finding::warning(
            "spool",
            format!("{shown}{yet} is on overlayfs, a container's own layer, which goes with the container: mount a volume there"),
        ),
        FileSystem::Network(name) => Finding::warning(
            "spool",
            format!("{shown}{yet} is on {name}, not a local disk: what its sync promises is up to another machine"),
        ),
        FileSystem::Disk(name) => Finding::ok("spool", format!("{shown}{yet}, on {name}")),
    }
}

fn judge_room(config: &SpoolConfig, streams: usize, space: Space) -> Finding {
    let (free, most) = (show_round(space.free), config.max_bytes.saturating_mul(streams as u64));
    let wanted = show_bytes(most);
    if space.total > 0 && space.total < most {
        let total = show_round(space.total);
        return Finding::warning(
            "room",
            format!(
                "{free} free of {total}, but the spools may grow to {wanted} (max_bytes of {streams}): the disk is the limit"
            ),
        );
    }
    if config.reserve.is_some_and(|reserve| space.free < reserve) {
        return Finding::failure("room", format!("{free} free, less than spool.reserve: no event is taken until there is more"));
    }
    Finding::ok("room", format!("{free} free; the spools may grow to {wanted}"))
}

/// A size as people say it, to three digits.
fn show_round(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1_u64 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// How long each of some syncs took.
fn measure_syncs(dir: &Path, host: &Host) -> io::Result<Vec<Duration>> {
    let path = dir.join(format!("check-{}.probe", std::process::id()));
    let file = host.files.create(&path)?;
    let begun = host.clock.monotonic();
    let mut took = Vec::new();
    let measured = loop {
        let before = host.clock.monotonic();
        if took.len() == SYNCS || (!took.is_empty() && before.saturating_sub(begun) > MEASURE_TIME) {
            break Ok(took);
        }
        if let Err(error) = file.append(&[&[0; PROBE_BYTES]]).and_then(|()| file.sync_data()) {
            break Err(error);
        }
        took.push(host.clock.monotonic().saturating_sub(before));
    };
    host.files.remove(&path)?;
    measured
}

fn judge_sync(class: SyncClass, mut took: Vec<Duration>) -> Finding {
    took.sort_unstable();
    let median = took[took.len() / 2];
    let shown = format!("a sync of {PROBE_BYTES} bytes takes {median:.1?} (median of {})", took.len());
    if median > SYNC_SLOW {
        let effect = match class {
            SyncClass::Always => "each receipt waits so long, and events come in large groups",
            _ => "receipts do not wait for it, but what a power cut can cost grows",
        };
        return Finding::warning("sync", format!("{shown}, over {SYNC_SLOW:?}: {effect}; use a faster disk"));
    }
    if median < SYNC_TOO_FAST {
        return Finding::warning(
            "sync",
            format!(
                "{shown}, faster than any disk: something on the way only says that it synced, and a power cut may lose events"
            ),
        );
    }
    Finding::ok("sync", shown)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn config(dir: &Path) -> SpoolConfig {
        let read = crate::config::load(
            &NoEnvironment,
            &crate::config::Request { file: None, flags: Vec::new(), dev: false, purpose: crate::config::Purpose::Client },
        );
        SpoolConfig { dir: dir.to_path_buf(), ..read.unwrap().config.spool }
    }

    struct NoEnvironment;

    impl crate::config::Environment for NoEnvironment {
        fn var(&self, _: &str) -> Result<String, std::env::VarError> {
            Err(std::env::VarError::NotPresent)
        }
        fn names(&self, _: &str) -> Vec<String> {
            Vec::new()
        }
        fn read(&self, _: &Path) -> io::Result<String> {
            Err(io::ErrorKind::NotFound.into())
        }
        fn is_writable_dir(&self, _: &Path) -> bool {
            false
        }
        fn exists(&self, _: &Path) -> bool {
            false
        }
    }

    #[test]
    fn memory_a_containers_layer_and_other_machines_are_no_place_for_a_spool() {
        let judged = |magic| judge_place(Path::new("/x"), Path::new("/x"), of_magic(magic));
        for (magic, word) in [(0x0102_1994, "tmpfs"), (0x794c_7630, "overlayfs"), (0x6969, "nfs")] {
            let finding = judged(magic);
            assert_eq!(finding.outcome, Outcome::Warning);
            assert!(finding.text.contains(word), "{}", finding.text);
        }
        assert_eq!(judged(0xef53), Finding::ok("spool", "/x, on ext4"));
        assert_eq!(judged(1).outcome, Outcome::Ok);
    }

    #[test]
    fn a_sync_is_judged_by_its_median() {
        let judged = |micros: [u64; 3]| judge_sync(SyncClass::Always, micros.map(Duration::from_micros).to_vec());
        assert_eq!(judged([200, 300, 90_000]).outcome, Outcome::Ok);
        assert_eq!(judged([60_000, 200, 90_000]).outcome, Outcome::Warning);
        assert_eq!(judged([1, 2, 90_000]).outcome, Outcome::Warning);
        assert!(judged([1, 2, 3]).text.contains("faster than any disk"));
    }

    #[test]
    fn the_room_is_what_the_disk_has_against_what_the_spools_may_take() {
        let config = config(Path::new("/x"));
        let judged = |free, total| judge_room(&config, 2, Space { free, total }).outcome;
        assert_eq!(judged(30 << 30, 100 << 30), Outcome::Ok);
        assert_eq!(judged(5 << 30, 15 << 30), Outcome::Warning);
        assert_eq!(judged(30 << 30, 0), Outcome::Ok);
        let reserved = SpoolConfig { reserve: Some(1 << 30), ..config.clone() };
        assert_eq!(judge_room(&reserved, 1, Space { free: 1 << 20, total: 100 << 30 }).outcome, Outcome::Failure);
    }

    #[test]
    fn keys_that_cannot_be_read_are_told_before_the_agent_needs_them() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let keyed = SpoolConfig { encryption_keys: vec![crate::coding::KeySource::File(key.clone())], ..config(dir.path()) };
        let judged = || check(&keyed, 1, &Host::real()).into_iter().find(|finding| finding.about == "keys").unwrap();
        assert_eq!(judged().outcome, Outcome::Failure);
        assert!(judged().text.contains(key.to_str().unwrap()), "{}", judged().text);
        #[expect(clippy::disallowed_methods, reason = "a key file of the test")]
        std::fs::write(&key, [7; 32]).unwrap();
        assert_eq!(judged().outcome, Outcome::Ok);
    }

    #[test]
    fn a_certificate_that_cannot_be_used_is_told_before_the_agent_needs_it() {
        let listen = |https: Option<&str>| Listen {
            socket: None,
            allowed_uids: Vec::new(),
            http: None,
            https: https.map(|address| address.parse().unwrap()),
            tls_certificate: Some("/no/such/cert.pem".into()),
            tls_key: Some("/no/such/key.pem".into()),
            http_socket: None,
            admin: None,
            metrics: None,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
        };
        let finding = certificate(&listen(Some("127.0.0.1:0"))).unwrap();
        assert_eq!(finding.outcome, Outcome::Failure);
        assert!(finding.text.contains("listen.tls_certificate = \"/no/such/cert.pem\": cannot be read"), "{}", finding.text);
        assert!(certificate(&listen(None)).is_none());
    }

    #[test]
    fn a_directory_that_is_there_is_measured_and_left_as_it_was_and_one_that_is_not_is_looked_for_above() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::real();
        let words = |findings: Vec<Finding>| findings.iter().map(|finding| finding.about).collect::<Vec<_>>();
        assert_eq!(words(check(&config(dir.path()), 1, &host)), ["spool", "room", "sync"]);
        assert_eq!(host.files.list(dir.path()).unwrap(), Vec::<String>::new());
        let findings = check(&config(&dir.path().join("a/b")), 1, &host);
        assert!(findings[0].text.contains("a/b, which does not exist yet"), "{findings:?}");
        assert_eq!(words(findings), ["spool", "room"]);
    }
}
