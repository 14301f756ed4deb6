//! The rope types with their parameters, HuggingFace's defaults filled in.

use serde_json::Value;

use super::Architecture;
use super::fields::Fields;
use super::rope::{Context, MAX_POSITIONS};
use crate::brief::brief;
use crate::rope::{longrope_attention_factor, yarn_attention_factor};
use crate::{Error, Result, RopeKind};

/// Where the parameters of a rope type are found.
pub(super) struct KindFields<'a> {
    /// The whole config.
    pub root: &'a Fields<'a>,
    /// The object of the rotary embedding.
    pub scaling: &'a Fields<'a>,
    /// How many components of a head rotate.
    pub rotary_dim: usize,
    pub context: &'a Context,
}

impl KindFields<'_> {
    /// Reads the rope type and its parameters.
    pub(super) fn read(&self) -> Result<RopeKind> {
        // Both names of the field are asked for: transformers writes both.
        let (newer, older) = (self.scaling.get("rope_type"), self.scaling.get("type"));
        if newer.is_some() && older != newer {
            self.scaling.had_no_effect("type");
        }
        let field = if newer.is_some() { "rope_type" } else { "type" };
        match self.name(field)? {
            "default" => Ok(RopeKind::Default),
            "linear" => Ok(RopeKind::Linear { factor: self.required("factor")? }),
            "dynamic" => self.dynamic(field),
            "llama3" => self.llama3(),
            "yarn" => self.yarn(),
            "longrope" => self.longrope(),
            other => {
                let known = "default, linear, dynamic, llama3, yarn and longrope (su)";
                let other = brief(other);
                let problem =
                    format!("is `{other}`, which is not supported; supported are {known}");
                Err(self.scaling.error(field, problem))
            }
        }
    }

    /// The rope type under its present name.
    fn name(&self, field: &str) -> Result<&str> {
        let name = match self.scaling.text(field)? {
            Some(name) => name,
            None if self.scaling.names("factor") || self.scaling.names("long_factor") => {
                let problem = "is missing, expected the name of a rope type";
                return Err(self.scaling.error("rope_type", problem));
            }
            None => "default",
        };
        match (self.context.architecture, name) {
            (_, "su") => Ok("longrope"),
            // Early Phi-3 configs say yarn and mean longrope; the class knows no other type.
            (Architecture::Phi3, "yarn") => Ok("longrope"),
            (Architecture::Phi3, name) if name != "default" && name != "longrope" => {
                let (name, class) = (brief(name), Architecture::Phi3);
                let problem = format!("is `{name}`, expected default or longrope for {class}");
                Err(self.scaling.error(field, problem))
            }
            (_, name) => Ok(name),
        }
    }

    fn dynamic(&self, field: &str) -> Result<RopeKind> {
        // The base grows by the power d / (d - 2).
        if self.rotary_dim <= 2 {
            let problem = "is `dynamic`, which needs a rotary width above 2";
            return Err(self.scaling.error(field, problem));
        }
        let max_position_embeddings = self.context.max_position_embeddings;
        Ok(RopeKind::Dynamic { factor: self.required("factor")?, max_position_embeddings })
    }

    fn llama3(&self) -> Result<RopeKind> {
        let low_freq_factor = self.required("low_freq_factor")?;
        let high_freq_factor = self.required("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            let problem = format!(
                "is {high_freq_factor}, expected more than low_freq_factor, {low_freq_factor}"
            );
            return Err(self.scaling.error("high_freq_factor", problem));
        }
        Ok(RopeKind::Llama3 {
            factor: self.required("factor")?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: self.original()?,
        })
    }

    fn yarn(&self) -> Result<RopeKind> {
        let original = self.original()?;
        // Absent is an error, null is not: null asks for the ratio of the two lengths.
        if !self.scaling.names("factor") {
            return Err(self.missing("factor"));
        }
        let factor = self.factor_or_ratio(original)?;
        // HuggingFace takes a zero for "not given".
        let given = |name| {
            let expected = "a number of at least 0";
            let number = self.scaling.number(name, expected, |number| number >= 0.0)?;
            Ok::<_, Error>(number.filter(|&number| number != 0.0))
        };
        let (mscale, mscale_all_dim) = (given("mscale")?, given("mscale_all_dim")?);
        let attention_factor = self.attention_factor()?;
        // They count together, and only where there is no factor.
        if attention_factor.is_some() || mscale.is_none() || mscale_all_dim.is_none() {
            self.scaling.had_no_effect("mscale");
            self.scaling.had_no_effect("mscale_all_dim");
        }
        Ok(RopeKind::Yarn {
            factor,
            attention_factor: attention_factor
                .unwrap_or_else(|| yarn_attention_factor(factor, mscale, mscale_all_dim)),
            beta_fast: given("beta_fast")?.unwrap_or(32.0),
            beta_slow: given("beta_slow")?.unwrap_or(1.0),
            original_max_position_embeddings: original,
            truncate: self.scaling.flag("truncate")?.unwrap_or(true),
        })
    }

    fn longrope(&self) -> Result<RopeKind> {
        let original = self.original()?;
        let factor = self.factor_or_ratio(original)?;
        let len = self.rotary_dim / 2;
        let factors = |name| {
            let problem = || format!("is missing, expected a list of {len} numbers");
            let factors = self.scaling.positive_numbers(name, len)?;
            factors.ok_or_else(|| self.scaling.error(name, problem()))
        };
        let attention_factor = self.attention_factor()?;
        Ok(RopeKind::LongRope {
            short_factor: factors("short_factor")?,
            long_factor: factors("long_factor")?,
            original_max_position_embeddings: original,
            attention_factor: attention_factor
                .unwrap_or_else(|| longrope_attention_factor(factor, original)),
        })
    }

    /// `factor`, or else how many times longer than the trained length sequences may be.
    fn factor_or_ratio(&self, original: usize) -> Result<f64> {
        let ratio = self.context.max_position_embeddings as f64 / original as f64;
        Ok(self.scaling.number_above("factor", 0.0)?.unwrap_or(ratio))
    }

    /// The factor on cosines and sines, where the config names it.
    fn attention_factor(&self) -> Result<Option<f64>> {
        let expected = "a number of at least 0";
        self.scaling.number("attention_factor", expected, |factor| factor >= 0.0)
    }

    /// The trained length, `original_max_position_embeddings`, as HuggingFace looks for it: the top
    /// level first (where Phi3's class has a default, so that the nested one never counts), then
    /// the nested object, then `max_position_embeddings`. At least 2, because its logarithm
    /// divides.
    fn original(&self) -> Result<usize> {
        let name = "original_max_position_embeddings";
        let range = 2..=MAX_POSITIONS;
        let defaults = self.context.architecture.defaults();
        let top = self.root.size(name, range.clone())?;
        if let Some(top) = top.or(defaults.original_max_position_embeddings) {
            // Asked for only to know whether it says the same.
            if self.scaling.get(name).and_then(Value::as_u64) != u64::try_from(top).ok() {
                self.scaling.had_no_effect(name);
            }
            return Ok(top);
        }
        let longest = self.context.max_position_embeddings.max(2);
        Ok(self.scaling.size(name, range)?.unwrap_or(longest))
    }

    fn required(&self, name: &str) -> Result<f64> {
        self.scaling.number_above(name, 0.0)?.ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Error {
        self.scaling.error(name, "is missing, expected a number above 0")
    }
}
