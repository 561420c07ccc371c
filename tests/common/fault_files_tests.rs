//! What the simulated disk of `fault_files.rs` does at a crash, at each fault, and twice with one seed.

use super::disk::SECTOR;
use super::*;

fn path(name: &str) -> PathBuf {
    PathBuf::from("/d").join(name)
}

fn disk() -> FaultFiles {
    let files = FaultFiles::new();
    files.create_dir_all(Path::new("/d")).unwrap();
    files
}

fn durable_file(files: &FaultFiles, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = files.create(&path(name)).unwrap();
    file.append(&[bytes]).unwrap();
    file.sync_data().unwrap();
    files.sync_dir(Path::new("/d")).unwrap();
    file
}

#[test]
fn data_synced_under_an_unsynced_entry_may_vanish() {
    let files = disk();
    let file = files.create(&path("a")).unwrap();
    file.append(&[b"x"]).unwrap();
    file.sync_data().unwrap();
    assert!(files.crash(0).contents(&path("a")).is_none());
}

#[test]
fn an_entry_synced_over_unsynced_data_may_be_empty() {
    let files = disk();
    let file = files.create(&path("a")).unwrap();
    file.append(&[b"x"]).unwrap();
    files.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(files.crash(0).contents(&path("a")).unwrap(), b"");
}

#[test]
fn what_was_synced_survives_every_seed() {
    for seed in 0..500 {
        let files = disk();
        let file = durable_file(&files, "a", &[7; 2000]);
        file.append(&[&[8; 3000]]).unwrap();
        let after = files.crash(seed).contents(&path("a")).unwrap();
        assert_eq!(after[..2000], [7; 2000]);
        assert!(after[2000..].iter().all(|byte| *byte == 8 || *byte == 0));
    }
}

#[test]
fn a_pending_append_survives_wholly_torn_as_a_hole_and_not_at_all() {
    let (mut whole, mut lost, mut hole, mut torn) = (0, 0, 0, 0);
    for seed in 0..400 {
        let files = disk();
        let file = durable_file(&files, "a", b"");
        file.append(&[&[1; 1024]]).unwrap();
        file.append(&[&[2; 1024]]).unwrap();
        let after = files.crash(seed).contents(&path("a")).unwrap();
        let ones = after.iter().filter(|byte| **byte == 1).count();
        let twos = after.iter().filter(|byte| **byte == 2).count();
        assert!(ones % SECTOR == 0 && twos % SECTOR == 0, "torn inside a sector");
        whole += u32::from(ones == 1024 && twos == 1024);
        lost += u32::from(after.is_empty());
        hole += u32::from(ones == 0 && twos == 1024);
        torn += u32::from(ones == 512 || twos == 512);
    }
    for (name, count) in [("whole", whole), ("lost", lost), ("hole", hole), ("torn", torn)] {
        assert!(count > 10, "{name} came up {count} times in 400 seeds");
    }
}

#[test]
fn a_cut_that_was_not_synced_may_be_undone() {
    let files = disk();
    let file = durable_file(&files, "a", &[7; 100]);
    file.set_len(10).unwrap();
    assert_eq!(file.len().unwrap(), 10);
    assert_eq!(files.crash(0).contents(&path("a")).unwrap().len(), 100);
}

#[test]
fn a_removal_and_a_rename_may_be_undone_until_their_directory_is_synced() {
    let files = disk();
    durable_file(&files, "a", b"a");
    durable_file(&files, "b", b"b");
    files.remove(&path("a")).unwrap();
    files.rename(&path("b"), &path("c")).unwrap();
    assert_eq!(files.list(Path::new("/d")).unwrap(), ["c"]);
    let synced = files.kill();
    assert_eq!(files.crash(0).list(Path::new("/d")).unwrap(), ["a", "b"]);
    synced.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(synced.crash(0).list(Path::new("/d")).unwrap(), ["c"]);
}

#[test]
fn a_rename_survives_as_one_step() {
    for seed in 0..100 {
        let files = disk();
        durable_file(&files, "new", b"new");
        durable_file(&files, "old", b"old");
        files.rename(&path("new"), &path("old")).unwrap();
        let after = files.crash(seed);
        match after.list(Path::new("/d")).unwrap().len() {
            1 => assert_eq!(after.contents(&path("old")).unwrap(), b"new"),
            2 => assert_eq!(after.contents(&path("old")).unwrap(), b"old"),
            n => panic!("{n} entries"),
        }
    }
}

#[test]
fn one_seed_twice_gives_one_disk() {
    let run = |seed| {
        let files = disk();
        for name in ["a", "b", "c"] {
            let file = files.create(&path(name)).unwrap();
            file.append(&[&[3; 5000]]).unwrap();
        }
        let after = files.crash(seed);
        after.paths().iter().map(|path| (path.clone(), after.contents(path))).collect::<Vec<_>>()
    };
    for seed in 0..50 {
        assert_eq!(run(seed), run(seed));
    }
}

#[test]
fn a_failed_sync_that_forgets_leaves_zeroes_though_reads_looked_well() {
    let files = disk();
    let file = durable_file(&files, "a", b"good");
    file.append(&[b"lost"]).unwrap();
    files.fail(Fault::new(Op::SyncData, 1, EIO).pending(Pending::Forget));
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(files.contents(&path("a")).unwrap(), b"goodlost");
    file.sync_data().unwrap();
    assert_eq!(files.crash(1).contents(&path("a")).unwrap(), b"good\0\0\0\0");
}

#[test]
fn a_failed_sync_that_drops_shows_at_once_and_one_that_keeps_can_be_made_good() {
    let files = disk();
    let file = durable_file(&files, "a", b"good");
    file.append(&[b"lost"]).unwrap();
    files.fail(Fault::new(Op::SyncData, 1, EIO));
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    file.append(&[b"more"]).unwrap();
    files.fail(Fault::new(Op::SyncData, 1, EIO).pending(Pending::Drop));
    file.sync_data().unwrap_err();
    assert_eq!(files.contents(&path("a")).unwrap(), b"goodlost\0\0\0\0");
}

#[test]
fn faults_fire_at_their_count_on_their_path_and_then_are_spent() {
    let files = disk();
    let a = durable_file(&files, "a", b"");
    let b = durable_file(&files, "b", b"");
    files.fail(Fault::new(Op::Write, 2, EIO).on("/d/a").partial(3));
    b.append(&[b"12345"]).unwrap();
    b.append(&[b"12345"]).unwrap();
    a.append(&[b"12345"]).unwrap();
    assert_eq!(a.append(&[b"67890"]).unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(files.contents(&path("a")).unwrap(), b"12345678");
    a.append(&[b"!"]).unwrap();
    files.fail(Fault::new(Op::Open, 1, EMFILE).for_ever());
    files.open(&path("a")).unwrap_err();
    files.open(&path("a")).unwrap_err();
    files.heal();
    files.open(&path("a")).unwrap();
}

#[test]
fn a_full_disk_takes_a_part_of_the_write() {
    let files = disk();
    let file = durable_file(&files, "a", b"12345678");
    files.set_capacity(Some(10));
    assert_eq!(file.append(&[b"abc", b"def"]).unwrap_err().raw_os_error(), Some(ENOSPC));
    assert_eq!(files.contents(&path("a")).unwrap(), b"12345678ab");
    assert_eq!(files.used(), 10);
}

#[test]
fn short_reads_give_at_least_a_byte_and_read_exact_still_works() {
    let files = disk();
    let file = durable_file(&files, "a", &(0..=255).collect::<Vec<u8>>());
    files.set_short_reads(Some(9));
    let mut buf = [0; 256];
    let n = file.read_at(&mut buf, 0).unwrap();
    assert!((1..=256).contains(&n));
    file.read_exact_at(&mut buf, 0).unwrap();
    assert!(buf.iter().enumerate().all(|(at, byte)| at == usize::from(*byte)));
    assert_eq!(file.read_at(&mut buf, 256).unwrap(), 0);
}

#[test]
fn a_flipped_bit_outlives_a_crash() {
    let files = disk();
    durable_file(&files, "a", b"\0\0");
    assert!(files.flip_bit(&path("a"), 1, 3));
    assert!(!files.flip_bit(&path("a"), 2, 0));
    assert_eq!(files.crash(0).contents(&path("a")).unwrap(), [0, 8]);
}

#[test]
fn from_the_stop_on_everything_fails_and_nothing_changes() {
    let files = disk();
    let file = durable_file(&files, "a", b"1");
    files.stop_at(files.ops() + 1);
    file.append(&[b"2"]).unwrap();
    assert!(is_death(&file.append(&[b"3"]).unwrap_err()));
    assert!(is_death(&file.sync_data().unwrap_err()));
    assert!(is_death(&files.open(&path("a")).unwrap_err()));
    assert!(files.has_died());
    assert_eq!(files.crash(1).contents(&path("a")).unwrap(), b"12");
    assert_eq!(files.crash(0).contents(&path("a")).unwrap(), b"1");
}

#[test]
fn a_kill_loses_nothing_and_a_power_cut_after_it_loses_what_was_pending() {
    let files = disk();
    let file = durable_file(&files, "a", b"1");
    file.append(&[b"2"]).unwrap();
    let after = files.kill();
    assert!(is_death(&file.append(&[b"3"]).unwrap_err()));
    assert_eq!(after.contents(&path("a")).unwrap(), b"12");
    assert_eq!(after.crash(0).contents(&path("a")).unwrap(), b"1");
}

#[test]
fn the_clocks_and_the_entropy_repeat() {
    let clock = SimClock::new();
    clock.advance(Duration::from_millis(1500));
    clock.jump_wall_ms(-500);
    assert_eq!(clock.monotonic(), Duration::from_millis(1500));
    assert_eq!(clock.wall_ms(), 1_767_225_601_000);
    let draw = |seed| {
        (0..4)
            .map({
                let e = SeededEntropy::new(seed);
                move |_| e.next_u64()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}
