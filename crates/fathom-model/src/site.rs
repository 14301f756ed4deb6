//! The sites of the forward pass: the tensors that can be read or replaced.
//!
//! The table below is the only list of them. The enum, the names, the shapes and the order of
//! captures all come from it, so a new site is one line here and one tap in the forward pass.

use std::fmt;

use crate::{Error, ModelConfig, Result};

/// Declares [`Site`] and `FACTS` from one row per site: the variant, its name, TransformerLens'
/// name without `blocks.{l}.`, where the pass computes it, its shape, and what it is.
macro_rules! sites {
    ($($variant:ident, $name:literal, $lens:expr, $stage:ident, $shape:ident, $what:literal;)*) => {
        /// A tensor of the forward pass. `T` is the number of positions. Between layers the
        /// residual stream is raw: the final norm is not applied to it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Site {
            $(#[doc = concat!("`", $name, "` `", shape_text!($shape), "`: ", $what)] $variant,)*
        }

        /// The rows of the table, indexed by `Site as usize`.
        const FACTS: &[Facts] = &[$(Facts {
            site: Site::$variant,
            name: $name,
            lens: $lens,
            stage: Stage::$stage,
            shape: Shape::$shape,
        },)*];
    };
}

/// A shape as documentation writes it.
macro_rules! shape_text {
    (Hidden) => {
        "[T, hidden]"
    };
    (Intermediate) => {
        "[T, intermediate]"
    };
    (Vocab) => {
        "[T, vocab]"
    };
    (Heads) => {
        "[heads, T, head_dim]"
    };
    (KvHeads) => {
        "[kv_heads, T, head_dim]"
    };
    (JoinedHeads) => {
        "[T, heads · head_dim]"
    };
    (Weights) => {
        "[heads, T, T]"
    };
    (Scores) => {
        "[heads, T]"
    };
}

// In the order of the forward pass.
#[rustfmt::skip]
sites! {
    Embed, "embed", Some("hook_embed"), BeforeLayers, Hidden, "token embedding.";
    ResidPre, "resid_pre", Some("hook_resid_pre"), Layer, Hidden,
        "residual stream entering the layer.";
    AttnIn, "attn_in", None, Layer, Hidden, "normed input of attention.";
    QPreRope, "q_pre_rope", Some("attn.hook_q"), Layer, Heads,
        "queries after bias and q-norm, before rotary.";
    KPreRope, "k_pre_rope", Some("attn.hook_k"), Layer, KvHeads,
        "keys after bias and k-norm, before rotary.";
    Q, "q", Some("attn.hook_rot_q"), Layer, Heads, "queries after rotary.";
    K, "k", Some("attn.hook_rot_k"), Layer, KvHeads, "keys after rotary.";
    V, "v", Some("attn.hook_v"), Layer, KvHeads, "values.";
    AttnWeights, "attn_weights", Some("attn.hook_pattern"), Layer, Weights,
        "softmax probabilities; memory is quadratic in T.";
    SinkScore, "sink_score", None, Layer, Scores,
        "sink score (docs/definitions.md), without storing `attn_weights`.";
    AttnCtx, "attn_ctx", Some("attn.hook_z"), Layer, JoinedHeads,
        "concatenated heads, input of the output projection.";
    AttnOut, "attn_out", Some("hook_attn_out"), Layer, Hidden,
        "output of attention, which is added to the residual stream.";
    ResidMid, "resid_mid", Some("hook_resid_mid"), Layer, Hidden,
        "residual stream after attention.";
    MlpIn, "mlp_in", None, Layer, Hidden, "normed input of the MLP.";
    MlpGate, "mlp_gate", Some("mlp.hook_pre"), Layer, Intermediate,
        "output of the gate projection.";
    MlpUp, "mlp_up", Some("mlp.hook_pre_linear"), Layer, Intermediate,
        "output of the up projection.";
    MlpAct, "mlp_act", None, Layer, Intermediate, "silu(gate).";
    MlpElementwise, "mlp_elementwise", Some("mlp.hook_post"), Layer, Intermediate,
        "silu(gate) · up, input of the down projection.";
    MlpOut, "mlp_out", Some("hook_mlp_out"), Layer, Hidden,
        "output of the MLP, which is added to the residual stream.";
    ResidPost, "resid_post", Some("hook_resid_post"), Layer, Hidden,
        "raw output of the layer; the paper's h^l.";
    FinalNorm, "final_norm", None, AfterLayers, Hidden, "output of the final norm.";
    Logits, "logits", None, AfterLayers, Vocab, "output of the language-model head.";
}

/// One row of the table.
struct Facts {
    site: Site,
    name: &'static str,
    lens: Option<&'static str>,
    stage: Stage,
    shape: Shape,
}

/// Where the forward pass computes a site.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    BeforeLayers,
    /// In every layer.
    Layer,
    AfterLayers,
}

/// The shapes of `shape_text!`.
#[derive(Clone, Copy)]
enum Shape {
    Hidden,
    Intermediate,
    Vocab,
    Heads,
    KvHeads,
    JoinedHeads,
    Weights,
    Scores,
}

/// Shape of a site's captured values for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[T, width]`.
    Rows {
        /// Columns.
        width: usize,
    },
    /// `[heads, T, head_dim]`. A probe sees the same values as rows `[T, heads · head_dim]`.
    Heads {
        /// Query or key/value heads.
        heads: usize,
        /// Width of one head.
        head_dim: usize,
    },
    /// `[heads, T, T]`.
    Weights {
        /// Query heads.
        heads: usize,
    },
    /// `[heads, T]`.
    Scores {
        /// Query heads.
        heads: usize,
    },
}

impl Layout {
    /// Width of a row as a probe receives it; `None` for values that are not one row per token.
    pub(crate) fn row_width(self) -> Option<usize> {
        match self {
            Layout::Rows { width } => Some(width),
            Layout::Heads { heads, head_dim } => Some(heads * head_dim),
            Layout::Weights { .. } | Layout::Scores { .. } => None,
        }
    }

    /// Shape of a capture that keeps `kept` of a text's `tokens` positions. For `attn_weights` the
    /// positions select queries; all keys are kept.
    pub(crate) fn captured_shape(self, kept: usize, tokens: usize) -> Vec<usize> {
        match self {
            Layout::Rows { width } => vec![kept, width],
            Layout::Heads { heads, head_dim } => vec![heads, kept, head_dim],
            Layout::Weights { heads } => vec![heads, kept, tokens],
            Layout::Scores { heads } => vec![heads, kept],
        }
    }
}

impl Site {
    fn facts(self) -> &'static Facts {
        &FACTS[self as usize]
    }

    /// All sites, in the order of the forward pass.
    pub fn all() -> impl Iterator<Item = Site> {
        FACTS.iter().map(|facts| facts.site)
    }

    /// The site's name in captures and on the command line.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The name of its tensor in a capture: `resid_post.3`, or `embed` for a site outside the
    /// layers.
    pub fn name_at(self, layer: usize) -> String {
        match self.per_layer() {
            true => format!("{self}.{layer}"),
            false => self.to_string(),
        }
    }

    /// TransformerLens' name for the same tensor, if it has one: `blocks.3.hook_resid_post`.
    pub fn lens_name_at(self, layer: usize) -> Option<String> {
        let name = self.facts().lens?;
        Some(match self.per_layer() {
            true => format!("blocks.{layer}.{name}"),
            false => name.to_owned(),
        })
    }

    /// Whether every layer has this site.
    pub fn per_layer(self) -> bool {
        self.facts().stage == Stage::Layer
    }

    /// How many of the model's `layers` a pass must compute to reach this site of layer `layer`.
    pub(crate) fn layers_needed(self, layer: usize, layers: usize) -> usize {
        match self.facts().stage {
            Stage::BeforeLayers => 0,
            Stage::Layer => layer + 1,
            Stage::AfterLayers => layers,
        }
    }

    /// Whether a probe may replace the values ([`crate::Access::Edit`]).
    pub fn editable(self) -> bool {
        self.has_rows()
    }

    /// Whether its values are one row per token ([`crate::Access::Norms`]).
    pub fn has_rows(self) -> bool {
        !matches!(self.facts().shape, Shape::Weights | Shape::Scores)
    }

    /// Shape of the captured values for a model.
    pub fn layout(self, config: &ModelConfig) -> Layout {
        let ModelConfig { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *config;
        match self.facts().shape {
            Shape::Hidden => Layout::Rows { width: hidden },
            Shape::Intermediate => Layout::Rows { width: intermediate },
            Shape::Vocab => Layout::Rows { width: vocab },
            Shape::Heads => Layout::Heads { heads, head_dim },
            Shape::KvHeads => Layout::Heads { heads: kv_heads, head_dim },
            Shape::JoinedHeads => Layout::Rows { width: heads * head_dim },
            Shape::Weights => Layout::Weights { heads },
            Shape::Scores => Layout::Scores { heads },
        }
    }

    /// Parses a site: `resid_post`, `resid_post.3`, or TransformerLens'
    /// `blocks.3.hook_resid_post`. Returns the layer if the text names one.
    ///
    /// # Errors
    /// An unknown name (the message lists the known ones); a layer on a site outside the layers.
    pub fn parse(text: &str) -> Result<(Site, Option<usize>)> {
        let unknown = || {
            let names: Vec<&str> = Site::all().map(Site::name).collect();
            Error::Request(format!("unknown site `{text}`: expected one of {}", names.join(", ")))
        };
        let number = |digits: &str| digits.parse::<usize>().map_err(|_| unknown());
        let (name, layer) = if let Some(rest) = text.strip_prefix("blocks.") {
            let (layer, name) = rest.split_once('.').ok_or_else(unknown)?;
            (name, Some(number(layer)?))
        } else if let Some((name, layer)) =
            text.rsplit_once('.').filter(|(name, _)| Site::all().any(|site| site.name() == *name))
        {
            (name, Some(number(layer)?))
        } else {
            (text, None)
        };
        let lens = text.starts_with("blocks.") || text.starts_with("hook_");
        let is_named = |site: &Site| match lens {
            true => site.facts().lens == Some(name),
            false => site.name() == name,
        };
        let site = Site::all().find(is_named).ok_or_else(unknown)?;
        if layer.is_some() && !site.per_layer() {
            return Err(Error::Request(format!("site `{site}` has no layers")));
        }
        Ok((site, layer))
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_every_site_at_its_own_index() {
        for (index, facts) in FACTS.iter().enumerate() {
            assert_eq!(facts.site as usize, index, "{}", facts.site);
        }
    }

    #[test]
    fn names_round_trip_and_transformer_lens_names_are_aliases() {
        for site in Site::all() {
            assert_eq!(Site::parse(site.name()).unwrap(), (site, None));
        }
        assert_eq!(Site::parse("resid_post.3").unwrap(), (Site::ResidPost, Some(3)));
        assert_eq!(Site::parse("blocks.12.hook_resid_post").unwrap(), (Site::ResidPost, Some(12)));
        assert_eq!(Site::parse("blocks.0.attn.hook_rot_k").unwrap(), (Site::K, Some(0)));
        assert_eq!(Site::parse("hook_embed").unwrap(), (Site::Embed, None));
        for site in Site::all() {
            let layer = site.per_layer().then_some(7);
            if let Some(name) = site.lens_name_at(7) {
                assert_eq!(Site::parse(&name).unwrap(), (site, layer), "{name}");
            }
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        for bad in ["", "resid", "resid_post.x", "blocks.3", "blocks.x.hook_resid_post", "q.1.2"] {
            assert!(Site::parse(bad).unwrap_err().to_string().contains("unknown site"), "{bad}");
        }
        assert_eq!(Site::parse("embed.2").unwrap_err().to_string(), "site `embed` has no layers");
    }
}
