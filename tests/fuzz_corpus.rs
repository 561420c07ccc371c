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

#[test]
fn a_scan_of_any_file_reports_what_is_there_in_order_and_it_adds_up() {
    replay("segment");
}

#[test]
fn an_index_that_is_taken_for_good_is_usable() {
    replay("index");
}

#[test]
fn opening_any_directory_ends_and_a_second_opening_finds_the_same() {
    replay("recovery");
}

#[test]
fn a_spoiled_coded_file_makes_nothing_up_and_reads_the_same_in_any_order() {
    replay("coded");
}

#[test]
fn whatever_amplitudes_door_takes_becomes_one_row_of_bounded_size() {
    replay("amplitude");
}

#[test]
fn whatever_mparticles_door_takes_becomes_records_of_bounded_size_with_a_key() {
    replay("mparticle");
}

#[test]
fn lines_are_the_same_however_the_stream_is_cut() {
    replay("lines");
}

#[test]
fn frames_are_the_same_however_the_stream_is_cut() {
    replay("frames");
}

#[test]
fn a_hello_is_seen_early_and_can_be_said_again() {
    replay("hello");
}

#[test]
fn a_key_is_found_as_serde_json_finds_it() {
    replay("pointers");
}

#[test]
fn an_aggregate_is_read_as_prost_reads_it() {
    replay("kpl");
}

#[test]
fn a_request_of_the_kinesis_api_is_read_as_serde_json_reads_it_and_each_record_yields_events() {
    replay("kinesis");
}

#[test]
fn whatever_segments_door_takes_becomes_json_on_one_line() {
    replay("segment_api");
}

#[test]
fn every_target_has_its_fuzzer_and_is_replayed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = fs::read_to_string(root.join("tests/fuzz_corpus.rs")).expect("this file");
    for (name, _) in bodies::TARGETS {
        let fuzzer = root.join(format!("fuzz/fuzz_targets/{name}.rs"));
        let source = fs::read_to_string(&fuzzer).unwrap_or_else(|error| panic!("{}: {error}", fuzzer.display()));
        assert!(source.contains(&format!("bodies::{name}(data)")), "{}", fuzzer.display());
        assert!(here.contains(&format!("replay(\"{name}\");")), "{name} is not replayed");
    }
}

// === what was found, and is mended ===

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal digits")).collect()
}

/// Each opening counted the events between the last segment's end and what a checkpoint knew as damaged once more.
#[test]
fn positions_that_only_a_checkpoint_knew_are_counted_as_lost_once() {
    bodies::recovery(&[0x0a]);
}

/// Files whose positions go back were cut, sealed and cut again by each opening.
#[test]
fn files_out_of_order_are_set_aside_and_the_next_opening_finds_the_same() {
    bodies::recovery(&[0x2d, 0x0a, 0x0a]);
    bodies::recovery(&[0xd9, 0xd8, 0xff, 0xdc, 0xde, 0xd9, 0xd8, 0xbe]);
}

/// The position was cut to 32 bits, and the index named another event's.
#[test]
fn a_frame_too_far_ahead_for_an_index_is_not_believed() {
    bodies::segment(b"\x00\x7e\xa2\xa2\xff\x09\x29\x28\xff\xff\x1f\x00\xdb\xb2\x00\x00T\x00\x01\x00\x00\x00\x00\x00\x00");
}

/// The sweep read it where the index knew better, and took the wrong bytes out of its chunk.
#[test]
fn a_frame_that_goes_back_in_a_sealed_file_is_not_read() {
    let hex = "64dcdcda336c6a739dd3613e81cb829165d35200110cdfdf53f2f3742c8ef2af71f013d15848b66b6f502ffbfffefb3b00ab6357c3e191a3ce84c7\
               763e988d66b2badf564aad403a107502560508a3e09ba03e77e6020ab58270f6f76309b2811ec6102f316e31cc925f3d8a23452de2";
    bodies::recovery(&bytes_of(hex));
}

/// An index said that a file ends before a frame in it; the sweep took the frame, and passed over the files behind it.
#[test]
fn a_frame_beyond_the_end_of_its_segment_does_not_hide_the_next_segment() {
    let hex = "067d0000000000000000000000000000000000000000d90206d9020706d90207020000000000000025000303030303030303030303020706d9020702\
               00000000000000257e03030303000000000003030303030303030000000130000000001c";
    bodies::recovery(&bytes_of(hex));
}

/// Positions near the end of 64 bits wrapped around in the next commit.
#[test]
fn a_position_that_no_spool_gets_to_is_not_believed() {
    let mut input = vec![0x2f, 0xfb];
    input.extend_from_slice(&[0xff; 15]);
    input.push(0xb2);
    input.extend_from_slice(&[0xff; 35]);
    input.extend_from_slice(&[0x5d, 0xfb, 0x2f, 0xfb, 0xfe, 0xfb, 0x14, 0xff]);
    bodies::recovery(&input);
    // And the last one that is believed ends a segment that can be sealed.
    let mut input = vec![0xbe, 0x02, 0xff, 0xff, 0x2f, 0xff, 0xff, 0xff, 0x3f, 0x00, 0xff, 0x60];
    input.extend_from_slice(&[0xff; 6]);
    input.push(0x00);
    input.extend_from_slice(&[0xff; 11]);
    input.extend_from_slice(&[0x08, 0, 0, 0, 0, 0, 0, 0]);
    input.extend_from_slice(&[0xff; 15]);
    input.extend_from_slice(&[0x00, 0x25, 0xde, 0xff, 0xb1, 0xae, 0xae, 0x00, 0x25, 0x27]);
    bodies::recovery(&input);
}

/// KCL reads an explicit hash key where an event asks for it; we refused the aggregate for one that none asks for.
#[test]
fn a_hash_key_that_no_event_asks_for_is_not_read() {
    let mut input = vec![2];
    input.extend_from_slice(b"\x0a\x01a\x12\x01x\x1a\x05\x08\x00\x1a\x01y");
    bodies::kpl(&input);
}
