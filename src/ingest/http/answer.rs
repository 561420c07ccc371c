//! Answers: what was accepted, or what is wrong. Pure.
//!
//! All of a request's possible ends are made here, so that each status has one form. An error's text tells what
//! is wrong and what is allowed; it never holds anything of an event.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use crate::config::SyncClass;
use crate::ingest::{NoSource, Reject};
use crate::metrics::Limit;

/// A whole answer.
pub type Answer = Response<Full<Bytes>>;

/// Why a request is not accepted.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    text: String,
    header: Option<(HeaderName, HeaderValue)>,
    /// There is no room for events.
    full: bool,
}

impl Problem {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), header: None, full: false }
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.header = Some((name, HeaderValue::from_static(value)));
        self
    }

    /// 400.
    pub fn bad(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// 403.
    pub fn forbidden(text: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, text)
    }

    /// 404.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// 405; `allow` names what is allowed.
    pub fn method(allow: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("this path takes {allow} only")).with(ALLOW, allow)
    }

    /// 408.
    pub fn slow(text: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, text)
    }

    /// 413.
    pub fn too_large(text: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    }

    /// 415 for a `Content-Type`.
    pub fn media_type(text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
    }

    /// 415 for a `Content-Encoding`.
    pub fn coding() -> Self {
        let text = "unknown Content-Encoding; known are gzip, deflate, zstd, identity, at most two of them";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).with(ACCEPT_ENCODING, "gzip, deflate, zstd")
    }

    /// 421: a `Host` that is not ours.
    pub fn misdirected(text: impl Into<String>) -> Self {
        Self::new(StatusCode::MISDIRECTED_REQUEST, text)
    }

    /// 503: the same request may be accepted a little later.
    pub fn overload(text: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text).with(RETRY_AFTER, "1")
    }

    /// 503: there is no room for the request's events.
    pub fn full(limit: Limit) -> Self {
        let problem = Self::overload(format!("{}; send all of the request again later", Reject::Full(limit)));
        Self { full: true, ..problem }
    }

    /// An only event that was refused.
    pub fn rejected(reject: Reject) -> Self {
        match reject {
            Reject::TooLarge | Reject::OverStream => Self::too_large(reject.to_string()),
            _ => Self::bad(reject.to_string()),
        }
    }

    /// There is no room for the request's events: a vendor may have an error of its own for that.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Its HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong and what is allowed; for a door that answers in a form of its own.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The answer.
    pub fn answer(self) -> Answer {
        let body = serde_json::json!({ "error": self.text }).to_string();
        let mut answer = json(self.status, body);
        if let Some((name, value)) = self.header {
            answer.headers_mut().insert(name, value);
        }
        answer
    }
}

impl From<NoSource> for Problem {
    fn from(problem: NoSource) -> Self {
        match problem {
            NoSource::Unnamed { known } => Self::not_found(format!(
                "no source is named, and there are several; post to /ingest/{{source}} with one of: {known}"
            )),
            NoSource::Unknown { .. } | NoSource::OtherKind { .. } | NoSource::NoneOfKind { .. } => {
                Self::not_found(problem.to_string())
            }
            NoSource::Closed { .. } => Self::overload(problem.to_string()),
            NoSource::KeyMissing => Self::new(
                StatusCode::UNAUTHORIZED,
                "the source wants a write key: as `Authorization: Bearer KEY`, `X-Api-Key: KEY` or the user of Basic",
            )
            .with(WWW_AUTHENTICATE, "Bearer"),
            NoSource::KeyUnknown => Self::new(StatusCode::UNAUTHORIZED, problem.to_string()).with(WWW_AUTHENTICATE, "Bearer"),
        }
    }
}

/// 200: all accepted events are durable. Indexes count from 0. What rules left out is told where there is any.
pub fn accepted(accepted: u64, left_out: usize, rejected: &[(u32, Reject)]) -> Answer {
    #[derive(serde::Serialize)]
    struct Rejected {
        index: u32,
        reason: String,
    }
    #[derive(serde::Serialize)]
    struct Accepted {
        accepted: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        left_out: Option<usize>,
        rejected: Vec<Rejected>,
    }
    let left_out = (left_out > 0).then_some(left_out);
    let rejected = rejected.iter().map(|&(index, reject)| Rejected { index, reason: reject.to_string() }).collect();
    let body = serde_json::to_string(&Accepted { accepted, left_out, rejected }).expect("numbers and strings always serialize");
    json(StatusCode::OK, body)
}

/// 204 without a body.
pub fn empty() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// What the receipt in a success answer means: `Forebay-Sync: always`.
static SYNC: HeaderName = HeaderName::from_static("forebay-sync");

/// Names the sync class in force in a success answer.
pub fn name_class(answer: &mut Answer, class: SyncClass) {
    if answer.status() == StatusCode::OK
        && let Ok(value) = HeaderValue::try_from(class.to_string())
    {
        answer.headers_mut().insert(SYNC.clone(), value);
    }
}

/// Asks the client of an HTTP/1 connection to use another one next time.
pub fn close(answer: &mut Answer) {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// An answer with a JSON body.
pub fn json(status: StatusCode, mut body: String) -> Answer {
    body.push('\n');
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
