#![doc = include_str!("../README.md")]

mod app;
mod body;
mod connection;
mod error;
mod generation;
pub mod grammar;
mod keys;
mod limits;
mod log;
mod metrics;
mod model;
mod openapi;
mod options;
mod request;
mod request_id;
mod routes;
mod server;
mod sinks;
mod tools;
mod types;

pub use keys::Keys;
pub use log::{LogFormat, install as install_log};
pub use model::ServedModel;
pub use options::ServerOptions;
pub use server::Server;
pub use sinks::{Scorer, SinkOptions, SinkSource, SinkView, TextSink, Watch};
