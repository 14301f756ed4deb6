//! The trait `Backend`: the operations of a forward pass.

use std::ops::Range;

use crate::{Attention, KvShape, Precision, Result, Rotary, RowEdit, Span, WeightView};

/// A device that runs the forward pass.
///
/// # Row invariance
/// The bits of a result row depend only on that row's inputs and the weights: not on how many other
/// rows, sequences or threads are computed at the same time, and not on how a sequence is cut into
/// passes. For an implementation this means:
/// - The summation order over k, and the number of partial sums, are functions of the weight's
///   shape (matrix products) or of the position and the window (attention), never of the number of
///   rows.
/// - Every variant of a kernel (one row, a few, many; fused or not) adds the same terms in the same
///   fixed tree. Either all variants use fused multiply-add or none does.
/// - A fused operation returns the bits of the operations it fuses.
/// - Values of rows or keys that are masked for a row never enter its arithmetic, not even as
///   `0 · x`: `x` may be NaN.
///
/// # Order, synchronization, errors
/// Operations of one thread take effect in call order; those of different threads in any order. A
/// call may return before its work is done; calls that return values of activations wait for them.
/// Any call may report the failure of an earlier one. After an error the outputs of the operation
/// are unspecified, and a pass that was not ended has appended nothing.
///
/// # Shapes
/// Shapes are written `[rows, columns]`, row-major. Mismatched shapes are a bug in the caller and
/// panic; everything that comes from a file is validated before it reaches the backend.
pub trait Backend: Send + Sync + 'static {
    /// A matrix of f32 activations in this backend's memory.
    type Rows: Send + Sync;
    /// Activations `[rows, columns]` packed as the left-hand operand of matrix products, in the
    /// operand precision.
    type Operand: Send + Sync;
    /// A packed weight matrix `[out, in]` with an optional bias `[out]`.
    type Linear: Send + Sync;
    /// A vector of f32 (norm weights).
    type Vector: Send + Sync;
    /// The KV cache of one sequence, all layers.
    type Kv: Send;
    /// Attention column sums of one sequence, all layers: `Σ_t a[h, t, k]` for every head and key.
    type ColumnSums: Send;
    /// The rows of one pass: their sequences, positions, caches and rotary angles.
    type Pass<'a>;
    /// A point in the order of operations, like an event on a CUDA stream.
    type Mark: Send;

    // --- the device ------------------------------------------------------------------------------

    /// Device and code path, such as `cpu avx512`. The same name means the same bits.
    fn name(&self) -> String;
    /// The operand precision of this backend.
    fn precision(&self) -> Precision;
    /// Tokens per block of the paged KV cache.
    fn kv_page(&self) -> usize;
    /// Declares that the calling thread drives this backend from now on, until the thread ends or
    /// attaches to another backend. The backend may bind itself to the thread, or pin the thread to
    /// a core.
    fn attach_thread(&self) {}
    /// Declares whether, from now on, another model runs on this device at the same time. The
    /// backend may then leave part of the device to it. Never changes any bits.
    fn set_co_running(&self, _shared: bool) {}
    /// Waits for all earlier operations.
    fn synchronize(&self) -> Result<()>;
    /// Records the point in time at which the work of all earlier calls is done.
    fn mark(&self) -> Result<Self::Mark>;
    /// Seconds between two marks. Waits for the later one.
    fn seconds_between(&self, from: &Self::Mark, to: &Self::Mark) -> Result<f64>;

    // --- memory ----------------------------------------------------------------------------------

    /// A zeroed matrix `[rows, columns]`.
    fn alloc(&self, rows: usize, columns: usize) -> Result<Self::Rows>;
    /// Changes the shape of `x`, reusing its allocation where possible; contents become
    /// unspecified.
    fn resize(&self, x: &mut Self::Rows, rows: usize, columns: usize) -> Result<()>;
    /// `(rows, columns)` of a matrix.
    fn shape(&self, x: &Self::Rows) -> (usize, usize);
    /// Rows of `x` in host memory, `[rows.len(), columns]`. Copies into `scratch` only if `x` is
    /// not in host memory.
    fn host_rows<'a>(
        &self,
        x: &'a Self::Rows,
        rows: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> Result<&'a [f32]>;
    /// Overwrites rows `first..` of `x` with `values` `[n, columns]`.
    fn write_rows(&self, x: &mut Self::Rows, first: usize, values: &[f32]) -> Result<()>;
    /// An empty operand.
    fn new_operand(&self) -> Self::Operand;
    /// Packs a weight matrix `[out, in]` and its bias.
    fn linear_from(&self, weight: WeightView<'_>, bias: Option<&[f32]>) -> Result<Self::Linear>;
    /// Bytes of a packed matrix and its bias, which is what a product reads.
    fn linear_bytes(&self, linear: &Self::Linear) -> usize;
    /// Uploads a vector.
    fn vector_from(&self, values: &[f32]) -> Result<Self::Vector>;

    // --- the forward pass ------------------------------------------------------------------------

    /// `out[i] = table[ids[i]]`, with `table` a packed `[vocab, hidden]` matrix and
    /// `ids[i] < vocab`.
    fn embed(&self, table: &Self::Linear, ids: &[u32], out: &mut Self::Rows) -> Result<()>;
    /// `out = x / √(mean(x²) + eps) · weight`, row by row, in f32.
    fn rms_norm(
        &self,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Rows,
    ) -> Result<()>;
    /// [`Backend::rms_norm`] followed by [`Backend::operand`], fused.
    fn rms_norm_operand(
        &self,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Operand,
    ) -> Result<()>;
    /// [`Backend::rms_norm`] of each head of `x` `[rows, heads · head_dim]`, in place.
    fn head_norm(&self, x: &mut Self::Rows, weight: &Self::Vector, eps: f32) -> Result<()>;
    /// Packs `x` as the operand of matrix products; resizes `out`.
    fn operand(&self, x: &Self::Rows, out: &mut Self::Operand) -> Result<()>;
    /// Matrix products: `outs[i] = x · Wᵢᵀ + biasᵢ`.
    fn linears(
        &self,
        ws: &[&Self::Linear],
        x: &Self::Operand,
        outs: &mut [&mut Self::Rows],
    ) -> Result<()>;
    /// `out += x · Wᵀ + bias`: [`Backend::linears`] followed by [`Backend::add_assign`], fused.
    fn linear_add(&self, w: &Self::Linear, x: &Self::Operand, out: &mut Self::Rows) -> Result<()>;
    /// `out = silu(x · gateᵀ) · (x · upᵀ)`, biases included: [`Backend::linears`],
    /// [`Backend::silu`], [`Backend::mul`] and [`Backend::operand`], fused.
    fn gated(
        &self,
        gate: &Self::Linear,
        up: &Self::Linear,
        x: &Self::Operand,
        out: &mut Self::Operand,
    ) -> Result<()>;
    /// [`Backend::linears`] followed by [`Backend::argmax`], without storing the products.
    fn linear_argmax(&self, w: &Self::Linear, x: &Self::Operand, limit: usize) -> Result<Vec<u32>>;
    /// `out = silu(x) = x / (1 + e^-x)`.
    fn silu(&self, x: &Self::Rows, out: &mut Self::Rows) -> Result<()>;
    /// `out = x · y`, element by element.
    fn mul(&self, x: &Self::Rows, y: &Self::Rows, out: &mut Self::Rows) -> Result<()>;
    /// `x += y`.
    fn add_assign(&self, x: &mut Self::Rows, y: &Self::Rows) -> Result<()>;
    /// `out[i] = x[rows[i]]`; resizes `out`.
    fn gather(&self, x: &Self::Rows, rows: &[usize], out: &mut Self::Rows) -> Result<()>;
    /// Index of each row's largest value among its first `limit` columns; ties go to the lowest
    /// index.
    fn argmax(&self, x: &Self::Rows, limit: usize) -> Result<Vec<u32>>;

    // --- attention -------------------------------------------------------------------------------

    /// An empty cache. Blocks are allocated as keys are appended.
    fn new_kv(&self, shape: KvShape) -> Self::Kv;
    /// Tokens in the cache.
    fn kv_len(&self, kv: &Self::Kv) -> usize;
    /// Bytes allocated for a cache, with those it shares.
    fn kv_bytes(&self, kv: &Self::Kv) -> usize;
    /// Drops all tokens from position `len` on. Later results are bit for bit as if those tokens
    /// had never been appended.
    fn truncate_kv(&self, kv: &mut Self::Kv, len: usize);
    /// A cache with the first `len` tokens of `kv`. Whole blocks are shared, not copied. A later
    /// change of either cache never shows in the other, and both give the bits of a cache of its
    /// own.
    fn share_kv(&self, kv: &Self::Kv, len: usize) -> Self::Kv;
    /// Empty column sums; with `entropy`, for [`Backend::attention_entropies`] too.
    fn new_column_sums(&self, layers: usize, heads: usize, entropy: bool) -> Self::ColumnSums;
    /// Begins a pass over the rows of `spans`, which are contiguous from row 0 on.
    fn begin_pass<'a>(
        &self,
        spans: Vec<Span<'a, Self::Kv, Self::ColumnSums>>,
        rotary: Rotary<'_>,
    ) -> Result<Self::Pass<'a>>;
    /// Rotates the first `2 · half` components of every head of `x` `[rows, heads · head_dim]` in
    /// place, pairing component `i` with `i + half` (HuggingFace's rotate-half).
    fn rope(&self, x: &mut Self::Rows, pass: &Self::Pass<'_>, head_dim: usize) -> Result<()>;
    /// Appends a layer's rotated keys and values `[rows, kv_heads · head_dim]` to each span's
    /// cache.
    fn append_kv(
        &self,
        layer: usize,
        k: &Self::Rows,
        v: &Self::Rows,
        pass: &mut Self::Pass<'_>,
    ) -> Result<()>;
    /// Drops all but the last `kept[i]` rows of each span `i` for the rest of the pass. The kept
    /// rows are renumbered from 0.
    fn narrow_pass(&self, pass: &mut Self::Pass<'_>, kept: &[usize]) -> Result<()>;
    /// Causal attention: `out[i, h] = Σ_k softmax_k(scale · q[i, h] · K[k]) V[k]` over the keys
    /// visible from row `i`'s position that the span's [`crate::KeyMask`] does not hide; spans may
    /// have different lengths. `q` and `out` are `[rows, heads · head_dim]`. If `lse` is given,
    /// also writes the log-sum-exp of the scaled scores, `[rows, heads]`.
    fn attend(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        pass: &Self::Pass<'_>,
        out: &mut Self::Rows,
        lse: Option<&mut Self::Rows>,
    ) -> Result<()>;
    /// Adds `exp(score - lse)` of every row to the column sum of its key, for spans that have
    /// column sums, and the row's entropy if they sum it: Sink score (docs/definitions.md). Rows
    /// are added in position order, so the bits do not depend on how the sequence is cut into
    /// passes.
    fn add_column_sums(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        lse: &Self::Rows,
        pass: &mut Self::Pass<'_>,
    ) -> Result<()>;
    /// The column sums of one layer, `[heads, tokens]`.
    fn column_sums(&self, sums: &Self::ColumnSums, layer: usize, tokens: usize)
    -> Result<Vec<f64>>;
    /// The entropies of the attention of one layer's rows in nats, `-Σ_k a · ln a`, summed over the
    /// rows, `[heads]`; empty unless the column sums were made with `entropy`.
    fn attention_entropies(&self, sums: &Self::ColumnSums, layer: usize) -> Result<Vec<f64>>;
    /// The attention probabilities of one span, `[heads, span rows, keys]`, with the keys up to the
    /// span's last position. For short sequences.
    fn attention_weights(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        lse: &Self::Rows,
        pass: &Self::Pass<'_>,
        span: usize,
    ) -> Result<Vec<f32>>;
    /// Ends a pass in which every layer has appended its keys and values, and commits them to the
    /// caches.
    fn end_pass(&self, pass: Self::Pass<'_>) -> Result<()>;

    // --- row operations of probes and edits ------------------------------------------------------

    /// Copies rows `rows` of `x` to rows `first..` of `out`, which has as many columns.
    fn copy_rows(
        &self,
        x: &Self::Rows,
        rows: Range<usize>,
        out: &mut Self::Rows,
        first: usize,
    ) -> Result<()>;
    /// `out[at.0, at.1 + i] = ‖x[rows.start + i]‖`, the Euclidean norm.
    fn row_norms(
        &self,
        x: &Self::Rows,
        rows: Range<usize>,
        out: &mut Self::Rows,
        at: (usize, usize),
    ) -> Result<()>;
    /// `out[at.0, at.1 + i] = x[rows.start + i] · y[y_row]`.
    fn row_dots(
        &self,
        x: &Self::Rows,
        rows: Range<usize>,
        y: (&Self::Rows, usize),
        out: &mut Self::Rows,
        at: (usize, usize),
    ) -> Result<()>;
    /// The massive activations of rows, as [`numbers`](crate::Massive::numbers): number `j` of row
    /// `rows.start + i` goes to `out[at.0 + j, at.1 + i]`. The other elements of `out` stay as they
    /// are.
    fn row_massive(
        &self,
        x: &Self::Rows,
        rows: Range<usize>,
        out: &mut Self::Rows,
        at: (usize, usize),
    ) -> Result<()>;
    /// Applies the edits to `x` in order.
    fn edit_rows(&self, x: &mut Self::Rows, edits: &[RowEdit<'_>]) -> Result<()>;
}
