//! Where events come in: a Unix socket and HTTP, both on this machine only.
//!
//! Place: first on an event's way. A listener reads bytes, [`wire`] cuts them into events, a [`Source`] gives
//! each its partition key and writes it once into a batch of its stream's spool; the spool's receipt becomes an
//! `ack` line or an HTTP status. Binding is separate from serving, so that a path or port that cannot be had is
//! an error at start.
//!
//! Admission: bytes are admitted by the spool before they are read (`SpoolHandle::admit`), so a spool that is
//! full or slow is felt as backpressure and costs no memory. *RECEIPT-AFTER-SYNC*: nothing is acknowledged but
//! what `Receipt::durable` confirmed. *NO-BLOCKING*: each connection waits for its own client only.
//! *NO-EVENT-DATA*: nothing of an event's contents reaches a log line, an error text or a metric.
//!
//! The end: the listeners watch a [`Shutdown`] signal. Then they accept nothing more, submit what was read in
//! whole events, flush the acknowledgements, say `bye` (or answer 503), and are done within [`DRAIN_GRACE`].
//!
//! Absent on purpose: Kinesis, shards, files, retries. Ingest knows keys and their hashes, nothing beyond.

pub mod amplitude;
pub mod hello;
pub mod http;
pub mod json;
pub mod kinesis;
pub mod members;
pub mod mparticle;
pub mod pointer;
pub mod rules;
pub mod segment;
pub mod source;
pub mod sources;
pub mod unix;
pub mod wire;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::watch;

pub use source::{Made, Reject, Sent, Source};
pub use sources::{LiveSources, NoSource, Place, Sources};

/// Becomes `true` (or its sender goes away) when the agent stops accepting.
pub type Shutdown = watch::Receiver<bool>;

/// How long after the signal a client may take to read its last acknowledgements, or a request to finish.
pub const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Resolves once the agent stops accepting, and may be awaited again after that.
struct Stopped {
    signal: Pin<Box<dyn Future<Output = ()> + Send>>,
    done: bool,
}

impl Future for Stopped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.done {
            ready!(self.signal.as_mut().poll(cx));
            self.done = true;
        }
        Poll::Ready(())
    }
}

fn stopped(mut shutdown: Shutdown) -> Stopped {
    let signal = Box::pin(async move {
        // An error means that the sender is gone: whoever would say stop cannot any more, so this is the stop.
        if shutdown.wait_for(|stop| *stop).await.is_err() {
            tracing::debug!("the shutdown signal's sender is gone");
        }
    });
    Stopped { signal, done: false }
}
