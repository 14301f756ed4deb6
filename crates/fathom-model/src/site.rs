//! The places in the forward pass that can be read or replaced, declared once.

use std::fmt;

use crate::{Error, ModelConfig, Result};

/// A place in the forward pass. The comment gives the shape of what is captured there; `T` is the
/// number of positions. Between layers the residual stream is raw, never the final norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// `embed` `[T, hidden]`: token embedding; not per layer.
    Embed,
    /// `resid_pre` `[T, hidden]`: residual stream entering the layer.
    ResidPre,
    /// `attn_in` `[T, hidden]`: normed input of attention.
    AttnIn,
    /// `q_pre_rope` `[heads, T, head_dim]`: queries after bias and q-norm, before rotary.
    QPreRope,
    /// `k_pre_rope` `[kv_heads, T, head_dim]`: keys after bias and k-norm, before rotary.
    KPreRope,
    /// `q` `[heads, T, head_dim]`: queries after rotary.
    Q,
    /// `k` `[kv_heads, T, head_dim]`: keys after rotary.
    K,
    /// `v` `[kv_heads, T, head_dim]`: values.
    V,
    /// `attn_weights` `[heads, T, T]`: softmax probabilities; quadratic, so for short sequences
    /// only.
    AttnWeights,
    /// `sink_score` `[heads, T]`: paper eq. 1, without ever holding `attn_weights`.
    SinkScore,
    /// `attn_ctx` `[T, heads · head_dim]`: concatenated heads, input of the output projection.
    AttnCtx,
    /// `attn_out` `[T, hidden]`: what attention adds to the residual stream.
    AttnOut,
    /// `resid_mid` `[T, hidden]`: residual stream after attention.
    ResidMid,
    /// `mlp_in` `[T, hidden]`: normed input of the MLP.
    MlpIn,
    /// `mlp_gate` `[T, intermediate]`.
    MlpGate,
    /// `mlp_up` `[T, intermediate]`.
    MlpUp,
    /// `mlp_act` `[T, intermediate]`: silu(gate).
    MlpAct,
    /// `mlp_elementwise` `[T, intermediate]`: silu(gate) · up, input of the down projection.
    MlpElementwise,
    /// `mlp_out` `[T, hidden]`: what the MLP adds to the residual stream.
    MlpOut,
    /// `resid_post` `[T, hidden]`: raw output of the layer; the paper's h^l.
    ResidPost,
    /// `final_norm` `[T, hidden]`: not per layer.
    FinalNorm,
    /// `logits` `[T, vocab]`: not per layer.
    Logits,
}

/// How the values of a site are laid out when captured.
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

/// Every site with its name and, where TransformerLens has the same tensor, that name without the
/// `blocks.{l}.` prefix. Order is the order of the forward pass.
const SITES: [(Site, &str, Option<&str>); 22] = [
    (Site::Embed, "embed", Some("hook_embed")),
    (Site::ResidPre, "resid_pre", Some("hook_resid_pre")),
    (Site::AttnIn, "attn_in", None),
    (Site::QPreRope, "q_pre_rope", Some("attn.hook_q")),
    (Site::KPreRope, "k_pre_rope", Some("attn.hook_k")),
    (Site::Q, "q", Some("attn.hook_rot_q")),
    (Site::K, "k", Some("attn.hook_rot_k")),
    (Site::V, "v", Some("attn.hook_v")),
    (Site::AttnWeights, "attn_weights", Some("attn.hook_pattern")),
    (Site::SinkScore, "sink_score", None),
    (Site::AttnCtx, "attn_ctx", Some("attn.hook_z")),
    (Site::AttnOut, "attn_out", Some("hook_attn_out")),
    (Site::ResidMid, "resid_mid", Some("hook_resid_mid")),
    (Site::MlpIn, "mlp_in", None),
    (Site::MlpGate, "mlp_gate", Some("mlp.hook_pre")),
    (Site::MlpUp, "mlp_up", Some("mlp.hook_pre_linear")),
    (Site::MlpAct, "mlp_act", None),
    (Site::MlpElementwise, "mlp_elementwise", Some("mlp.hook_post")),
    (Site::MlpOut, "mlp_out", Some("hook_mlp_out")),
    (Site::ResidPost, "resid_post", Some("hook_resid_post")),
    (Site::FinalNorm, "final_norm", None),
    (Site::Logits, "logits", None),
];

impl Site {
    /// All sites, in the order of the forward pass.
    pub fn all() -> impl Iterator<Item = Site> {
        SITES.iter().map(|(site, ..)| *site)
    }

    /// The site's name, as in captures and on the command line.
    pub fn name(self) -> &'static str {
        SITES[self as usize].1
    }

    /// Its name in captures: `resid_post.3`, or `embed` for a site that no layer has.
    pub fn name_at(self, layer: usize) -> String {
        match self.per_layer() {
            true => format!("{self}.{layer}"),
            false => self.to_string(),
        }
    }

    /// What TransformerLens calls it, where it has the same tensor: `blocks.3.hook_resid_post`.
    pub fn lens_name_at(self, layer: usize) -> Option<String> {
        let name = SITES[self as usize].2?;
        Some(match self.per_layer() {
            true => format!("blocks.{layer}.{name}"),
            false => name.to_owned(),
        })
    }

    /// Whether there is one of it in every layer.
    pub fn per_layer(self) -> bool {
        !matches!(self, Site::Embed | Site::FinalNorm | Site::Logits)
    }

    /// Whether a probe may replace the values ([`crate::Access::Edit`]).
    pub fn editable(self) -> bool {
        !matches!(self, Site::AttnWeights | Site::SinkScore)
    }

    /// Whether its values are rows, one for each token ([`crate::Access::Norms`]).
    pub fn has_rows(self) -> bool {
        !matches!(self, Site::AttnWeights | Site::SinkScore)
    }

    /// Layout of the captured values for a model.
    pub fn layout(self, config: &ModelConfig) -> Layout {
        let ModelConfig { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *config;
        match self {
            Site::Q | Site::QPreRope => Layout::Heads { heads, head_dim },
            Site::K | Site::KPreRope | Site::V => Layout::Heads { heads: kv_heads, head_dim },
            Site::AttnWeights => Layout::Weights { heads },
            Site::SinkScore => Layout::Scores { heads },
            Site::AttnCtx => Layout::Rows { width: heads * head_dim },
            Site::MlpGate | Site::MlpUp | Site::MlpAct | Site::MlpElementwise => {
                Layout::Rows { width: intermediate }
            }
            Site::Logits => Layout::Rows { width: vocab },
            Site::Embed
            | Site::ResidPre
            | Site::AttnIn
            | Site::AttnOut
            | Site::ResidMid
            | Site::MlpIn
            | Site::MlpOut
            | Site::ResidPost
            | Site::FinalNorm => Layout::Rows { width: hidden },
        }
    }

    /// Reads a site as people write it: `resid_post`, `resid_post.3`, or TransformerLens'
    /// `blocks.3.hook_resid_post`; the layer comes back where one was named.
    ///
    /// # Errors
    /// An unknown name, listing the known ones; a layer on a site that has none.
    pub fn parse(text: &str) -> Result<(Site, Option<usize>)> {
        let unknown = || {
            let names: Vec<&str> = SITES.iter().map(|(_, name, _)| *name).collect();
            Error::Request(format!("unknown site `{text}`: expected one of {}", names.join(", ")))
        };
        let number = |digits: &str| digits.parse::<usize>().map_err(|_| unknown());
        let (name, layer) = if let Some(rest) = text.strip_prefix("blocks.") {
            let (layer, name) = rest.split_once('.').ok_or_else(unknown)?;
            (name, Some(number(layer)?))
        } else if let Some((name, layer)) =
            text.rsplit_once('.').filter(|(name, _)| SITES.iter().any(|site| site.1 == *name))
        {
            (name, Some(number(layer)?))
        } else {
            (text, None)
        };
        let lens = text.starts_with("blocks.") || text.starts_with("hook_");
        let (site, ..) = SITES
            .iter()
            .find(|(_, ours, theirs)| if lens { *theirs == Some(name) } else { *ours == name })
            .ok_or_else(unknown)?;
        if layer.is_some() && !site.per_layer() {
            return Err(Error::Request(format!("site `{}` has no layers", site.name())));
        }
        Ok((*site, layer))
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
        for (index, (site, ..)) in SITES.iter().enumerate() {
            assert_eq!(*site as usize, index, "{site}");
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
