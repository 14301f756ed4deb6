//! `fathom capture`: activations of a forward pass, written to a safetensors file.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::failure::Failure;
use crate::cli::indices::Indices;
use crate::cli::model_args::{ModelArgs, load};
use crate::cli::output::Output;
use crate::cli::progress;
use crate::cli::prompt_args::PromptArgs;
use crate::cli::row_args::RowArgs;
use crate::{
    CaptureRequest, Error, ModelFiles, Remark, Remarks, Result, Site, Traces, parse_edits,
};

/// Write activations of one forward pass to a safetensors file
///
/// Tensors are named `site.layer` (`resid_post.17`) and are f32, with one row per position;
/// per-head sites are [heads, positions, head_dim]. TransformerLens names
/// (`blocks.17.hook_resid_post`) are accepted too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    fathom capture --model ./qwen --traces traces.jsonl --index 3 --sites resid_post,mlp_out \
    --layers 3,17..22 --out captured.safetensors\n  \
    echo '[1, 15, 7]' > ids.json && fathom capture --model ./qwen --ids ids.json --sites logits \
    --out logits.safetensors")]
pub struct Args {
    #[command(flatten)]
    tokens: TokenSource,
    /// With --traces: the index of the trace to run, counted from 0, or from -1 at the end
    #[arg(
        long,
        value_name = "I",
        requires = "traces",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    index: i64,
    #[arg(
        long,
        value_delimiter = ',',
        required = true,
        value_parser = parse_site,
        value_name = "SITES",
        help = sites_help()
    )]
    sites: Vec<(Site, Option<usize>)>,
    /// Layers, counted from 0, such as `3,17..22` (22 excluded), or from the end, such as `-1` or
    /// `-3..` [default: all]
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    layers: Option<Indices>,
    /// Positions, counted from 0, such as `0,100..200`, or from the end, such as `-1` or `-10..`
    /// [default: all]
    #[arg(long, value_name = "POSITIONS", allow_hyphen_values = true)]
    positions: Option<Indices>,
    /// Intervene in the pass, and capture the edited values: SITE.LAYER@POSITIONS=CHANGE, where the
    /// change is zero, scale(X), clamp(NORM), copy(POSITION), mean(POSITIONS),
    /// replace(FILE:TENSOR:ROW) or add(FILE:TENSOR:ROW) with a row of a capture file. Neurons and
    /// other columns are selected in brackets: `mlp_elementwise.3[17,40]@*=zero`. May be given
    /// several times
    #[arg(long = "edit", value_name = "EDIT")]
    edits: Vec<String>,
    /// The file to write; must not exist yet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Refuse to write more than this many GiB
    #[arg(long, value_name = "GIB", default_value_t = 8)]
    max_gib: u64,
    #[command(flatten)]
    rows: RowArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Where the tokens come from.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct TokenSource {
    /// A file of token ids: a JSON list, or numbers separated by spaces or newlines
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// A file of traces; --index selects one
    #[arg(long, value_name = "FILE")]
    traces: Option<PathBuf>,
}

fn sites_help() -> String {
    let names: Vec<&str> = Site::all().map(Site::name).collect();
    format!("What to capture, comma separated: {}", names.join(", "))
}

fn parse_site(text: &str) -> Result<(Site, Option<usize>), String> {
    Site::parse(text.trim()).map_err(|error| error.to_string())
}

pub fn run(args: &Args, output: Output, out: &mut dyn Write) -> Result<(), Failure> {
    let files = args.files()?;
    let (ids, remarks) = args.token_ids(&files)?;
    progress::remarks(output, &remarks)?;
    let config = files.config();
    let layers = match &args.layers {
        Some(layers) => layers.resolve("layer", config.layers)?,
        None => Vec::new(),
    };
    let positions =
        args.positions.as_ref().map(|p| p.resolve("position", ids.len())).transpose()?;
    let edits: Vec<&str> = args.edits.iter().map(String::as_str).collect();
    let edits = parse_edits(&edits, config, ids.len())?;
    let request = CaptureRequest::new(&args.sites, &layers, positions, config)?.with_edits(edits);

    let bytes = request.bytes(config, ids.len());
    if bytes > args.max_gib << 30 {
        return Err(Failure::Input(Error::Request(format!(
            "the capture would be {}, more than --max-gib {} allows: name fewer sites, layers or \
             positions, or raise the limit",
            gib(bytes),
            args.max_gib
        ))));
    }
    progress::note(output, &format!("capturing {} from {} tokens", gib(bytes), ids.len()));

    let model = load(files, output)?;
    let bar = progress::bar(output, "capturing", "tokens", ids.len() as u64);
    let captured = model.capture(&ids, &request, &args.out, &mut |tokens| {
        bar.set_position(tokens as u64);
    });
    bar.finish_and_clear();
    captured?;

    let file = args.out.display().to_string();
    if output.json {
        writeln!(
            out,
            "{}",
            json!({ "file": file, "tokens": ids.len(), "bytes": bytes, "remarks": remarks })
        )?;
    } else {
        writeln!(out, "{file}")?;
    }
    Ok(())
}

impl Args {
    /// The model's files. The tokenizer is read only if it is needed.
    fn files(&self) -> Result<ModelFiles> {
        match &self.tokens.ids {
            Some(_) => self.model.options().ids_only().open(),
            None => self.prompts.apply(self.model.options()).open(),
        }
    }

    /// The tokens to run, and remarks about them and the model.
    fn token_ids(&self, files: &ModelFiles) -> Result<(Vec<u32>, Vec<Remark>)> {
        let mut remarks = Remarks::new();
        remarks.extend(files.remarks().iter().cloned());
        if let Some(path) = &self.tokens.ids {
            if self.prompts.no_chat_template || !self.prompts.options().is_default() {
                let problem = "--ids reads token ids: options about prompts need --traces";
                return Err(Error::Request(problem.to_owned()));
            }
            let (ids, vocab) = (read_ids(path)?, files.config().vocab);
            return match ids.iter().find(|id| **id as usize >= vocab) {
                Some(id) => Err(Error::file(
                    path,
                    format!("token id {id} is outside the model's vocabulary of {vocab}"),
                )),
                None => Ok((ids, remarks.into_vec())),
            };
        }
        // clap ensures that one of the two is given.
        let path = self.tokens.traces.as_deref().unwrap_or(Path::new(""));
        let trace = Traces::read_one(path, files, &self.rows.fields(), self.index)?;
        remarks.extend(trace.remarks().iter().cloned());
        let ids = trace.iter().next().map(|trace| trace.ids.clone());
        Ok((ids.unwrap_or_default(), remarks.into_vec()))
    }
}

/// Reads token ids from a file: `[1, 2, 3]`, or without brackets or commas.
fn read_ids(path: &Path) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot be read"))?;
    let separator = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    let number = |word: &str| {
        word.parse().map_err(|_| Error::file(path, format!("`{word}` is not a token id")))
    };
    let ids: Vec<u32> =
        text.split(separator).filter(|word| !word.is_empty()).map(number).collect::<Result<_>>()?;
    match ids.is_empty() {
        true => Err(Error::file(path, "holds no token ids")),
        false => Ok(ids),
    }
}

/// A size in KiB, MiB or GiB.
fn gib(bytes: u64) -> String {
    match bytes {
        0..0x0010_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x0010_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
