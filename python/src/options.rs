//! How models are loaded: the arguments that `fl.Model` and `fl.Generator` share.

use fathom_lm::fathom_model::{parse_date, parse_template_kwargs};
use fathom_lm::{ModelOptions, PromptOptions, Result, parse_isa, parse_precision};
use pyo3::prelude::*;

/// The dictionary that `fathom_lm._options.load_options` makes.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct LoadOptions {
    precision: String,
    isa: Option<String>,
    chat_template: bool,
    system: Option<String>,
    /// A JSON object.
    template_kwargs: Option<String>,
    date: Option<String>,
    bos: Option<bool>,
}

impl LoadOptions {
    /// The library's options for one model.
    ///
    /// # Errors
    /// A precision, instruction set, date or template variable that has no meaning.
    pub fn model(&self, path: &str, adapter: Option<&str>) -> Result<ModelOptions> {
        let template_kwargs = self.template_kwargs.as_deref().map(parse_template_kwargs);
        let prompts = PromptOptions {
            system: self.system.clone(),
            template_kwargs: template_kwargs.transpose()?.unwrap_or_default(),
            date: self.date.as_deref().map(parse_date).transpose()?,
            bos: self.bos,
        };
        let mut options = ModelOptions::new(path)
            .precision(parse_precision(&self.precision)?)
            .chat_template(self.chat_template)
            .prompt_options(prompts);
        if let Some(isa) = &self.isa {
            options = options.isa(parse_isa(isa)?);
        }
        if let Some(adapter) = adapter {
            options = options.adapter(adapter);
        }
        Ok(options)
    }
}
