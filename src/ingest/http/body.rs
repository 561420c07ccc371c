//! Request bodies: read whole and decoded, within limits.
//!
//! Place: `events` asks for a body once the request's head is accepted. All bodies of the door share one
//! [`Memory`]: what a body takes is taken from it as the body comes, and what decoding may take before it is
//! decoded; what turns out not to be needed goes back at once, the rest with the [`Share`].
//!
//! Requests that hold a part and wait for more would wait for each other until all of them give up. So one of them at a time has
//! the turn: it takes what it needs without asking, finishes, and gives back what the others wait for.
//!
//! Failure: over [`BODY_BYTES_MAX`], before or after decoding, is 413, and a decompression bomb stops there.
//! No memory in time is 503, no progress 408, bytes that do not decode 400. Absent on purpose: the body's meaning.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, EXPECT, HeaderMap};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::HttpOptions;
use super::answer::Problem;
use super::submit::wait_patiently;

/// Bytes of a body, as sent and as decoded.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// Bytes of all bodies at once, but for the one that has the turn: it may take twice [`BODY_BYTES_MAX`] more, a body and what it
/// is decoded to.
pub const BODIES_BYTES_MAX: usize = 64 << 20;

/// Largest window that a zstd body may ask for: 2 to this. A window over the largest body serves nothing.
const ZSTD_WINDOW_LOG_MAX: u32 = 24;

/// Unit in which memory is counted.
const PAGE_BYTES: usize = 4 << 10;

/// First reservation for a body; it doubles as the body comes.
const STEP_BYTES: usize = 64 << 10;

const _: () = assert!(1 << ZSTD_WINDOW_LOG_MAX <= BODY_BYTES_MAX && 3 * BODY_BYTES_MAX <= BODIES_BYTES_MAX);

/// The budget for bodies.
#[derive(Debug)]
pub struct Memory {
    pages: Semaphore,
    /// One, for one request at a time.
    turn: Semaphore,
}

impl Default for Memory {
    fn default() -> Self {
        Self { pages: Semaphore::new(BODIES_BYTES_MAX / PAGE_BYTES), turn: Semaphore::new(1) }
    }
}

impl Memory {
    /// Some of it for a request that has none yet, waiting for at most `patience`.
    ///
    /// # Errors
    /// 503: there was none in time.
    async fn share(&self, bytes: usize, patience: Duration) -> Result<Share<'_>, Problem> {
        match wait_patiently(patience, self.pages.acquire_many(pages(bytes))).await {
            Some(Ok(pages)) => Ok(Share { memory: self, pages, turn: None }),
            _ => Err(none_in_time()),
        }
    }
}

fn pages(bytes: usize) -> u32 {
    bytes.div_ceil(PAGE_BYTES) as u32
}

fn none_in_time() -> Problem {
    Problem::overload("the requests under way take all memory that bodies may take; try again")
}

/// What one request has of the memory. It goes back when this is dropped.
#[derive(Debug)]
pub struct Share<'m> {
    memory: &'m Memory,
    pages: SemaphorePermit<'m>,
    /// This request has the turn: what it takes from now on is not counted.
    turn: Option<SemaphorePermit<'m>>,
}

impl Share<'_> {
    /// Takes more, waiting for at most `patience`: until others gave so much back, or for the turn.
    ///
    /// # Errors
    /// 503: neither came in time.
    pub async fn grow(&mut self, bytes: usize, patience: Duration) -> Result<(), Problem> {
        if self.turn.is_some() {
            return Ok(());
        }
        let memory = self.memory;
        let more = async {
            tokio::select! {
                biased;
                pages = memory.pages.acquire_many(pages(bytes)) => pages.map(|pages| (Some(pages), None)),
                turn = memory.turn.acquire() => turn.map(|turn| (None, Some(turn))),
            }
        };
        let Some(Ok((pages, turn))) = wait_patiently(patience, more).await else { return Err(none_in_time()) };
        if let Some(pages) = pages {
            self.pages.merge(pages);
        }
        self.turn = turn;
        Ok(())
    }

    /// Gives back what is more than `bytes`.
    fn shrink(&mut self, bytes: usize) {
        let spare = self.pages.num_permits().saturating_sub(pages(bytes) as usize);
        drop(self.pages.split(spare));
    }
}

/// A whole, decoded body and its share of the memory.
#[derive(Debug)]
pub struct Body<'m> {
    /// What the client meant to send.
    pub bytes: Bytes,
    /// To be kept as long as the bytes.
    pub share: Share<'m>,
}

/// Reads and decodes a request's body.
///
/// # Errors
/// The answer to give, as listed above.
pub async fn read<'m>(
    mut incoming: Incoming,
    headers: &HeaderMap,
    memory: &'m Memory,
    options: &HttpOptions,
) -> Result<Body<'m>, Problem> {
    let collected = match codings(headers) {
        Ok(codings) => collect(&mut incoming, memory, options).await.map(|body| (codings, body)),
        Err(problem) => Err(problem),
    };
    let (codings, mut body) = match collected {
        Ok(collected) => collected,
        Err(problem) => {
            // What broke off or is too large is not read on.
            if matches!(problem.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::UNSUPPORTED_MEDIA_TYPE) {
                discard(incoming, headers, options).await;
            }
            return Err(problem);
        }
    };
    for coding in codings.into_iter().rev() {
        let Body { bytes: encoded, mut share } = body;
        share.grow(BODY_BYTES_MAX, options.admit_timeout).await?;
        // Inflating 16 MiB takes tens of milliseconds, which no other connection shall wait for.
        let decoded = tokio::task::spawn_blocking(move || decode(coding, &encoded)).await;
        let decoded = decoded.map_err(|_| Problem::bad("the body cannot be decoded"))??;
        share.shrink(decoded.len());
        body = Body { bytes: decoded.into(), share };
    }
    Ok(body)
}

/// Reads a body that nobody wants and forgets it: a client that is still sending might not read its answer. Not one that waits
/// to be told to send, nor one that is too large anyhow.
pub async fn discard(mut incoming: Incoming, headers: &HeaderMap, options: &HttpOptions) {
    if headers.contains_key(EXPECT) || incoming.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return;
    }
    let mut length = 0;
    while let Ok(Some(Ok(frame))) = timeout(options.body_timeout, incoming.frame()).await {
        length += frame.data_ref().map_or(0, Bytes::len);
        if length > BODY_BYTES_MAX {
            return;
        }
    }
}

fn over() -> Problem {
    Problem::too_large(format!("the body is larger than {} MiB; send the events in several requests", BODY_BYTES_MAX >> 20))
}

async fn collect<'m>(incoming: &mut Incoming, memory: &'m Memory, options: &HttpOptions) -> Result<Body<'m>, Problem> {
    let told = incoming.size_hint().exact();
    if told.is_some_and(|bytes| bytes > BODY_BYTES_MAX as u64) {
        return Err(over());
    }
    // Memory is taken as the body comes, not as it is told: a client that tells much and sends little holds little.
    let mut room = told.map_or(STEP_BYTES, |bytes| STEP_BYTES.min(bytes as usize));
    let mut share = memory.share(room, options.admit_timeout).await?;
    let mut whole: Vec<u8> = Vec::new();
    loop {
        let piece = match timeout(options.body_timeout, incoming.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame.into_data(),
            Ok(Some(Err(_))) => return Err(Problem::bad("the body broke off")),
            Err(_) => return Err(Problem::slow("the rest of the body did not come in time")),
        };
        // Trailers mean nothing here.
        let Ok(piece) = piece else { continue };
        let length = whole.len() + piece.len();
        if length > BODY_BYTES_MAX {
            return Err(over());
        }
        if length > room {
            let more = room.max(length - room).min(BODY_BYTES_MAX - room);
            share.grow(more, options.admit_timeout).await?;
            room += more;
        }
        if told == Some(length as u64) && whole.is_empty() {
            return Ok(Body { bytes: piece, share });
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Body { bytes: whole.into(), share })
}

/// A content coding other than identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

/// In the order in which they were applied.
fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, Problem> {
    let mut codings = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        for name in value.to_str().map_err(|_| Problem::coding())?.split(',') {
            codings.push(match name.trim().to_ascii_lowercase().as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => Coding::Gzip,
                "deflate" => Coding::Deflate,
                "zstd" => Coding::Zstd,
                _ => return Err(Problem::coding()),
            });
        }
    }
    if codings.len() > 2 { Err(Problem::coding()) } else { Ok(codings) }
}

fn decode(coding: Coding, encoded: &[u8]) -> Result<Vec<u8>, Problem> {
    match coding {
        Coding::Gzip => limited(flate2::read::MultiGzDecoder::new(encoded), "gzip"),
        // RFC 9110 means zlib's form; some clients send the bare one. A zlib header is recognised by its check bits.
        Coding::Deflate => match encoded {
            [a, b, ..] if a & 15 == 8 && u16::from_be_bytes([*a, *b]) % 31 == 0 => {
                limited(flate2::read::ZlibDecoder::new(encoded), "deflate")
            }
            _ => limited(flate2::read::DeflateDecoder::new(encoded), "deflate"),
        },
        Coding::Zstd => {
            let damaged = |_| Problem::bad("the body is not valid zstd");
            let mut decoder = zstd::stream::read::Decoder::with_buffer(encoded).map_err(damaged)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(damaged)?;
            limited(decoder, "zstd")
        }
    }
}

fn limited(decoder: impl Read, name: &str) -> Result<Vec<u8>, Problem> {
    let mut decoded = Vec::new();
    let read = decoder.take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut decoded);
    if decoded.len() > BODY_BYTES_MAX {
        return Err(over());
    }
    read.map_err(|_| Problem::bad(format!("the body is not valid {name}, or it is cut short")))?;
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use std::io::Write as _;

    const TEXT: &[u8] = b"{\"a\":1}\n{\"a\":2}\n";

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn status(result: Result<Vec<u8>, Problem>) -> u16 {
        result.unwrap_err().answer().status().as_u16()
    }

    /// What a deadlock would wait for.
    const PATIENCE: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn requests_that_hold_all_memory_and_need_more_finish_one_after_the_other() {
        let memory: &'static Memory = Box::leak(Box::default());
        let half = BODY_BYTES_MAX / 2;
        let mut shares = Vec::new();
        for _ in 0..BODIES_BYTES_MAX / half {
            shares.push(memory.share(half, PATIENCE).await.unwrap());
        }
        assert_eq!(memory.pages.available_permits(), 0);
        let finish = |mut share: Share<'static>| async move {
            share.grow(half, PATIENCE).await.unwrap();
            share.grow(BODY_BYTES_MAX, PATIENCE).await.unwrap();
            tokio::task::yield_now().await;
            share.shrink(1);
        };
        let finishing: tokio::task::JoinSet<()> = shares.into_iter().map(finish).collect();
        timeout(PATIENCE / 60, finishing.join_all()).await.expect("none waits for another that waits");
        assert_eq!(memory.pages.available_permits(), BODIES_BYTES_MAX / PAGE_BYTES);
        assert_eq!(memory.turn.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_request_that_has_no_memory_yet_waits_for_what_others_give_back() {
        let memory = Memory::default();
        let all = memory.share(BODIES_BYTES_MAX, PATIENCE).await.unwrap();
        assert_eq!(memory.share(1, Duration::from_millis(5)).await.unwrap_err().status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(all);
        memory.share(1, PATIENCE).await.unwrap();
    }

    #[test]
    fn each_coding_is_undone() {
        assert_eq!(decode(Coding::Gzip, &gzip(TEXT)).unwrap(), TEXT);
        assert_eq!(decode(Coding::Deflate, &zlib(TEXT)).unwrap(), TEXT);
        let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        raw.write_all(TEXT).unwrap();
        assert_eq!(decode(Coding::Deflate, &raw.finish().unwrap()).unwrap(), TEXT);
        assert_eq!(decode(Coding::Zstd, &zstd::encode_all(TEXT, 3).unwrap()).unwrap(), TEXT);
    }

    #[test]
    fn a_damaged_or_cut_body_is_a_bad_request() {
        for (coding, encoded) in
            [(Coding::Gzip, gzip(TEXT)), (Coding::Deflate, zlib(TEXT)), (Coding::Zstd, zstd::encode_all(TEXT, 3).unwrap())]
        {
            assert_eq!(status(decode(coding, &encoded[..encoded.len() - 5])), 400, "{coding:?}");
            assert_eq!(status(decode(coding, b"no such thing")), 400, "{coding:?}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = vec![0; BODY_BYTES_MAX + 1];
        assert_eq!(status(decode(Coding::Gzip, &gzip(&zeros))), 413);
        assert_eq!(status(decode(Coding::Deflate, &zlib(&zeros))), 413);
        assert_eq!(status(decode(Coding::Zstd, &zstd::encode_all(&zeros[..], 3).unwrap())), 413);
        assert_eq!(decode(Coding::Gzip, &gzip(&zeros[1..])).unwrap().len(), BODY_BYTES_MAX);
    }

    #[test]
    fn codings_are_read_in_any_case_and_unknown_ones_refused() {
        let headers = |value: &str| HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_str(value).unwrap())]);
        assert_eq!(codings(&HeaderMap::new()).unwrap(), []);
        assert_eq!(codings(&headers("GZip, identity, zstd")).unwrap(), [Coding::Gzip, Coding::Zstd]);
        assert!(codings(&headers("br")).is_err());
        assert!(codings(&headers("gzip, gzip, gzip")).is_err());
    }
}
