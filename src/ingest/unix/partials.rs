//! The budget of a socket's connections for events of which only a part has come.
//!
//! Place: `connection` tells what it carries over, and asks how much it may read next. *BOUNDED*: a large unfinished event
//! needs one of few slots, and a giant one, over 1 MiB, one of two besides; while all of them together take much, reads are
//! small. So they take 24 MiB and two giants (44 MiB where 10 MiB may be sent) at most. Whoever waits for a giant's slot holds
//! a large one, and whoever has it needs nothing more of this: nobody waits in a circle. Owner: the counts are shared by all
//! connections of the door; each has its own part, which ends with it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::limits::RECORD_BYTES_MAX;

/// An unfinished event up to this size may wait for its rest as long as it likes.
const PARTIAL_BYTES_FREE: usize = 16 << 10;

/// Connections that may have an unfinished event above [`PARTIAL_BYTES_FREE`] at once.
const PARTIALS_LARGE_MAX: usize = 24;

/// An unfinished event above this size is a giant.
const PARTIAL_BYTES_LARGE: usize = RECORD_BYTES_MAX;

/// Connections that may have an unfinished giant at once.
const PARTIALS_GIANT_MAX: usize = 2;

/// Bytes of unfinished events, over all connections, from which on reads are small.
const PARTIALS_BYTES_LEAN: usize = 8 << 20;

/// Bytes of one read while unfinished events take [`PARTIALS_BYTES_LEAN`] or more.
const READ_BYTES_LEAN: usize = 4 << 10;

/// Bytes of one read.
pub const READ_BYTES: usize = 64 << 10;

/// Budget for events of which only a part has come.
#[derive(Debug)]
pub struct Partials {
    /// One permit for each large one.
    large: Semaphore,
    /// One permit for each giant, beside that.
    giant: Semaphore,
    /// All of them together.
    bytes: AtomicUsize,
}

/// One connection's part in [`Partials`].
pub struct Partial<'s> {
    budget: &'s Partials,
    /// Bytes of its unfinished event.
    pub bytes: usize,
    /// Its slot, where that is a large one.
    large: Option<SemaphorePermit<'s>>,
    /// The one of a giant.
    giant: Option<SemaphorePermit<'s>>,
}

impl Default for Partials {
    fn default() -> Self {
        Self { large: Semaphore::new(PARTIALS_LARGE_MAX), giant: Semaphore::new(PARTIALS_GIANT_MAX), bytes: AtomicUsize::new(0) }
    }
}

impl<'s> Partial<'s> {
    /// Nothing unfinished.
    pub fn new(budget: &'s Partials) -> Self {
        Self { budget, bytes: 0, large: None, giant: None }
    }

    /// Its unfinished event has this many bytes now.
    pub fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.budget.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
            self.bytes = bytes;
        }
        if bytes <= PARTIAL_BYTES_FREE {
            (self.large, self.giant) = (None, None);
        }
    }

    /// Its unfinished event is a large one.
    pub fn is_large(&self) -> bool {
        self.bytes > PARTIAL_BYTES_FREE
    }

    /// Waits for the slots that it needs before more of it is read.
    pub async fn slots(&mut self) {
        if self.is_large() && self.large.is_none() {
            // The semaphores are never closed.
            self.large = self.budget.large.acquire().await.ok();
        }
        if self.bytes > PARTIAL_BYTES_LARGE && self.giant.is_none() {
            self.giant = self.budget.giant.acquire().await.ok();
        }
    }

    /// Bytes that the next read may bring.
    pub fn read_bytes(&self) -> usize {
        let lean = self.large.is_none() && self.budget.bytes.load(Ordering::Relaxed) >= PARTIALS_BYTES_LEAN;
        if lean { READ_BYTES_LEAN } else { READ_BYTES }
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future as _, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    /// Whether it has all it needs at once.
    async fn has_slots(partial: &mut Partial<'_>) -> bool {
        let mut slots = pin!(partial.slots());
        poll_fn(|context| Poll::Ready(slots.as_mut().poll(context).is_ready())).await
    }

    #[tokio::test]
    async fn two_giants_are_read_at_once_a_third_waits_and_smaller_ones_do_not() {
        let budget = Partials::default();
        let [mut first, mut second, mut third, mut small] = [(); 4].map(|()| Partial::new(&budget));
        for giant in [&mut first, &mut second, &mut third] {
            giant.set(PARTIAL_BYTES_LARGE);
            assert!(has_slots(giant).await, "of the default size it is none");
            giant.set(PARTIAL_BYTES_LARGE + 1);
        }
        assert!(has_slots(&mut first).await && has_slots(&mut second).await && !has_slots(&mut third).await);
        small.set(PARTIAL_BYTES_LARGE);
        assert!(has_slots(&mut small).await);
        // It goes on being read, and is through.
        second.set(10 << 20);
        assert!(has_slots(&mut second).await && !has_slots(&mut third).await);
        second.set(0);
        assert!(has_slots(&mut third).await);
        drop(first);
        second.set(PARTIAL_BYTES_LARGE + 1);
        assert!(has_slots(&mut second).await);
    }
}
