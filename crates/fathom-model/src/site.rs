//! The places in the forward pass that can be read or replaced, declared once.

/// A place in the forward pass. The comment gives the shape of what is captured there; `T` is the number
/// of positions. Between layers the residual stream is raw, never the final norm.
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
    /// `attn_weights` `[heads, T, T]`: softmax probabilities; quadratic, so for short sequences only.
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
