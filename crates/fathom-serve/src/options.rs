//! The options of a server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::keys::Keys;

/// The options of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where it listens. Port 0 chooses a free port.
    pub address: SocketAddr,
    /// The keys that clients may use; `None`: every client is served.
    pub keys: Option<Keys>,
    /// Number of texts that may wait for a place in the batch. Further ones are refused.
    pub max_queue: usize,
    /// Largest body of a request in bytes.
    pub max_body: usize,
    /// Longest time from a request's arrival to the end of its texts.
    pub request_timeout: Duration,
}

impl Default for ServerOptions {
    /// Port 8000 of this machine only, without keys; 256 waiting texts, 8 MiB, one hour.
    fn default() -> ServerOptions {
        ServerOptions {
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000),
            keys: None,
            max_queue: 256,
            max_body: 8 << 20,
            request_timeout: Duration::from_secs(3600),
        }
    }
}
