//! `POST /dead/retry` and `POST /dead/purge`: what `forebay dead` asks of a running agent.
//!
//! Place: `admin` routes here once caller and method are judged. The body is an [`Ask`], the answer a
//! [`Done`] or `{"error": …}`. The work waits for the disk, so it runs on a thread for
//! blocking work; one ask handles a bounded number of letters, and tells where to go on.
//!
//! Failure: an unknown stream 404, a body that is none 400, a spool that takes nothing now 503; nothing is lost by any of
//! them. Absent on purpose: reading letters, which needs no agent.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{AdminState, Answer, json_answer};
use crate::event::Position;
use crate::metrics::locked;
use crate::spool::dead::Letter;
use crate::spool::dead::desk::{DeadLetters, Done, Selection};
use crate::spool::{NotDurable, SpoolHandle};

/// Path of the one.
pub const RETRY: &str = "/dead/retry";

/// Path of the other.
pub const PURGE: &str = "/dead/purge";

/// The largest body read.
const BODY_BYTES_MAX: usize = 1 << 20;

const FULL: &str = "the spool is full: letters can be retried when Kinesis has taken events, or with a higher spool.max_bytes";

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The stream; with one stream it may be left out.
    #[serde(default)]
    pub stream: Option<String>,
    /// Which letters.
    pub selection: Selection,
}

/// One stream's letters, and the spool that their events go back to.
#[derive(Clone, Debug)]
pub struct LetterDoor {
    /// The stream.
    pub stream: String,
    /// Its letters.
    pub letters: Arc<DeadLetters>,
    /// Its spool.
    pub spool: SpoolHandle,
}

impl LetterDoor {
    /// Hands letters back to the spool. Waits until their events are durable.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn retry(&self, selection: &Selection) -> Result<Done, String> {
        self.letters.retry(selection, &mut |letters| self.write(letters))
    }

    fn write(&self, letters: &[Letter]) -> Result<Position, String> {
        if self.spool.shared().metrics.full_by().is_some() {
            return Err(FULL.to_owned());
        }
        let mut batch = self.spool.batch();
        for letter in letters {
            batch.push(&letter.key, letter.explicit.then_some(letter.hash), &letter.data);
        }
        let busy = "the agent takes no events at the moment (it is stopping, or its memory for them is in use); try again";
        let permit = self.spool.try_admit(batch.len()).map_err(|_| busy.to_owned())?;
        let receipt = self.spool.submit(batch, permit);
        receipt.wait().map_err(|error| match error {
            NotDurable::Closed => "the agent stopped meanwhile; the letters are still there".to_owned(),
            NotDurable::Full(_) => FULL.to_owned(),
        })
    }
}

/// The answer to one of the two; the caller and the method were judged.
pub(super) async fn respond<B>(state: &AdminState, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let failed = |code: StatusCode, error: String| json_answer(code, &json!({ "error": error }));
    let purge = request.uri().path() == PURGE;
    let body = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return failed(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}")),
    };
    let ask: Ask = match serde_json::from_slice(&body) {
        Ok(ask) => ask,
        Err(error) => {
            let form = r#"{"stream": "NAME", "selection": {"numbers": [1, 2], "reason": "expired"}}"#;
            return failed(StatusCode::BAD_REQUEST, format!("the body must be JSON such as {form}: {error}"));
        }
    };
    let letters = locked(&state.letters).clone();
    let door = match &ask.stream {
        Some(name) => letters.iter().find(|door| door.stream == *name),
        None if letters.len() == 1 => letters.first(),
        None => None,
    };
    let Some(door) = door.cloned() else {
        let known: Vec<&str> = letters.iter().map(|door| door.stream.as_str()).collect();
        let code = if ask.stream.is_some() { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
        return json_answer(code, &json!({"error": "name one of the streams of this agent", "known": known}));
    };
    let selection = ask.selection;
    let worked =
        tokio::task::spawn_blocking(move || if purge { door.letters.purge(&selection) } else { door.retry(&selection) }).await;
    match worked {
        Ok(Ok(done)) => {
            if done.done > 0 {
                tracing::info!(letters = done.done, purge, "dead letters: worked on over the admin listener");
            }
            json_answer(StatusCode::OK, &done)
        }
        Ok(Err(error)) => failed(StatusCode::SERVICE_UNAVAILABLE, error),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
