//! The limits of requests that no option changes. Each protects memory or other requests; none
//! restricts ordinary use.

use std::time::Duration;

/// Largest `n`, and largest number of texts of one request.
pub const CHOICES: usize = 128;
/// Number of stop strings.
pub const STOP_STRINGS: usize = 16;
/// Length of a stop string in bytes.
pub const STOP_STRING: usize = 1024;
/// Number of messages of a conversation.
pub const MESSAGES: usize = 10_000;
/// Number of `logit_bias` entries; the engine accepts fewer.
pub const LIST: usize = 10_000;
/// Number of token ids in a list.
pub const IDS: usize = 4_000_000;
/// Number of tools.
pub const TOOLS: usize = 128;
/// Largest `top_logprobs`.
pub const TOP_LOGPROBS: usize = 20;
/// Length of an `x-request-id` that is echoed.
pub const REQUEST_ID: usize = 128;

/// Time for the headers of a request.
pub const HEADER_TIME: Duration = Duration::from_secs(20);
/// Time for the whole body of a request.
pub const BODY_TIME: Duration = Duration::from_secs(60);
/// Time between two pieces of a body.
pub const BODY_PAUSE: Duration = Duration::from_secs(10);
/// Time between two pieces of a body that is too long and read for the client's sake only.
pub const DISCARD_PAUSE: Duration = Duration::from_millis(100);
/// Time for the whole of such a body.
pub const DISCARD_TIME: Duration = Duration::from_secs(3);
/// Time in which a client must accept some of a response that is waiting for it.
pub const WRITE_PAUSE: Duration = Duration::from_secs(120);
/// Time between comments that keep an idle stream open.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Open connections. Further ones wait until one closes.
pub const CONNECTIONS: usize = 4096;
/// Requests whose prompts are encoded at the same time.
pub const PREPARING: usize = 4;
