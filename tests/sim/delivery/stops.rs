//! What is left of a stop in order while something cannot be delivered: nothing that was delivered is sent again.
//!
//! Place: quiet lives of `life.rs`. The seeded lives (`lives.rs`) stop at any moment.

use std::time::Duration;

use forebay::config::Aggregate;

use crate::judge::Broken;
use crate::life::Life;
use crate::spells::Kind;

/// A hot key waits for its turns, and what came behind it was delivered: its lane's mark alone stays behind.
#[test]
fn a_stop_while_a_hot_key_waits_sends_nothing_again_that_was_delivered() {
    let story = || -> Result<(), Broken> {
        let mut life = Life::quiet(1, Aggregate::Off, 1);
        (life.hot_percent, life.keys) = (60, 40);
        life.start()?;
        life.pass(Duration::from_millis(500))?;
        life.write(400)?;
        life.pass(Duration::from_secs(3))?;
        // Kinesis goes away, so that what is under way comes back, and the agent is stopped.
        let now = life.now();
        life.service.weather.add(Kind::Away, now, now + Duration::from_secs(30), 0);
        let waits = |life: &Life| life.process.as_ref().is_none_or(|process| process.dispatcher.under_way() > 0);
        while waits(&life) {
            life.pass(Duration::from_millis(5))?;
        }
        let account = life.process.as_ref().expect("it runs").account();
        assert!(account.delivered > 150 && account.pending() > 50, "{account:?}");
        life.end_process(Kind::CleanStop, 0)?;
        assert_eq!(life.service.met.get("clean stop"), Some(&1));
        life.pass(Duration::from_millis(100))?;
        let next = life.process.as_ref().expect("it runs").account();
        assert_eq!((next.delivered, next.pending()), (account.delivered, account.pending()));
        life.pass(Duration::from_secs(120))?;
        life.judge.at_the_end()?;
        assert_eq!(life.judge.repeats, 0, "after a clean stop");
        Ok(())
    };
    story().unwrap_or_else(|broken| panic!("{}", broken.0));
}
