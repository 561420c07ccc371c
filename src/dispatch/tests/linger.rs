//! An event waits for company no longer than `linger` after it was received, wherever it was meanwhile.
//!
//! Place: the histories of `tests.rs`, without faults.

use super::*;

const LINGER: Duration = Duration::from_millis(50);

/// Milliseconds from now until the only event leaves, the map and the mode being known.
fn leaves_after(history: &mut History, running: &mut Running) -> u64 {
    for waited in 0..1000 {
        let now = history.now();
        let dispatcher = &mut running.dispatcher;
        if dispatcher.ask_for_map(now) {
            dispatcher.on_map(Ok(history.model.shards.clone()), now);
        }
        if dispatcher.ask_for_summary(now) {
            dispatcher.on_summary(history.model.summary(), now);
        }
        let sent: usize = dispatcher.poll(now).iter().map(Outgoing::len).sum();
        if sent > 0 {
            return waited;
        }
        history.clock.0.fetch_add(1, Ordering::Relaxed);
    }
    panic!("the event never leaves");
}

fn write(running: &Running, data: &str) {
    let mut batch = running.handle.batch();
    batch.push("key", None, data.as_bytes());
    let permit = running.handle.try_admit(batch.len()).expect("room");
    running.handle.submit(batch, permit).wait().expect("durable");
}

#[test]
fn an_event_that_lay_on_disk_for_linger_leaves_at_once_and_a_new_one_waits_for_company() {
    for aggregate in [Aggregate::Kpl, Aggregate::Lines, Aggregate::Off] {
        // How long it has lain there, and how long it may wait now.
        for (lay_ms, waits_ms) in [(0, 50), (20, 30), (50, 0), (100_000, 0)] {
            let mut history = History::new(1, aggregate);
            history.faults = false;
            history.options = DispatchOptions { linger: LINGER, record_bytes_max: 64 << 10, ..history.options };
            history.model = Model::new(1);
            let mut running = history.start(Position(0));
            write(&running, "0 key");
            history.clock.0.fetch_add(lay_ms, Ordering::Relaxed);
            let waited = leaves_after(&mut history, &mut running);
            assert_eq!(waited, waits_ms, "{aggregate:?}, after {lay_ms} ms on disk");
            history.crash(running);
        }
    }
}
