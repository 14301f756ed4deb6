//! The operations a forward pass is made of, behind one trait.
//!
//! [`Backend`] is everything `fathom-model` knows about a machine. Activations are opaque `Rows`; host
//! memory is touched only through [`Backend::host_rows`] and [`Backend::write_rows`]. [`crate::Cpu`] is
//! the implementation in this crate.

use std::ops::Range;

use crate::WeightView;

/// Operand precision of matrix products and of the key/value cache.
///
/// Accumulation, the residual stream, norms, softmax statistics and logits are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Activations and accumulation in f32; weights exactly as stored. The reference.
    F32,
    /// Operands of matrix products, keys and values rounded to bfloat16; accumulation in f32.
    Bf16,
}

/// Shape of a key/value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads per layer.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// One attention layer's geometry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Decoder layer, selecting the layer of the cache.
    pub layer: usize,
    /// Query heads; query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on q·k before the softmax, usually `1/√head_dim`.
    pub scale: f32,
    /// Sliding window `w`: query position `i` sees keys `i-w+1 ..= i`. `None`: all keys `0 ..= i`.
    pub window: Option<usize>,
}

/// A run of consecutive rows of a batch that belong to one sequence.
///
/// What is appended begins at [`Backend::kv_len`] of `kv`, which does not move until [`Backend::advance_kv`].
/// Queries can be of any positions whose keys are there, appended ones included.
#[derive(Debug)]
pub struct Span<'a, Kv> {
    /// Which rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first of them in the sequence.
    pub first_position: usize,
    /// The sequence's keys and values.
    pub kv: &'a mut Kv,
}

/// A machine that can run the forward pass.
///
/// Every implementation is **row-invariant**: the bits of a result row depend on that row's inputs and
/// the weights only, never on how many other rows, sequences or threads are computed beside it, nor on
/// how a sequence was cut into chunks. Speculative decoding is exactly lossless, and runs are
/// reproducible, because of it.
///
/// Shapes are written `[rows, columns]`, row-major. Arguments whose shapes do not fit each other are a
/// bug in the caller and panic; everything that comes from a file is checked before it gets here.
pub trait Backend: Send + Sync + 'static {
    /// A matrix of f32 activations in this backend's memory.
    type Rows: Send + Sync;
    /// Activations `[rows, columns]` as matrix products take them: in the operands' precision and the
    /// layout they are read in.
    type Operand: Send + Sync + Default;
    /// A packed weight matrix `[out, in]` with an optional bias `[out]`.
    type Linear: Send + Sync;
    /// A vector of f32 (norm weights).
    type Vector: Send + Sync;
    /// Rotary tables for the rows of one batch.
    type Rope: Send + Sync;
    /// Keys and values of one sequence, all layers.
    type Kv: Send;
    /// Attention column sums of one sequence, all layers: Σ_t a[h, t, k] for every head and key.
    type ColumnSums: Send;

    /// Tokens of a page of a key/value cache, which grows by whole pages.
    const KV_PAGE: usize;

    /// The precision this backend was made with.
    fn precision(&self) -> Precision;

    /// Tells whether another model is at work on this machine at the same time, from now on. A backend
    /// may then leave part of the machine to it. Changes the bits of nothing.
    fn set_beside(&self, _beside: bool) {}

    /// Tells that the calling thread is here to do this backend's work for the rest of its life, or until
    /// another backend adopts it. A backend whose threads were given places may move it to one, and the
    /// threads it starts afterwards begin there.
    fn adopt_thread(&self) {}

    // --- memory -------------------------------------------------------------------------------------

    /// A zeroed matrix `[rows, columns]`.
    fn alloc(&self, rows: usize, columns: usize) -> Self::Rows;
    /// Gives `x` a new row count, keeping its allocation where possible; contents become unspecified.
    fn resize(&self, x: &mut Self::Rows, rows: usize, columns: usize);
    /// `(rows, columns)` of a matrix.
    fn shape(&self, x: &Self::Rows) -> (usize, usize);
    /// Rows of `x` as host memory `[rows.len(), columns]`; copies into `scratch` only where it must.
    fn host_rows<'a>(
        &self,
        x: &'a Self::Rows,
        rows: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32];
    /// Overwrites rows `first..` of `x` with `values` `[n, columns]`.
    fn write_rows(&self, x: &mut Self::Rows, first: usize, values: &[f32]);
    /// Packs a weight matrix `[out, in]` and its bias.
    fn linear_from(&self, weight: WeightView<'_>, bias: Option<&[f32]>) -> Self::Linear;
    /// Bytes of a packed matrix and its bias, all of which a product reads.
    fn linear_bytes(&self, linear: &Self::Linear) -> usize;
    /// Uploads a vector.
    fn vector_from(&self, values: &[f32]) -> Self::Vector;
    /// Uploads rotary tables `cos`, `sin` `[rows, half]` of one batch, `half` = rotary width / 2.
    fn rope_from(&self, cos: &[f32], sin: &[f32], half: usize) -> Self::Rope;

    // --- the forward pass ---------------------------------------------------------------------------

    /// `out[i] = table[ids[i]]`, with `table` a packed `[vocab, hidden]` matrix. Ids are in range.
    fn embed(&self, table: &Self::Linear, ids: &[u32], out: &mut Self::Rows);
    /// `out = x / √(mean(x²) + eps) · weight`, row by row, in f32.
    fn rms_norm(&self, x: &Self::Rows, weight: &Self::Vector, eps: f32, out: &mut Self::Rows);
    /// As [`Backend::rms_norm`] then [`Backend::operand`].
    fn rms_norm_operand(
        &self,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Operand,
    );
    /// As [`Backend::rms_norm`], over each head of `x` `[rows, heads · head_dim]`, in place.
    fn head_norm(&self, x: &mut Self::Rows, weight: &Self::Vector, eps: f32);
    /// `out = x · Wᵀ + bias`.
    fn linear(&self, w: &Self::Linear, x: &Self::Rows, out: &mut Self::Rows);
    /// `x` for several products that take it; gives `out` its shape.
    fn operand(&self, x: &Self::Rows, out: &mut Self::Operand);
    /// [`Backend::linear`] with several matrices: `outs[i] = x · Wᵢᵀ + biasᵢ`.
    fn linears(&self, ws: &[&Self::Linear], x: &Self::Operand, outs: &mut [&mut Self::Rows]);
    /// `out += x · Wᵀ + bias`: as [`Backend::linear`] then [`Backend::add_assign`].
    fn linear_add(&self, w: &Self::Linear, x: &Self::Operand, out: &mut Self::Rows);
    /// `out = silu(x · gateᵀ) · (x · upᵀ)`, with the biases: as [`Backend::linears`], then
    /// [`Backend::silu_mul`], then [`Backend::operand`].
    fn gated(
        &self,
        gate: &Self::Linear,
        up: &Self::Linear,
        x: &Self::Operand,
        out: &mut Self::Operand,
    );
    /// As [`Backend::linear`] then [`Backend::argmax`], without the products in between.
    fn linear_argmax(&self, w: &Self::Linear, x: &Self::Operand, limit: usize) -> Vec<u32>;
    /// Rotates the first `2 · half` components of every head of `x` `[rows, heads · head_dim]` in place,
    /// pairing component `i` with `i + half` (HuggingFace's rotate-half).
    fn rope(&self, x: &mut Self::Rows, table: &Self::Rope, head_dim: usize);
    /// `out = silu(x) = x / (1 + e^-x)`.
    fn silu(&self, x: &Self::Rows, out: &mut Self::Rows);
    /// `out = x · y`, element by element.
    fn mul(&self, x: &Self::Rows, y: &Self::Rows, out: &mut Self::Rows);
    /// `out = silu(gate) · up`: the same bits as [`Backend::silu`] then [`Backend::mul`].
    fn silu_mul(&self, gate: &Self::Rows, up: &Self::Rows, out: &mut Self::Rows);
    /// `x += y`.
    fn add_assign(&self, x: &mut Self::Rows, y: &Self::Rows);
    /// `out[i] = x[rows[i]]`.
    fn gather(&self, x: &Self::Rows, rows: &[usize], out: &mut Self::Rows);
    /// Index of each row's largest value within its first `limit` columns; the lowest index wins ties.
    fn argmax(&self, x: &Self::Rows, limit: usize) -> Vec<u32>;

    // --- attention ----------------------------------------------------------------------------------

    /// An empty cache that grows page by page.
    fn new_kv(&self, shape: KvShape) -> Self::Kv;
    /// Tokens in the cache.
    fn kv_len(&self, kv: &Self::Kv) -> usize;
    /// Bytes a cache holds.
    fn kv_bytes(&self, kv: &Self::Kv) -> usize;
    /// Forgets all tokens from `len` on; what is kept is bit for bit as if they had never been there.
    fn truncate_kv(&self, kv: &mut Self::Kv, len: usize);
    /// Writes a layer's rotated keys and values `[rows, kv_heads · head_dim]` behind each span's cache.
    fn append_kv(
        &self,
        layer: usize,
        k: &Self::Rows,
        v: &Self::Rows,
        spans: &mut [Span<'_, Self::Kv>],
    );
    /// Counts `tokens` more as part of the cache, once every layer has appended them.
    fn advance_kv(&self, kv: &mut Self::Kv, tokens: usize);
    /// Causal attention: `out[i, h] = Σ_k softmax_k(scale · q[i, h] · K[k]) V[k]` over the keys visible
    /// from row `i`'s position, spans being ragged. `q` and `out` are `[rows, heads · head_dim]`. With
    /// `lse`, also writes each row's and head's log-sum-exp of the scaled scores, `[rows, heads]`.
    fn attend(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        spans: &[Span<'_, Self::Kv>],
        out: &mut Self::Rows,
        lse: Option<&mut Self::Rows>,
    );
    /// Empty column sums.
    fn new_column_sums(&self, layers: usize, heads: usize) -> Self::ColumnSums;
    /// The second pass of definition 2.4: adds `exp(score - lse)` of every row of `span` to its key's
    /// sum. Sums run over rows in position order, so chunking does not change their bits.
    fn add_column_sums(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        lse: &Self::Rows,
        span: &Span<'_, Self::Kv>,
        sums: &mut Self::ColumnSums,
    );
    /// The sums of one layer, `[heads, tokens]`.
    fn column_sums(&self, sums: &Self::ColumnSums, layer: usize, tokens: usize) -> Vec<f64>;
    /// The probabilities themselves, `[heads, span rows, keys up to the last row's own]`: for short sequences.
    fn attention_weights(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        lse: &Self::Rows,
        span: &Span<'_, Self::Kv>,
    ) -> Vec<f32>;
}
