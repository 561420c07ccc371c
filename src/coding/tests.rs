//! What holds of coded files: content comes back as it was written, whatever handles, cuts and crashes come between;
//! damage costs the block it is in and tells its extent; without the key nothing is read and nothing can be made.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use super::block::{CONTENT_BYTES_MAX, HEADER_BYTES, Header};
use super::head::HEAD_BYTES;
use super::*;
use crate::host::{Files as _, mix64};
use crate::spool::tests::fault_files::{FaultFiles, SimClock, sim_host};

const PATH: &str = "/spool/segments/0000000001.seg";

fn key(number: u8) -> EncryptionKey {
    EncryptionKey::new([number; keys::KEY_BYTES])
}

fn coding(compress: bool, keys: &[u8]) -> Coding {
    Coding { compress, keys: KeyRing::new(keys.iter().map(|number| key(*number)).collect()) }
}

fn over(files: &FaultFiles, coding: &Coding) -> Host {
    // Each host has random bytes of its own, as each process has.
    let seed = mix64(files.log().len() as u64);
    coding.host(&sim_host(files, &Arc::new(SimClock::new()), seed))
}

fn disk() -> FaultFiles {
    let files = FaultFiles::new();
    for dir in ["/spool", "/spool/segments", "/spool/dead"] {
        files.create_dir_all(Path::new(dir)).expect("a directory");
    }
    files
}

fn all_of(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; file.len().expect("a length") as usize];
    file.read_exact_at(&mut bytes, 0).expect("content");
    bytes
}

/// Text that compresses, or not, by its number.
fn content(number: u64, len: usize) -> Vec<u8> {
    if number.is_multiple_of(2) {
        format!("{{\"userId\":\"user-{number}\",\"event\":\"page viewed\"}}\n")
            .into_bytes()
            .into_iter()
            .cycle()
            .take(len)
            .collect()
    } else {
        (0..len as u64).map(|at| mix64(number ^ (at << 20)) as u8).collect()
    }
}

/// Files of some appends, and their content.
fn written(coding: &Coding, sizes: &[usize], finish: bool) -> (FaultFiles, Vec<u8>) {
    let files = disk();
    let file = over(&files, coding).files.create(Path::new(PATH)).expect("a file");
    let mut all = Vec::new();
    for (number, size) in sizes.iter().enumerate() {
        let part = content(number as u64, *size);
        file.append(&[&part]).expect("written");
        all.extend(part);
    }
    if finish {
        file.finish().expect("finished");
    }
    file.sync_data().expect("synced");
    (files, all)
}

fn codings() -> [Coding; 3] {
    [coding(true, &[]), coding(false, &[1]), coding(true, &[1])]
}

#[derive(Clone, Debug)]
enum Did {
    Append(u64, Vec<usize>),
    Cut(Index),
    Finish,
    Reopen,
    Read(Index, Index),
}

fn did() -> impl Strategy<Value = Did> {
    let size = prop_oneof![4 => 0..300usize, 1 => CONTENT_BYTES_MAX - 2..CONTENT_BYTES_MAX + 3, 1 => 0..3 * CONTENT_BYTES_MAX];
    prop_oneof![
        8 => (any::<u64>(), prop::collection::vec(size, 1..4)).prop_map(|(number, sizes)| Did::Append(number, sizes)),
        1 => any::<Index>().prop_map(Did::Cut),
        1 => Just(Did::Finish),
        1 => Just(Did::Reopen),
        4 => (any::<Index>(), any::<Index>()).prop_map(|(from, len)| Did::Read(from, len)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_coded_file_is_what_a_plain_one_would_be(which in 0..3usize, steps in prop::collection::vec(did(), 1..40)) {
        let coding = &codings()[which];
        let files = disk();
        let path = Path::new(PATH);
        let mut file = over(&files, coding).files.create(path).expect("a file");
        // Opened once there is something to open, and never again: it must find what came since.
        let mut reader: Option<Arc<dyn File>> = None;
        let mut stale = false;
        let mut model: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                Did::Append(number, sizes) => {
                    let parts: Vec<Vec<u8>> = sizes.iter().map(|size| content(number, *size)).collect();
                    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                    file.append(&parts).expect("written");
                    model.extend(parts.concat());
                    reader = reader.filter(|_| !stale);
                    stale = false;
                }
                Did::Cut(at) if !model.is_empty() => {
                    let len = at.index(model.len() + 1);
                    file.set_len(len as u64).expect("cut");
                    model.truncate(len);
                    // As in a spool: who reads a file that is cut opens it anew, now and once it goes on.
                    reader = None;
                    stale = true;
                }
                Did::Finish => {
                    file.finish().expect("finished");
                    // That nothing is appended behind it was the promise: what is, only new readers find.
                    stale = true;
                }
                Did::Reopen if !model.is_empty() => {
                    let before = all_of(file.as_ref());
                    file = over(&files, coding).files.open(path).expect("opened");
                    let len = file.len().expect("a length");
                    // A cut into a block is known to this handle only, until something follows it.
                    prop_assert!(len >= before.len() as u64);
                    file.set_len(before.len() as u64).expect("cut again");
                }
                Did::Read(from, len) if !model.is_empty() => {
                    let from = from.index(model.len());
                    let len = len.index(model.len() - from + 1);
                    let reader = reader.get_or_insert_with(|| over(&files, coding).files.open_read(path).expect("opened"));
                    for file in [&file, &*reader] {
                        let mut bytes = vec![0xee; len];
                        file.read_exact_at(&mut bytes, from as u64).expect("read");
                        prop_assert!(bytes == model[from..from + len], "content at {} for {}", from, len);
                    }
                }
                Did::Cut(_) | Did::Reopen | Did::Read(..) => {}
            }
            prop_assert_eq!(file.len().expect("a length"), model.len() as u64);
        }
        prop_assert!(all_of(file.as_ref()) == model);
        prop_assert!(file.flaws().expect("looked at").is_empty());
    }

    #[test]
    fn a_flipped_bit_costs_the_blocks_it_is_in_and_nothing_else(
        which in 0..3usize,
        sizes in prop::collection::vec(1..5000usize, 1..20),
        finish in any::<bool>(),
        at in any::<Index>(),
        bit in 0..8u8,
    ) {
        let coding = &codings()[which];
        let (files, model) = written(coding, &sizes, finish);
        let stored = files.contents(Path::new(PATH)).expect("bytes");
        let offset = at.index(stored.len());
        files.flip_bit(Path::new(PATH), offset as u64, bit);
        let file = over(&files, coding).files.open(Path::new(PATH)).expect("opened");
        let found = all_of(file.as_ref());
        // The block that the bit is in, if it is in one.
        let (mut at, mut hit) = (HEAD_BYTES, None);
        while let Some(header) = Header::find(&stored[at..]) {
            if (at..at + header.stored).contains(&offset) && header.start < model.len() as u64 {
                hit = Some(header);
            }
            at += header.stored;
        }
        let mut expected = model.clone();
        if let Some(header) = hit {
            expected[header.start as usize..header.end() as usize].fill(0);
            if header.end() == model.len() as u64 && !finish {
                // The last one: nothing tells that it was there.
                expected.truncate(header.start as usize);
            }
        }
        prop_assert!(found == expected, "bit {} of byte {} of {}", bit, offset, stored.len());
        let in_content = hit.is_some() && expected.len() == model.len();
        let in_head = offset < HEAD_BYTES;
        prop_assert_eq!(file.flaws().expect("looked at").len(), usize::from(in_content || in_head));
    }

    #[test]
    fn a_file_cut_anywhere_holds_what_was_appended_whole(
        which in 0..3usize,
        sizes in prop::collection::vec(1..5000usize, 1..20),
        cut in any::<Index>(),
    ) {
        let coding = &codings()[which];
        let (files, model) = written(coding, &sizes, false);
        let stored = files.contents(Path::new(PATH)).expect("bytes");
        let cut = cut.index(stored.len() + 1).max(HEAD_BYTES);
        sim_host(&files, &Arc::new(SimClock::new()), 0).files.open(Path::new(PATH)).and_then(|file| file.set_len(cut as u64)).expect("cut");
        let file = over(&files, coding).files.open(Path::new(PATH)).expect("opened");
        let (mut at, mut whole) = (HEAD_BYTES, 0);
        while let Some(header) = Header::find(&stored[at..]).filter(|header| at + header.stored <= cut) {
            (at, whole) = (at + header.stored, header.end() as usize);
        }
        prop_assert!(all_of(file.as_ref()) == model[..whole]);
        // And goes on there.
        file.append(&[b"behind"]).expect("written");
        let again = over(&files, coding).files.open(Path::new(PATH)).expect("opened");
        prop_assert!(all_of(again.as_ref()) == [&model[..whole], b"behind"].concat());
    }

    #[test]
    fn arbitrary_bytes_behind_a_good_header_end_in_content_or_none(
        which in 0..3usize,
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
    ) {
        let (files, _) = written(&codings()[which], &[100], false);
        let mut all = files.contents(Path::new(PATH)).expect("bytes")[..HEAD_BYTES].to_vec();
        all.extend(bytes);
        files.plant(Path::new(PATH), &all);
        let file = over(&files, &codings()[which]).files.open(Path::new(PATH)).expect("opened");
        let len = file.len().expect("a length");
        let mut some = [0; 64];
        prop_assert!(file.read_at(&mut some, 0).expect("read") as u64 <= len);
    }
}

#[test]
fn without_its_key_a_file_is_refused_and_both_keys_are_told() {
    let (files, model) = written(&coding(false, &[1]), &[100], true);
    let refused = |given: &[u8]| over(&files, &coding(false, given)).files.open(Path::new(PATH)).expect_err("no key");
    let none = refused(&[]).to_string();
    assert!(none.contains(&key(1).id().to_string()) && none.contains("names none"), "{none}");
    let other = refused(&[2, 3]);
    assert!(matches!(CodingError::of(&other), Some(CodingError::NoKey { wanted, .. }) if *wanted == key(1).id()));
    assert!(other.to_string().contains(&key(3).id().to_string()), "{other}");
    // Behind a new one, the old key still reads; compression may change as well.
    let file = over(&files, &coding(true, &[2, 1])).files.open(Path::new(PATH)).expect("opened");
    assert_eq!(all_of(file.as_ref()), model);
}

#[test]
fn nothing_of_the_content_lies_on_the_disk_and_no_two_files_or_blocks_look_alike() {
    let files = disk();
    let host = over(&files, &coding(false, &[1]));
    let secret = b"user-4711@example.com ordered a bicycle".repeat(20);
    let mut seen = std::collections::BTreeSet::new();
    for name in ["segments/0000000001.seg", "segments/0000000002.new", "dead/0000000001.letters"] {
        let path = Path::new("/spool").join(name);
        let file = host.files.create(&path).expect("a file");
        file.append(&[&secret]).expect("written");
        file.append(&[&secret]).expect("written");
        let stored = files.contents(&path).expect("bytes");
        for part in [&b"user-4711"[..], b"bicycle", b"example"] {
            assert!(!stored.windows(part.len()).any(|window| window == part), "{name}");
        }
        let mut at = HEAD_BYTES;
        while let Some(header) = Header::find(&stored[at..]) {
            assert!(seen.insert(stored[at + HEADER_BYTES..at + header.stored].to_vec()), "the same bytes twice");
            at += header.stored;
        }
    }
    assert_eq!(seen.len(), 6);
}

#[test]
fn a_block_that_was_changed_or_moved_by_one_without_the_key_is_damage() {
    let (files, model) = written(&coding(false, &[1]), &[1000, 1000, 1000], true);
    let stored = files.contents(Path::new(PATH)).expect("bytes");
    let first = Header::find(&stored[HEAD_BYTES..]).expect("a block");
    let second_at = HEAD_BYTES + first.stored;
    let reseal = |bytes: &mut [u8]| {
        let crc = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    };
    // The first block in the place of the second, with offsets and checksums made good.
    let mut moved = stored.clone();
    moved.copy_within(HEAD_BYTES..second_at, second_at);
    moved[second_at + 8..second_at + 16].copy_from_slice(&first.end().to_le_bytes());
    reseal(&mut moved[second_at..second_at + first.stored]);
    // One byte of the second changed, its checksum made good.
    let mut changed = stored.clone();
    changed[second_at + HEADER_BYTES + 7] ^= 1;
    reseal(&mut changed[second_at..second_at + first.stored]);
    for forged in [moved, changed] {
        files.plant(Path::new(PATH), &forged);
        let file = over(&files, &coding(false, &[1])).files.open(Path::new(PATH)).expect("opened");
        let found = all_of(file.as_ref());
        assert!(found[..1000] == model[..1000] && found[1000..2000] == [0; 1000] && found[2000..] == model[2000..]);
        assert_eq!(file.flaws().expect("looked at").len(), 1);
    }
}

#[test]
fn compression_never_makes_a_block_larger_and_a_table_is_read_instead_of_blocks() {
    let sizes = vec![CONTENT_BYTES_MAX; 40];
    let (files, model) = written(&coding(true, &[]), &sizes, true);
    let stored = files.contents(Path::new(PATH)).expect("bytes");
    assert!(stored.len() < model.len() / 2 + 40 * 100, "{} of {}", stored.len(), model.len());
    let before = files.log().len();
    let file = over(&files, &coding(true, &[])).files.open(Path::new(PATH)).expect("opened");
    let mut last = [0; 16];
    file.read_exact_at(&mut last, model.len() as u64 - 16).expect("read");
    assert_eq!(last, model[model.len() - 16..]);
    let read: u64 = files.log()[before..].iter().map(|record| record.bytes).sum();
    assert!(read < 300_000, "{read} bytes were read to find the last 16");
}

#[test]
fn other_files_of_the_spool_are_left_as_they_are() {
    let files = disk();
    let host = over(&files, &coding(true, &[1]));
    host.files.create(Path::new("/spool/format")).and_then(|file| file.append(&[b"forebay spool 2\n"])).expect("written");
    assert_eq!(files.contents(Path::new("/spool/format")).expect("bytes"), b"forebay spool 2\n");
    // A plain file that was there before is read as it is.
    files.plant(Path::new(PATH), b"plain");
    assert_eq!(all_of(host.files.open(Path::new(PATH)).expect("opened").as_ref()), b"plain");
}

#[test]
fn one_bad_copy_of_the_header_is_told_and_two_make_it_a_plain_file() {
    let (files, model) = written(&coding(true, &[1]), &[500], true);
    files.flip_bit(Path::new(PATH), 3, 0);
    let open = || over(&files, &coding(true, &[1])).files.open(Path::new(PATH)).expect("opened");
    assert_eq!(all_of(open().as_ref()), model);
    assert_eq!(open().flaws().expect("looked at").len(), 1);
    files.flip_bit(Path::new(PATH), 64 + 30, 0);
    assert_eq!(open().coding(), None);
}
