//! Where requests come in: a loopback port, one with TLS, a Unix socket; and a stream over any of them.
//!
//! Place: `http` accepts on a [`Listener`], whatever kind it is; each connection's own task then opens what
//! [`Arrived`], so that a slow TLS handshake holds up nobody else. [`Via`] goes to the guards with each request.
//!
//! Failure: a handshake that does not end in time (`head_timeout`), or fails, closes its connection. Who speaks plain
//! HTTP to the TLS port is told so in plain HTTP. A user whom `allowed_uids` does not name is answered 403.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::tls::Pair;
use crate::ingest::unix::{self, SocketFile};
use crate::ingest::{Shutdown, stopped};

/// How long a handshake may go on once the agent stops.
const LAST_HANDSHAKE: Duration = Duration::from_secs(1);

/// How long, and how much, is read of who spoke plain HTTP, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 << 10;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A port, which web pages can reach too.
    Port,
    /// A Unix socket, which no web page can reach.
    Socket,
    /// The same, of a user who may not connect.
    Refused,
}

/// A listening port or socket.
#[derive(Debug)]
pub enum Listener {
    /// HTTP.
    Port(TcpListener),
    /// HTTP over TLS.
    Tls(TcpListener, Arc<Pair>),
    /// HTTP over a Unix socket. Its file goes with it, and before it.
    Socket {
        /// The file; `None`: the socket was passed.
        _file: Option<SocketFile>,
        /// The socket.
        listener: UnixListener,
        /// User ids that may connect; empty: whoever may open it.
        allowed_uids: Vec<u32>,
    },
}

/// A connection that was accepted, and nothing more.
#[derive(Debug)]
pub enum Arrived {
    /// On a port.
    Port(TcpStream),
    /// On a port with TLS; the handshake is still to come.
    Tls(TcpStream, Arc<Pair>),
    /// On a Unix socket.
    Socket(UnixStream, Via),
}

impl Listener {
    /// The next connection.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn accept(&self) -> io::Result<Arrived> {
        let arrived = match self {
            Self::Port(listener) => Arrived::Port(listener.accept().await?.0),
            Self::Tls(listener, pair) => Arrived::Tls(listener.accept().await?.0, Arc::clone(pair)),
            Self::Socket { listener, allowed_uids, .. } => {
                let stream = listener.accept().await?.0;
                let via = match unix::admit_user(&stream, allowed_uids) {
                    Ok(()) => Via::Socket,
                    Err(_) => Via::Refused,
                };
                Arrived::Socket(stream, via)
            }
        };
        Ok(arrived)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the operating system says; a socket has no such address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Port(listener) | Self::Tls(listener, _) => listener.local_addr(),
            Self::Socket { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Arrived {
    /// The stream to speak HTTP on, after the TLS handshake where there is one. `None`: it is closed.
    pub async fn open(self, patience: Duration, shutdown: Shutdown) -> Option<(Stream, Via)> {
        match self {
            Self::Socket(stream, via) => Some((Stream::Socket(stream), via)),
            Self::Port(stream) => at_once(&stream).then_some((Stream::Port(stream), Via::Port)),
            Self::Tls(stream, pair) => {
                if !at_once(&stream) {
                    return None;
                }
                let opened = pin!(timeout(patience, handshake(stream, pair)));
                let ending = async {
                    stopped(shutdown).await;
                    sleep(LAST_HANDSHAKE).await;
                };
                let opened = tokio::select! {
                    opened = opened => opened,
                    () = ending => return None,
                };
                match opened {
                    Ok(Ok(stream)) => Some((Stream::Tls(Box::new(stream)), Via::Port)),
                    Ok(Err(error)) => {
                        // Told where somebody asks: a client that does not trust the certificate ends here, each time it tries.
                        tracing::debug!(%error, "a TLS handshake failed");
                        None
                    }
                    Err(_) => {
                        tracing::debug!("a TLS handshake took too long");
                        None
                    }
                }
            }
        }
    }
}

/// Small answers leave at once. False: the connection is gone already.
fn at_once(stream: &TcpStream) -> bool {
    let set = stream.set_nodelay(true);
    if let Err(error) = &set {
        tracing::debug!(%error, "an HTTP connection is gone already");
    }
    set.is_ok()
}

async fn handshake(stream: TcpStream, pair: Arc<Pair>) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // A TLS record begins with its type, which is no letter (RFC 8446, section 5.1); HTTP begins with a method.
    if first[0].is_ascii_alphabetic() {
        tell_plain(stream).await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client speaks plain HTTP"));
    }
    TlsAcceptor::from(pair.current().await).accept(stream).await
}

/// Answers a client that speaks plain HTTP where TLS is spoken.
async fn tell_plain(mut stream: TcpStream) -> io::Result<()> {
    let body = "{\"error\":\"this port speaks TLS: the address begins with https://; plain HTTP is at listen.http\"}\n";
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = tokio::io::sink();
    match timeout(LINGER, tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut rest)).await {
        Ok(read) => read.map(|_| ()),
        Err(_) => Ok(()),
    }
}

/// A connection's bytes.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Port(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// Unix.
    Socket(UnixStream),
}

/// The stream of whichever kind.
macro_rules! each {
    ($self:ident, $stream:ident => $body:expr) => {
        match $self.get_mut() {
            Stream::Port($stream) => $body,
            Stream::Tls($stream) => $body,
            Stream::Socket($stream) => $body,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Port(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Socket(stream) => stream.is_write_vectored(),
        }
    }
}
