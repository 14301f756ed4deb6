//! The user's options for turning prompts into model input.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::chat_template::{ChatTemplate, RenderOptions};
use crate::message::Message;
use crate::{Error, Result, Tokenizer};

/// The user's options for prompts. Together with the checkpoint's files and the traces they
/// determine all token ids.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptOptions {
    /// System message for conversations that have none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub system: Option<String>,
    /// Variables for the chat template; those of a line override these.
    #[serde(skip_serializing_if = "Map::is_empty", default)]
    pub template_kwargs: Map<String, Value>,
    /// The date that `strftime_now` returns in templates; `None` is [`crate::PINNED_DATE`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub date: Option<jiff::civil::Date>,
    /// Whether a bare text begins with BOS; with `None` the checkpoint's files decide.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bos: Option<bool>,
}

/// Parses the value of `--date`: `YYYY-MM-DD` or `today`.
///
/// # Errors
/// The text is neither.
pub fn parse_date(text: &str) -> Result<jiff::civil::Date> {
    match text {
        "today" => Ok(jiff::Zoned::now().date()),
        _ => text.parse().map_err(|_| {
            let expected = "expected a day such as 2025-01-31, or `today`";
            Error::Request(format!("`{text}` is not a date: {expected}"))
        }),
    }
}

impl PromptOptions {
    /// Whether no option is set.
    pub fn is_default(&self) -> bool {
        *self == PromptOptions::default()
    }

    /// The options and variables for rendering a template.
    pub fn render(&self) -> RenderOptions {
        RenderOptions {
            date: self.date,
            variables: self.template_kwargs.clone(),
            ..RenderOptions::default()
        }
    }

    /// Rejects options that would have no effect.
    ///
    /// # Errors
    /// A template option is set, but there is no chat template or the template does not use the
    /// option; `bos` is set, but the tokenizer names no BOS token or a chat template is used.
    pub fn check(
        &self,
        tokenizer: Option<&Tokenizer>,
        template: Option<&ChatTemplate>,
    ) -> Result<()> {
        let refuse = |problem: String| Err(Error::Request(problem));
        if self.bos.is_some() && tokenizer.is_none_or(|tokenizer| tokenizer.bos_id().is_none()) {
            return refuse("--bos: the model's tokenizer names no BOS token".to_owned());
        }
        if let (Some(_), Some(template)) = (self.bos, template) {
            return refuse(format!(
                "--bos applies to bare text only, but the chat template writes the special tokens \
                 ({}); add --no-chat-template",
                template.path().display()
            ));
        }
        let about_template = [
            ("--system", self.system.is_some()),
            ("--template-kwargs", !self.template_kwargs.is_empty()),
            ("--date", self.date.is_some()),
        ];
        let Some(template) = template else {
            return match about_template.iter().find(|(_, given)| *given) {
                None => Ok(()),
                Some((flag, _)) => {
                    refuse(format!("{flag} needs a chat template, but prompts are bare text here"))
                }
            };
        };
        let path = template.path().display();
        let unused = self.template_kwargs.keys().find(|name| !template.mentions(name));
        if let Some(name) = unused {
            return refuse(format!(
                "--template-kwargs: the chat template has no use for `{}` ({path})",
                crate::sanitize::sanitize(name)
            ));
        }
        if self.date.is_some() && !template.mentions("strftime_now") {
            let instead = match template.mentions("date_string") {
                true => "; it reads `date_string`, which --template-kwargs can set",
                false => "",
            };
            return refuse(format!(
                "--date: the chat template does not ask for the date ({path}){instead}"
            ));
        }
        match &self.system {
            Some(system) if !self.shows(template, system)? => {
                refuse(format!("--system: the chat template leaves a system message out ({path})"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a system message reaches the prompt.
    fn shows(&self, template: &ChatTemplate, system: &str) -> Result<bool> {
        let user = Message::user("Hello");
        let with = template.render(&[Message::new("system", system), user.clone()], &self.render());
        Ok(with? != template.render(&[user], &self.render())?)
    }
}
