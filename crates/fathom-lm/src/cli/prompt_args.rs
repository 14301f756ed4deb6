//! How prompts are formatted: the arguments of every command that encodes text.

use crate::{ModelOptions, PromptOptions};
use clap::{Args, ValueEnum};
use fathom_model::{parse_date, parse_template_kwargs};
use serde_json::{Map, Value};

/// Options for formatting prompts.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Prompts")]
pub struct PromptArgs {
    /// Encode prompts as bare text, even if the model has a chat template
    #[arg(long)]
    pub no_chat_template: bool,
    /// System message for conversations that have none
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Variables for the chat template, such as '{"enable_thinking": false}'; a row's
    /// `chat_template_kwargs` override them
    #[arg(long, value_name = "JSON", value_parser = kwargs)]
    template_kwargs: Option<Kwargs>,
    /// Date for chat templates that print the current date: YYYY-MM-DD or `today` [default:
    /// 2024-07-26, so that results do not depend on the day]
    #[arg(long, value_name = "DATE", value_parser = date)]
    date: Option<jiff::civil::Date>,
    /// Whether bare text starts with the tokenizer's BOS [default: as in HuggingFace transformers]
    #[arg(long, value_enum, value_name = "YES|NO")]
    bos: Option<YesNo>,
}

/// The object of `--template-kwargs`.
#[derive(Clone, Debug)]
struct Kwargs(Map<String, Value>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum YesNo {
    /// Exactly one BOS
    Yes,
    /// No BOS
    No,
}

impl PromptArgs {
    /// Applies these options to a model.
    pub fn apply(&self, model: ModelOptions) -> ModelOptions {
        model.chat_template(!self.no_chat_template).prompt_options(self.options())
    }

    /// The options for the library.
    pub fn options(&self) -> PromptOptions {
        PromptOptions {
            system: self.system.clone(),
            template_kwargs: self
                .template_kwargs
                .clone()
                .map(|kwargs| kwargs.0)
                .unwrap_or_default(),
            date: self.date,
            bos: self.bos.map(|bos| bos == YesNo::Yes),
        }
    }
}

fn kwargs(text: &str) -> Result<Kwargs, String> {
    parse_template_kwargs(text).map(Kwargs).map_err(|error| error.to_string())
}

fn date(text: &str) -> Result<jiff::civil::Date, String> {
    parse_date(text).map_err(|error| error.to_string())
}
