//! What the store of dead letters keeps through removals, faults, crashes and flipped bits.

use proptest::prelude::*;

use super::desk::{DeadLetters, Selection};
use super::*;
use crate::event::KeyHash;
use crate::host::mix64;
use crate::spool::tests::fault_files::{EIO, Fault, FaultFiles, Op, Pending, SimClock, sim_host};

const DIR: &str = "/spool/dead";

fn host_of(files: &FaultFiles) -> Host {
    sim_host(files, &Arc::new(SimClock::new()), 1)
}

fn open(files: &FaultFiles) -> DeadStore {
    let host = host_of(files);
    host.files.create_dir_all(Path::new(DIR)).expect("a directory");
    DeadStore::open(&host, Path::new(DIR), 1 << 30).expect("opens")
}

fn letter(n: u64, data_bytes: usize) -> Letter {
    let key = format!("user-{}", n % 5);
    Letter {
        number: 0,
        position: Position(n),
        hash: KeyHash::of_key(&key),
        key,
        explicit: n.is_multiple_of(3),
        data: (0..data_bytes).map(|at| (mix64(n) >> (at % 8)) as u8).collect(),
        received_ms: 1_000 + n,
        died_ms: 2_000 + n,
        reason: if n.is_multiple_of(4) { Reason::Damaged } else { Reason::Expired },
        attempts: n as u32,
        detail: format!("letter {n}"),
    }
}

fn remove(store: &mut DeadStore, mut removals: &[(u64, Removal)]) -> io::Result<()> {
    while !removals.is_empty() {
        removals = &removals[store.remove_some(removals)?..];
    }
    Ok(())
}

fn held(store: &DeadStore) -> BTreeMap<u64, Letter> {
    let mut found = BTreeMap::new();
    let visited = store.visit(0, &mut |letter, removal| {
        if removal.is_none() {
            assert!(found.insert(letter.number, letter).is_none(), "a number given twice");
        }
        ControlFlow::Continue(())
    });
    visited.expect("a good disk");
    found
}

#[test]
fn the_bytes_of_a_file_of_letters_and_of_removals_are_those_of_version_1() {
    let mut bytes = FileHeader { id: 7, first: 300, created_ms: 0x0102_0304 }.encode().to_vec();
    let golden = Letter {
        number: 300,
        position: Position(0x1122_3344),
        key: "käy".into(),
        hash: KeyHash(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        explicit: true,
        data: b"\x00\xffdata".to_vec(),
        received_ms: 0x55,
        died_ms: 0x66,
        reason: Reason::Expired,
        attempts: 9,
        detail: "why".into(),
    };
    golden.encode(&mut bytes);
    bytes.extend(encode_gone([(300, Removal::Retried(Position(0x77))), (301, Removal::Purged)], 0x88));
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN, "FORMAT: a new version of the format, or a mistake");
}

/// Written by version 1.
const GOLDEN: &str = concat!(
    "464259444541444c01000000070000002c0100000000000004030201000000000000000000000000000000000d6cf365",
    "4642444c33105b2b550000000101040003000000090000002c010000000000004433221100000000100f0e0d0c0b0a090807060504030201",
    "55000000000000006600000000000000",
    "6bc3a47977687900ff64617461",
    "46425944474f4e450100000000000000",
    "b8e92afd010000002c0100000000000077000000000000008800000000000000",
    "d4c04e5c020000002d0100000000000000000000000000008800000000000000",
);

proptest! {
    #[test]
    fn a_letter_is_read_as_it_was_written_and_a_flipped_bit_costs_it_alone(
        n in 0..1000u64, len in 0..300usize, at: prop::sample::Index, bit in 0..8u8,
    ) {
        let mut bytes = vec![0; FILE_HEADER_BYTES];
        let letters = [letter(n, 40), letter(n + 1, len), letter(n + 2, 3)];
        let mut ends = Vec::new();
        for letter in &letters {
            letter.encode(&mut bytes);
            ends.push(bytes.len());
        }
        let all: Vec<Letter> = Letters::of(&bytes).collect();
        prop_assert_eq!(&all[..], &letters[..]);
        let hit = ends[0] + at.index(ends[1] - ends[0]);
        bytes[hit] ^= 1 << bit;
        let mut walk = Letters::of(&bytes);
        let left: Vec<Letter> = walk.by_ref().collect();
        prop_assert_eq!(left, vec![letters[0].clone(), letters[2].clone()]);
        prop_assert_eq!((walk.damaged, walk.good_end), (1, bytes.len()));
    }

    #[test]
    fn arbitrary_bytes_are_no_letters_and_never_a_panic(bytes: Vec<u8>) {
        prop_assert_eq!(Letters::of(&bytes).count(), 0);
        prop_assert_eq!(decode_gone(&bytes), []);
        prop_assert_eq!(FileHeader::decode(&bytes), HeaderFound::Damaged);
    }
}

#[test]
fn letters_removals_and_numbers_survive_reopening_and_files_without_letters_go() {
    let files = FaultFiles::new();
    let mut store = open(&files);
    // More than two files.
    for batch in 0..20 {
        let mut letters: Vec<Letter> = (0..10).map(|n| letter(batch * 10 + n, 100_000)).collect();
        store.append(&mut letters).expect("a good disk");
        assert_eq!(letters[0].number, batch * 10 + 1);
    }
    assert!(store.files.len() > 2, "{}", store.files.len());
    let firsts: Vec<u64> = store.files.values().map(|info| info.first).collect();
    let removals: Vec<(u64, Removal)> = (1..firsts[1]).map(|number| (number, Removal::Purged)).collect();
    remove(&mut store, &removals).expect("a good disk");
    assert_eq!(store.held(), 200 - removals.len() as u64);
    store.tidy(firsts[1] - 1).expect("a good disk");
    assert_eq!(store.files.len(), firsts.len(), "the marks have not passed its last event");
    store.tidy(firsts[1]).expect("a good disk");
    assert_eq!(store.files.len(), firsts.len() - 1);
    let before = held(&store);
    let mut store = open(&files.kill());
    assert_eq!((held(&store), store.next(), store.settled), (before, 201, firsts[1]));

    // All of the rest: numbers go on in a new file all the same.
    remove(&mut store, &(1..=200).map(|number| (number, Removal::Purged)).collect::<Vec<_>>()).expect("a good disk");
    store.tidy(201).expect("a good disk");
    assert_eq!((store.held(), store.files.len()), (0, 1));
    let files = files.kill();
    let mut store = open(&files);
    let mut one = [letter(1, 1)];
    store.append(&mut one).expect("a good disk");
    assert_eq!(one[0].number, 201);
    let gone = files.paths().iter().filter(|path| path.extension().is_some_and(|end| end == "gone")).count();
    assert_eq!(gone, 0, "no note of removals outlives its letters");
}

#[test]
fn a_torn_tail_is_cut_and_numbers_go_on_where_it_began() {
    let files = FaultFiles::new();
    let mut store = open(&files);
    store.append(&mut [letter(1, 10), letter(2, 10)]).expect("a good disk");
    let path = Path::new(DIR).join(letters_name(1));
    let whole = files.contents(&path).expect("it is there");
    for cut in 1..letter(2, 10).len() {
        let files = files.kill();
        files.plant(&path, &whole[..whole.len() - cut]);
        let mut store = open(&files);
        assert_eq!((held(&store).len(), store.next()), (1, 2), "{cut} bytes short");
        let mut third = [letter(3, 10)];
        store.append(&mut third).expect("a good disk");
        assert_eq!(held(&open(&files.kill())).into_values().map(|letter| letter.position.0).collect::<Vec<_>>(), [1, 3]);
    }
}

#[test]
fn after_a_failed_sync_the_same_letters_go_to_a_new_file_and_the_old_end_is_superseded() {
    for pending in [Pending::Keep, Pending::Forget, Pending::Drop] {
        let files = FaultFiles::new();
        let mut store = open(&files);
        store.append(&mut [letter(1, 10)]).expect("a good disk");
        files.fail(Fault::new(Op::SyncData, 1, EIO).pending(pending));
        let mut lost = [letter(2, 10), letter(3, 10), letter(4, 10)];
        store.append(&mut lost).expect_err("the sync fails");
        // Meanwhile 2 was delivered after all, late.
        store.append(&mut [letter(3, 10)]).expect("the disk is well again");
        for seed in 0..20 {
            let after = held(&open(&files.kill().crash(seed)));
            assert_eq!(after.values().map(|letter| letter.position.0).collect::<Vec<_>>(), [1, 3], "{pending:?} {seed}");
        }
    }
}

/// One history: appends, removals, tidying, faults, then a crash; what was told as done is done.
fn history(seed: u64) {
    let mut at = seed;
    let mut draw = move |below: u64| {
        at = mix64(at.wrapping_add(0x9e37_79b9_7f4a_7c15));
        at % below
    };
    let mut files = FaultFiles::new();
    // By position: each letter, durable or not known to be; and whether it is known to be gone, or may be.
    let (mut sure, mut unsure) = (BTreeMap::<u64, Letter>::new(), BTreeMap::<u64, ()>::new());
    let (mut gone, mut maybe_gone) = (BTreeMap::<u64, ()>::new(), BTreeMap::<u64, ()>::new());
    let mut position = 0;
    for _ in 0..4 {
        let mut store = open(&files);
        for (number, letter) in held(&store) {
            let known = sure.get(&letter.position.0);
            assert!(
                known.is_some_and(|known| known.number == number && known.data == letter.data)
                    || unsure.contains_key(&letter.position.0),
                "seed {seed}: a letter from nowhere: {letter:?}"
            );
            assert!(!gone.contains_key(&letter.position.0), "seed {seed}: a removed letter came back: {letter:?}");
        }
        let there: Vec<u64> = held(&store).values().map(|letter| letter.position.0).collect();
        for position in sure.keys().filter(|position| !gone.contains_key(position) && !maybe_gone.contains_key(position)) {
            assert!(there.contains(position), "seed {seed}: NOTHING-LOST: the letter of {position} is not there");
        }
        // What is there after a start is there for good.
        sure = held(&store).into_values().map(|letter| (letter.position.0, letter)).collect();
        unsure.clear();
        gone.clear();
        maybe_gone.clear();
        if draw(3) > 0 {
            files.stop_at(files.ops() + draw(60));
        }
        for _ in 0..draw(20) {
            match draw(10) {
                0..5 => {
                    let mut letters: Vec<Letter> =
                        (0..=draw(4)).map(|n| letter(position + n, draw(1_500_000) as usize)).collect();
                    position += letters.len() as u64;
                    if store.append(&mut letters).is_ok() {
                        sure.extend(letters.into_iter().map(|letter| (letter.position.0, letter)));
                    } else {
                        unsure.extend(letters.iter().map(|letter| (letter.position.0, ())));
                    }
                }
                5..8 => {
                    let which: Vec<Letter> = sure.values().filter(|_| draw(2) == 0).cloned().collect();
                    let removals: Vec<_> = which.iter().map(|letter| (letter.number, Removal::Purged)).collect();
                    let done = remove(&mut store, &removals).is_ok();
                    for letter in which {
                        if done {
                            gone.insert(letter.position.0, ())
                        } else {
                            maybe_gone.insert(letter.position.0, ())
                        };
                    }
                }
                8 => drop(store.tidy(store.next())),
                _ => {
                    let op = [Op::Write, Op::SyncData, Op::SyncDir, Op::Create][draw(4) as usize];
                    // A directory that forgets an unlink after a failed sync may bring a removed file of letters back: they
                    // can then be retried a second time, which is the harmless side.
                    let pending = if op == Op::SyncDir { Pending::Keep } else { Pending::Forget };
                    files.fail(Fault::new(op, 1 + draw(4), EIO).pending(pending));
                }
            }
        }
        files.heal();
        files = if draw(4) == 0 { files.kill() } else { files.crash(draw(50)) };
    }
}

#[test]
fn no_crash_and_no_failed_write_loses_a_letter_or_brings_a_removed_one_back() {
    let seeds = match std::env::var("FOREBAY_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..120,
    };
    seeds.for_each(history);
}

#[test]
fn a_letter_is_noted_as_retried_only_when_its_event_is_durable_and_damaged_ones_are_refused() {
    let files = FaultFiles::new();
    drop(open(&files));
    let metrics = Arc::<crate::metrics::StreamMetrics>::default();
    let desk = DeadLetters::open(&host_of(&files), Path::new(DIR), 1 << 30, &metrics).expect("opens");
    desk.append(&mut (0..10).map(|n| letter(n, 20)).collect::<Vec<_>>()).expect("a good disk");
    let all = Selection::default();
    let refused = desk.retry(&all, &mut |_| Err("the spool is full".into()));
    assert_eq!((refused, desk.store().held()), (Err("the spool is full".to_owned()), 10));
    let mut written = Vec::new();
    let done = desk.retry(&Selection { limit: Some(4), ..Selection::default() }, &mut |letters| {
        written.extend(letters.iter().map(|letter| letter.position.0));
        Ok(Position(500))
    });
    let done = done.expect("it works");
    // 0, 4 and 8 are damaged.
    assert_eq!((written, done.done, done.refused, done.next), (vec![1, 2, 3, 5], 4, 2, None));
    assert_eq!(desk.store().held(), 6);
    let mut removed = Vec::new();
    let visited = DeadStore::view(&host_of(&files), Path::new(DIR)).expect("a view").visit(0, &mut |letter, removal| {
        removed.extend(removal.map(|removal| (letter.position.0, removal)));
        ControlFlow::Continue(())
    });
    visited.expect("a good disk");
    let to = |position| Removal::Retried(Position(position));
    assert_eq!(removed, [(1, to(500)), (2, to(501)), (3, to(502)), (5, to(503))]);
    let done = desk.purge(&Selection { reason: Some(Reason::Damaged), ..Selection::default() }).expect("it works");
    assert_eq!((done.done, desk.store().held()), (3, 3));
    let one = Selection { numbers: vec![8], ..Selection::default() };
    assert_eq!(desk.purge(&one).expect("it works").done, 1);
    assert_eq!(desk.purge(&one).expect("it works").done, 0, "it is gone already");
}
