//! Tells a socket client what is settled: `reject` and `ack` lines, in order.
//!
//! Place: one task for each connection with `ack=on`. The connection's reader sends a [`Note`] for every batch,
//! through a bounded channel, in the order of the events; this task awaits each note's receipt and writes.
//! *RECEIPT-AFTER-SYNC*: `ack N` leaves only when every batch up to event N is durable. What is ready together
//! becomes one line: text is written only when there is nothing more to do at once.
//!
//! Failure: a client that cannot be written to gets nothing more, but its events are still taken. A batch that
//! found no room, where the policy is to refuse, is told as rejected, event by event. One that did not become durable
//! otherwise ends the task; the closed channel tells the reader. A client that does not read
//! blocks this task and, once the channel is full, its own reader: nobody else.

use std::future::{Future, ready};
use std::pin::pin;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::ingest::Reject;
use crate::metrics::Limit;
use crate::spool::NotDurable;

/// Text that is written even if more could be gathered.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// What one batch means for the client.
#[derive(Debug)]
pub struct Note<R> {
    /// Resolves when the batch is durable; `None` when all its events were rejected.
    pub receipt: Option<R>,
    /// Events of this connection up to the batch's end.
    pub count: u64,
    /// Number (from 1) and reason of each rejected event of the batch.
    pub rejects: Vec<(u64, Reject)>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended<W> {
    /// Given back for last words.
    pub write: W,
    /// A batch did not become durable: it and what follows is not acknowledged.
    pub not_durable: bool,
}

/// Runs until the channel is closed and everything in it is told.
pub async fn tell<W, R, F>(write: W, mut notes: mpsc::Receiver<Note<R>>, durable: impl Fn(R) -> F) -> Ended<W>
where
    W: AsyncWrite + Unpin,
    F: Future<Output = Result<(), NotDurable>>,
{
    let mut teller = Teller { write, text: String::new(), settled: 0, told: 0, reachable: true };
    let mut not_durable = false;
    loop {
        let note = match notes.try_recv() {
            Ok(note) => note,
            Err(mpsc::error::TryRecvError::Disconnected) => break,
            Err(mpsc::error::TryRecvError::Empty) => {
                teller.flush().await;
                match notes.recv().await {
                    Some(note) => note,
                    None => break,
                }
            }
        };
        if let Some(receipt) = note.receipt {
            let mut outcome = pin!(durable(receipt));
            let at_once = tokio::select! {
                biased;
                outcome = &mut outcome => Some(outcome),
                () = ready(()) => None,
            };
            let outcome = match at_once {
                Some(outcome) => outcome,
                None => {
                    teller.flush().await;
                    outcome.await
                }
            };
            match outcome {
                Ok(()) => {}
                Err(NotDurable::Full(limit)) => {
                    teller.refuse(note.count, &note.rejects, limit).await;
                    continue;
                }
                Err(NotDurable::Closed) => {
                    not_durable = true;
                    notes.close();
                    break;
                }
            }
        }
        teller.settle(note.count, &note.rejects);
        if teller.text.len() > TEXT_BYTES_MAX {
            teller.flush().await;
        }
    }
    teller.flush().await;
    Ended { write: teller.write, not_durable }
}

struct Teller<W> {
    write: W,
    /// `reject` lines that no `ack` covers yet.
    text: String,
    settled: u64,
    told: u64,
    reachable: bool,
}

impl<W: AsyncWrite + Unpin> Teller<W> {
    fn settle(&mut self, count: u64, rejects: &[(u64, Reject)]) {
        if self.reachable {
            for (number, reject) in rejects {
                self.text.push_str(&format!("reject {number} {reject}\n"));
            }
        }
        self.settled = count;
    }

    /// Settles a batch none of whose events found room: those without a reason of their own get that one.
    async fn refuse(&mut self, count: u64, rejects: &[(u64, Reject)], limit: Limit) {
        let mut own = rejects.iter().peekable();
        for number in self.settled + 1..=count {
            let reject = own.next_if(|(rejected, _)| *rejected == number).map_or(Reject::Full(limit), |(_, reject)| *reject);
            self.settle(number, &[(number, reject)]);
            if self.text.len() > TEXT_BYTES_MAX {
                self.flush().await;
            }
        }
    }

    async fn flush(&mut self) {
        if self.reachable && self.settled > self.told {
            self.text.push_str(&format!("ack {}\n", self.settled));
            self.told = self.settled;
            if let Err(error) = self.write.write_all(self.text.as_bytes()).await {
                tracing::debug!(%error, "a client went away before its acknowledgements; its events are still taken");
                self.reachable = false;
            }
            self.text.clear();
            // One burst of rejects must not hold its memory for the connection's life.
            self.text.shrink_to(TEXT_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::sync::oneshot;

    type Receipt = oneshot::Receiver<Result<(), NotDurable>>;

    async fn durable(receipt: Receipt) -> Result<(), NotDurable> {
        receipt.await.unwrap_or(Err(NotDurable::Closed))
    }

    fn note(count: u64, rejects: Vec<(u64, Reject)>) -> (Note<Receipt>, oneshot::Sender<Result<(), NotDurable>>) {
        let (send, receipt) = oneshot::channel();
        (Note { receipt: Some(receipt), count, rejects }, send)
    }

    #[tokio::test]
    async fn what_is_ready_together_is_one_ack_and_rejects_come_before_it() {
        let (send, notes) = mpsc::channel(8);
        for count in [2, 5] {
            let (note, durable) = note(count, vec![(count, Reject::TooLarge)]);
            durable.send(Ok(())).unwrap();
            send.send(note).await.unwrap();
        }
        send.send(Note { receipt: None, count: 6, rejects: vec![(6, Reject::NoKey)] }).await.unwrap();
        drop(send);
        let mut written = Vec::new();
        let ended = tell(&mut written, notes, durable).await;
        assert!(!ended.not_durable);
        let text = String::from_utf8(written).unwrap();
        let words: Vec<String> = text.lines().map(|line| line.split([' ', ':']).take(3).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(words, ["reject 2 too_large", "reject 5 too_large", "reject 6 no_key", "ack 6"]);
    }

    #[tokio::test]
    async fn no_ack_covers_a_batch_that_is_not_durable() {
        let (send, notes) = mpsc::channel(8);
        let (first, first_durable) = note(1, Vec::new());
        let (second, second_durable) = note(2, Vec::new());
        let (third, third_durable) = note(3, Vec::new());
        for note in [first, second, third] {
            send.send(note).await.unwrap();
        }
        // The later one is durable first; the middle one never.
        third_durable.send(Ok(())).unwrap();
        let (mut client, server) = tokio::io::duplex(64);
        let telling = tokio::spawn(tell(server, notes, durable));
        first_durable.send(Ok(())).unwrap();
        let mut line = [0; 6];
        client.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"ack 1\n");
        second_durable.send(Err(NotDurable::Closed)).unwrap();
        let ended = telling.await.unwrap();
        assert!(ended.not_durable);
        assert!(send.is_closed());
        drop(ended);
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "");
    }

    #[tokio::test]
    async fn a_client_that_went_away_is_not_written_to_and_its_notes_are_still_taken() {
        let (send, notes) = mpsc::channel(1);
        let (client, server) = tokio::io::duplex(64);
        drop(client);
        let telling = tokio::spawn(tell(server, notes, durable));
        for count in 1..20 {
            let (note, durable) = note(count, Vec::new());
            durable.send(Ok(())).unwrap();
            send.send(note).await.unwrap();
        }
        drop(send);
        assert!(!telling.await.unwrap().not_durable);
    }
}
