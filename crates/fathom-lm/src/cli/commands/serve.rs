//! `fathom serve`: an OpenAI-compatible server.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use fathom_serve::{Keys, LogFormat, ServerOptions};

use crate::cli::decoding_args::DecodingArgs;
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::progress::{self, LoadingBar};
use crate::cli::prompt_args::PromptArgs;
use crate::cli::sampling_args::SamplingArgs;
use crate::{Error, Pair, Remark, Remarks, Result, ServeOptions};

/// Serve a model over HTTP, with the API of OpenAI
///
/// Requests from any number of clients are decoded in one batch. At temperature 0 the text is that
/// of the target alone, whatever the load, mode and draft. The same request gives the same text.
/// The first interrupt (Ctrl-C) or SIGTERM ends the server when the requests in progress are
/// answered, the second at once. Sampling options are the defaults of requests that do not set
/// them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom serve --target ./target --draft ./draft\n  \
    fathom serve --target org/name --sampling recommended --host 0.0.0.0 --api-key-file keys\n  \
    curl -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}' \\\n    \
    -H 'Content-Type: application/json' http://127.0.0.1:8000/v1/chat/completions\n\n\
    Endpoints: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, \
    /health, /ready, /metrics, /openapi.json and a page at /.\n\
    Sampled text is reproducible from its seed in the modes ar, suffix and pearl, and in sd with \
    a fixed --gamma. Otherwise it depends on the draft length, which is chosen by measurement.")]
pub struct Args {
    #[command(flatten)]
    decoding: DecodingArgs,
    /// Maximum number of texts in a batch
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch_size: usize,
    /// Compute every prompt whole, instead of taking keys and values of earlier texts that begin
    /// with the same tokens; the texts are the same
    #[arg(long)]
    no_prefix_cache: bool,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    prompt_args: PromptArgs,
}

/// Where and how the server talks to clients.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Server")]
struct HttpArgs {
    /// Address to listen at: 127.0.0.1 for this machine only, 0.0.0.0 for all networks
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", value_parser = address_of)]
    host: IpAddr,
    /// Port to listen at; 0 chooses a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// File with the keys that clients may use, one per line; without it every client is served
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Name by which clients ask for the model [default: the one in --target]
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Maximum number of texts that wait for a place in the batch; further requests are refused
    /// with status 429
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    max_queue: u32,
    /// Maximum length of a request's body in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20,
          value_parser = clap::value_parser!(u32).range(1024..=1 << 30))]
    max_body: u32,
    /// Maximum time of a request in seconds, from its arrival to the end of its texts
    #[arg(long, value_name = "SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    request_timeout: u32,
    /// Format of the log on standard error; RUST_LOG chooses what is logged
    #[arg(long, value_enum, default_value_t = LogName::Text, value_name = "FORMAT")]
    log_format: LogName,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogName {
    /// Lines of text
    Text,
    /// JSON lines
    Json,
}

/// The address of a host, which may be a name such as `localhost`.
fn address_of(host: &str) -> Result<IpAddr, String> {
    let addresses = (host, 0).to_socket_addrs();
    let first = addresses.ok().and_then(|mut addresses| addresses.next());
    first.map(|address| address.ip()).ok_or("expected an IP address, or a name that has one".into())
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    args.sampling.check()?;
    let mut remarks = Remarks::new();
    let server = args.http.options(&mut remarks)?;
    let pair = args.decoding.open(&args.prompt_args, &mut remarks)?;
    let options = args.decoding.options(args.batch_size, !args.no_prefix_cache);
    pair.engine_options(&options).validate()?;
    let defaults = args.sampling.params(pair.recommended_sampling(), &args.decoding.pair.target)?;
    defaults.validate_ids(pair.vocab())?;
    remarks.extend(args.advice(&pair));
    progress::remarks(output, &remarks.into_vec())?;

    let mut bar = LoadingBar::new(output);
    let engine = pair.spawn(&options, &mut |done, layers| bar.show(done, layers))?;
    drop(bar);
    fathom_serve::install_log(match args.http.log_format {
        LogName::Text => LogFormat::Text,
        LogName::Json => LogFormat::Json,
    });
    let name =
        Some(args.http.served_model_name.as_ref().unwrap_or(&args.decoding.pair.target).clone());
    let server = crate::serve(&engine, ServeOptions { server, name, defaults })?;
    server.end_on_signals();
    writeln!(out, "listening on http://{}", server.address())?;
    out.flush()?;
    server.wait().map_err(|error| match error {
        Error::Stopped(why) => Failure::Check(why),
        other => Failure::Input(other),
    })
}

impl HttpArgs {
    /// The options of the server. The keys are read; remarks about them are added.
    fn options(&self, remarks: &mut Remarks) -> Result<ServerOptions> {
        let keys = self.api_key_file.as_deref().map(Keys::from_file).transpose()?;
        let (keys, readable) = keys.unzip();
        remarks.extend(readable.flatten());
        if keys.is_none() && !self.host.is_loopback() {
            let text = format!(
                "--host {}: everyone who can reach this address is served; --api-key-file asks \
                 clients for a key",
                self.host
            );
            remarks.extend([Remark::advice("no-keys", text)]);
        }
        Ok(ServerOptions {
            address: SocketAddr::new(self.host, self.port),
            keys,
            max_queue: self.max_queue as usize,
            max_body: self.max_body as usize,
            request_timeout: Duration::from_secs(u64::from(self.request_timeout)),
        })
    }
}

impl Args {
    /// Advice about options that may not be what the user wants.
    fn advice(&self, pair: &Pair) -> Vec<Remark> {
        let recommended = self.sampling.recommendation(pair.recommended_sampling());
        let beyond = self.decoding.draft_remark(pair, usize::MAX);
        recommended.into_iter().chain(beyond).collect()
    }
}
