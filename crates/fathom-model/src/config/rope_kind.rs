//! The rope types with their parameters, with HuggingFace's defaults filled in.

use serde_json::Value;

use super::architecture::RopeTypes;
use super::fields::Fields;
use super::rope::{MAX_POSITIONS, RopeContext};
use crate::rope::{longrope_attention_factor, yarn_attention_factor};
use crate::sanitize::sanitize;
use crate::{Error, Result, RopeKind};

/// The fields that hold the parameters of a rope type.
pub(super) struct RopeTypeFields<'a> {
    /// The whole config.
    pub root: &'a Fields<'a>,
    /// `rope_scaling` or `rope_parameters`.
    pub scaling: &'a Fields<'a>,
    /// How many components of a head are rotated.
    pub rotary_dim: usize,
    pub context: &'a RopeContext,
}

impl RopeTypeFields<'_> {
    /// Reads the rope type and its parameters.
    pub(super) fn read(&self) -> Result<RopeKind> {
        // transformers writes both names of the field, so both are marked as read.
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
                let other = sanitize(other);
                let problem =
                    format!("is `{other}`, which is not supported; supported are {known}");
                Err(self.scaling.error(field, problem))
            }
        }
    }

    /// The rope type under its current name.
    fn name(&self, field: &str) -> Result<&str> {
        let name = match self.scaling.text(field)? {
            Some(name) => name,
            None if self.scaling.names("factor") || self.scaling.names("long_factor") => {
                let problem = "is missing, expected the name of a rope type";
                return Err(self.scaling.error("rope_type", problem));
            }
            None => "default",
        };
        let class = self.context.architecture;
        match (class.facts().rope_types, name) {
            (_, "su") | (RopeTypes::LongRopeOnly, "yarn") => Ok("longrope"),
            (RopeTypes::LongRopeOnly, name) if name != "default" && name != "longrope" => {
                let name = sanitize(name);
                let problem = format!("is `{name}`, expected default or longrope for {class}");
                Err(self.scaling.error(field, problem))
            }
            (_, name) => Ok(name),
        }
    }

    fn dynamic(&self, field: &str) -> Result<RopeKind> {
        // The exponent of the base's growth is d / (d - 2).
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
        // An absent factor is an error. A null factor means the ratio of the two lengths.
        if !self.scaling.names("factor") {
            return Err(self.missing("factor"));
        }
        let factor = self.factor_or_ratio(original)?;
        // HuggingFace treats zero as absent.
        let given = |name| {
            let expected = "a number of at least 0";
            let number = self.scaling.number(name, expected, |number| number >= 0.0)?;
            Ok::<_, Error>(number.filter(|&number| number != 0.0))
        };
        let (mscale, mscale_all_dim) = (given("mscale")?, given("mscale_all_dim")?);
        let attention_factor = self.attention_factor()?;
        // They have an effect only together, and only without attention_factor.
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

    /// `factor`, or else the ratio of `max_position_embeddings` to the trained length.
    fn factor_or_ratio(&self, original: usize) -> Result<f64> {
        let ratio = self.context.max_position_embeddings as f64 / original as f64;
        Ok(self.scaling.number_above("factor", 0.0)?.unwrap_or(ratio))
    }

    /// The factor on cosines and sines, if the config has one.
    fn attention_factor(&self) -> Result<Option<f64>> {
        let expected = "a number of at least 0";
        self.scaling.number("attention_factor", expected, |factor| factor >= 0.0)
    }

    /// The trained length, `original_max_position_embeddings`, looked up as HuggingFace does: the
    /// top level or its class's default (Phi3 has one, so it never reads the nested field), then
    /// the nested object, then `max_position_embeddings`. At least 2, because its logarithm is a
    /// divisor.
    fn original(&self) -> Result<usize> {
        let name = "original_max_position_embeddings";
        let range = 2..=MAX_POSITIONS;
        let defaults = &self.context.architecture.facts().defaults;
        let top = self.root.size(name, range.clone())?;
        if let Some(top) = top.or(defaults.original_max_position_embeddings) {
            // A nested field that states the same value counts as read.
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
