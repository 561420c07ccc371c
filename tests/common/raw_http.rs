//! A listening HTTP door, and a client that sends bytes as they are and reads answers one by one.
//!
//! Place: included by tests in which the bytes on the wire, or the moment at which they are sent, are what is tested.
#![allow(dead_code, reason = "each test file uses its own part")]

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::doors::{Door, soon};

impl Door {
    pub async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), ahead: Vec::new() }
    }

    /// One request on a connection of its own.
    pub async fn post(&self, path: &str, headers: &str, body: impl AsRef<[u8]>) -> Answer {
        let mut client = self.connect().await;
        client.send(&request(path, headers, body.as_ref())).await;
        client.answer().await.expect("an answer")
    }
}

/// A request of a sized body; `headers` end in CRLF each.
pub fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// An answer, taken apart.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// In small letters.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn accepted(&self) -> u64 {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["accepted"].as_u64().unwrap()
    }

    pub fn left_out(&self) -> u64 {
        self.json()["left_out"].as_u64().unwrap_or(0)
    }

    pub fn closes(&self) -> bool {
        self.head.contains("connection: close")
    }
}

/// A connection.
pub struct Client {
    pub stream: TcpStream,
    /// Read, and not part of an answer yet.
    ahead: Vec<u8>,
}

impl Client {
    /// Sends bytes; false when the door took no more of them.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        soon(self.stream.write_all(bytes)).await.is_ok()
    }

    /// The next answer; `None` when the connection ended without one.
    pub async fn answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.ahead[..end].to_vec()).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |text| text.parse().unwrap());
        while self.ahead.len() < end + length {
            self.more().await?;
        }
        let body = self.ahead[end..end + length].to_vec();
        self.ahead.drain(..end + length);
        Some(Answer { status, head, body })
    }

    /// The door closed the connection, and nothing unread is left.
    pub async fn is_over(&mut self) -> bool {
        self.ahead.is_empty() && self.more().await.is_none()
    }

    async fn more(&mut self) -> Option<()> {
        let mut piece = [0; 16 << 10];
        // A reset is an end, too.
        match soon(self.stream.read(&mut piece)).await {
            Ok(0) | Err(_) => None,
            Ok(n) => {
                self.ahead.extend_from_slice(&piece[..n]);
                Some(())
            }
        }
    }
}
