//! `--model` or `--shape`: the checkpoint to measure.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use fathom_measure::Machine;
use fathom_model::{Error, Result, SyntheticShape, write_synthetic};
use tempfile::TempDir;

use crate::cli::output::Output;
use crate::cli::progress;

/// The checkpoint to measure.
#[derive(Debug, Args)]
pub struct SubjectArgs {
    /// The checkpoint to run: a HuggingFace directory, or a hub id in the HuggingFace cache
    #[arg(long, value_name = "M", conflicts_with = "shape", help_heading = "Model")]
    model: Option<String>,
    /// The shape of a synthetic checkpoint with random weights [default: small]
    #[arg(long, value_enum, value_name = "SHAPE", help_heading = "Model")]
    pub shape: Option<Shape>,
}

/// Shapes of synthetic checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Six layers of Qwen2.5-0.5B, with a vocabulary of 8192
    Small,
    /// Qwen2.5-0.5B
    #[value(name = "qwen2.5-0.5b")]
    Qwen05B,
    /// Qwen2.5-1.5B
    #[value(name = "qwen2.5-1.5b")]
    Qwen15B,
    /// Qwen2.5-7B: 15 GB
    #[value(name = "qwen2.5-7b")]
    Qwen7B,
    /// Llama-3.2-1B, with the biases of a Qwen2
    #[value(name = "llama-3.2-1b")]
    Llama1B,
}

impl Shape {
    /// The shapes of real models.
    pub const REAL: [Shape; 4] = [Shape::Qwen05B, Shape::Qwen15B, Shape::Llama1B, Shape::Qwen7B];

    /// The sizes of this shape.
    pub fn shape(self) -> SyntheticShape {
        match self {
            Shape::Small => {
                SyntheticShape { layers: 6, vocab: 8192, ..SyntheticShape::QWEN2_5_0_5B }
            }
            Shape::Qwen05B => SyntheticShape::QWEN2_5_0_5B,
            Shape::Qwen15B => SyntheticShape::QWEN2_5_1_5B,
            Shape::Qwen7B => SyntheticShape::QWEN2_5_7B,
            Shape::Llama1B => SyntheticShape::LLAMA_3_2_1B,
        }
    }

    /// The name in options and tables.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The directory and display name of a checkpoint to measure.
pub struct Subject {
    pub dir: PathBuf,
    name: String,
    /// Removes a synthetic checkpoint when dropped.
    _scratch: Option<TempDir>,
}

impl Subject {
    /// The display name. Call this once the weights are loaded: it removes a synthetic checkpoint,
    /// so that none is left on disk if the measurement is killed.
    pub fn into_name(self) -> String {
        self.name
    }
}

impl SubjectArgs {
    /// Whether `--model` or `--shape` was given.
    pub fn is_given(&self) -> bool {
        self.model.is_some() || self.shape.is_some()
    }

    /// Finds the checkpoint, or writes a synthetic one to `keep` or to a temporary directory.
    pub fn prepare(&self, keep: Option<&Path>, output: Output) -> Result<Subject> {
        if let Some(model) = &self.model {
            let dir = fathom_model::resolve_model_dir(model, |name| std::env::var_os(name))?;
            return Ok(Subject { dir, name: model.clone(), _scratch: None });
        }
        let shape = self.shape.unwrap_or(Shape::Small);
        check_memory(shape)?;
        let (dir, scratch) = match keep {
            Some(dir) => {
                check_empty(dir)?;
                (dir.to_owned(), None)
            }
            None => {
                let scratch = tempfile::tempdir().map_err(Error::io(
                    &std::env::temp_dir(),
                    "cannot hold a temporary directory",
                ))?;
                (scratch.path().to_owned(), Some(scratch))
            }
        };
        progress::note(output, "writing a checkpoint of random weights");
        write_synthetic(&dir, &shape.shape(), 1)?;
        let name = format!("random weights, shape {}", shape.name());
        Ok(Subject { dir, name, _scratch: scratch })
    }
}

/// Returns an error if a model of this shape does not fit in memory: its weights would be read from
/// disk again for every token.
fn check_memory(shape: Shape) -> Result<()> {
    let (needed, available) = (shape.shape().bytes(), Machine::detect().available);
    match available {
        Some(available) if available < needed + needed / 4 => {
            let gb = |bytes| bytes as f64 / 1e9;
            Err(Error::Request(format!(
                "--shape {}: the weights take {:.1} GB, but only {:.1} GB of memory are free",
                shape.name(),
                gb(needed),
                gb(available)
            )))
        }
        _ => Ok(()),
    }
}

fn check_empty(dir: &Path) -> Result<()> {
    // A directory that does not exist is created later.
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::file(
            dir,
            "is not empty; a checkpoint is written to an empty directory only",
        ));
    }
    Ok(())
}
