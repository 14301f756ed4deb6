//! A minimal HTTP client for tests of the server: one connection per request.

// Each test binary uses only part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The `error` of a response, which must be one sentence in OpenAI's format.
    #[track_caller]
    pub fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && message.len() < 400 && !message.contains('\n'), "{message}");
        assert!(error["type"].is_string() && error.get("param").is_some(), "{error}");
        error
    }

    /// The data of the server-sent events, without `[DONE]`, and whether that was the last.
    pub fn events(&self) -> (Vec<Value>, bool) {
        let data = self.text().lines().filter_map(|line| line.strip_prefix("data: "));
        let mut events: Vec<&str> = data.collect();
        let done = events.pop_if(|last| *last == "[DONE]").is_some();
        (events.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect(), done)
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

/// The bytes of a request.
pub fn bytes(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    if method == "POST" {
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            head += "content-type: application/json\r\n";
        }
        head += &format!("content-length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut stream = connect(address);
    // A server that refuses a long body may close the connection before all of it is sent.
    let _ = stream.write_all(&bytes(method, path, headers, body));
    read(&mut stream)
}

/// Reads a response to the end of the connection.
pub fn read(stream: &mut TcpStream) -> Reply {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    parse(&all).unwrap_or_else(|| panic!("{end:?}: {}", String::from_utf8_lossy(&all)))
}

/// Parses a whole response. `None` if it is cut off.
pub fn parse(all: &[u8]) -> Option<Reply> {
    let end = all.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&all[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers: BTreeMap<String, String> = lines.filter_map(header).collect();
    let rest = &all[end + 4..];
    let body = match headers.get("transfer-encoding").map(String::as_str) {
        Some("chunked") => unchunked(rest)?,
        _ => {
            let length: usize = headers.get("content-length")?.parse().ok()?;
            rest.get(..length)?.to_vec()
        }
    };
    Some(Reply { status, headers, body })
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..length)?);
        rest = rest.get(length + 2..)?;
    }
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    request(address, "GET", path, &[], b"")
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    request(address, "POST", path, &[], body.to_string().as_bytes())
}
