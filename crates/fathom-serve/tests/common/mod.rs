//! HTTP as the tests of this crate speak it.

use std::io::Write;
use std::net::TcpStream;

/// Sends a request for a completion. The connection ends with its answer.
pub fn send(client: &mut TcpStream, body: &str) {
    write!(
        client,
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
}
