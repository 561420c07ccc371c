//! The fuzzers' corpora, replayed: what was interesting once stays checked, on the stable compiler, without a fuzzer.
//!
//! Place: `fuzz/bodies.rs` holds what each target does and claims; `fuzz/corpus/` what the fuzzers found worth keeping,
//! minimised. Findings that were mended are tests of their own, by the claim that failed. To look for more:
//! `cargo install cargo-fuzz`, then `cargo +nightly fuzz run TARGET`.

#![allow(clippy::disallowed_methods, reason = "the corpora are files of the repository")]

#[path = "../fuzz/bodies.rs"]
#[allow(dead_code, reason = "the doubles that it includes can do more")]
mod bodies;

use std::fs;
use std::path::Path;

/// Runs a target over its corpus. The name of the input at which it failed stands last in the output.
fn replay(target: &str) {
    let (_, body) = bodies::TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(&dir).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "{}: {} inputs are no corpus", dir.display(), paths.len());
    for path in paths {
        println!("{}", path.display());
        body(&fs::read(&path).expect("an input"));
    }
    // What no fuzzer needs to find.
    body(&[]);
    body(&[0; 300]);
    body(&[0xff; 300]);
}

macro_rules! replays {
    ($($name:ident: $target:literal,)*) => {
        $(
            #[test]
            fn $name() {
                replay($target);
            }
        )*

        #[test]
        fn every_target_is_replayed_and_has_its_fuzzer() {
            let replayed = [$($target),*];
            let targets: Vec<&str> = bodies::TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(targets, replayed);
            for name in targets {
                let fuzzer = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz/fuzz_targets/{name}.rs"));
                let source = fs::read_to_string(&fuzzer).unwrap_or_else(|error| panic!("{}: {error}", fuzzer.display()));
                assert!(source.contains(&format!("bodies::{name}(data)")), "{}", fuzzer.display());
            }
        }
    };
}

replays! {
    a_scan_of_any_file_reports_what_is_there_in_order_and_it_adds_up: "segment",
    an_index_that_is_taken_for_good_is_usable: "index",
    opening_any_directory_ends_and_a_second_opening_finds_the_same: "recovery",
    lines_are_the_same_however_the_stream_is_cut: "lines",
    frames_are_the_same_however_the_stream_is_cut: "frames",
    a_hello_is_seen_early_and_can_be_said_again: "hello",
    a_key_is_found_as_serde_json_finds_it: "pointers",
    an_aggregate_is_read_as_prost_reads_it: "kpl",
}
