//! The operations a forward pass is made of.

use std::ops::Range;

use crate::{Attention, KvShape, Precision, Result, Rotary, RowEdit, Span, WeightView};

/// A machine that can run the forward pass.
///
/// # The law of row invariance
/// The bits of a result row depend on that row's inputs and the weights only: never on how many
/// other rows, sequences or threads are computed at the same time, nor on how a sequence was cut
/// into passes. For an implementation this means:
/// - the order in which the terms of a sum over k are added, and the number of partial sums it is
///   split into, are functions of the weight's shape (matrix products) or of the position and the
///   window (attention), never of the number of rows;
/// - every variant of a kernel (one row, a few, many; fused or not) adds the same terms in the same
///   fixed tree, with fused multiply-add in all of them or in none;
/// - a fused operation has the bits of the operations it stands for;
/// - values of rows or keys that a row does not see never enter its arithmetic, not even as `0 ·
///   x`.
///
/// # Order, waiting, failing
/// Operations take effect in the order of the calls, those of different threads in any order. A
/// call may return before its work is done; calls that return values of activations wait for them.
/// Any call may report the failure of an earlier one. After an error, what the operation was to
/// write is unspecified; a pass that was not ended has appended nothing.
///
/// # Shapes
/// Shapes are written `[rows, columns]`, row-major. Arguments whose shapes do not fit each other
/// are a bug in the caller and panic; everything that comes from a file is checked before it gets
/// here.
pub trait Backend: Send + Sync + 'static {
    /// A matrix of f32 activations in this backend's memory.
    type Rows: Send + Sync;
    /// Activations `[rows, columns]` as matrix products take them: in the operands' precision and
    /// the layout they are read in.
    type Operand: Send + Sync;
    /// A packed weight matrix `[out, in]` with an optional bias `[out]`.
    type Linear: Send + Sync;
    /// A vector of f32 (norm weights).
    type Vector: Send + Sync;
    /// Keys and values of one sequence, all layers.
    type Kv: Send;
    /// Attention column sums of one sequence, all layers: Σ_t a[h, t, k] for every head and key.
    type ColumnSums: Send;
    /// The rows of one pass: whose they are, their positions, caches and rotary angles.
    type Pass<'a>;
    /// A moment in the order of operations.
    type Mark: Send;

    // --- the machine -----------------------------------------------------------------------------

    /// What computes, such as `cpu avx512`: the same name, the same bits.
    fn name(&self) -> String;
    /// The precision this backend was made with.
    fn precision(&self) -> Precision;
    /// Tokens of a page of a key/value cache, which grows by whole pages.
    fn kv_page(&self) -> usize;
    /// Tells that the calling thread drives this backend from now on, until it ends or calls this
    /// of another one. A backend may bind itself to the thread, or the thread to a place.
    fn attach_thread(&self) {}
    /// Tells whether, from now on, another model is at work on this machine at the same time. A
    /// backend may then leave part of the machine to it. Changes the bits of nothing.
    fn set_shared(&self, _shared: bool) {}
    /// Waits until all work is done.
    fn synchronize(&self) -> Result<()>;
    /// The moment at which the work of all earlier calls is done.
    fn mark(&self) -> Result<Self::Mark>;
    /// Seconds of work between two moments. Waits for the later one.
    fn seconds_between(&self, from: &Self::Mark, to: &Self::Mark) -> Result<f64>;

    // --- memory ----------------------------------------------------------------------------------

    /// A zeroed matrix `[rows, columns]`.
    fn alloc(&self, rows: usize, columns: usize) -> Result<Self::Rows>;
    /// Gives `x` a new row count, keeping its allocation where possible; contents become
    /// unspecified.
    fn resize(&self, x: &mut Self::Rows, rows: usize, columns: usize) -> Result<()>;
    /// `(rows, columns)` of a matrix.
    fn shape(&self, x: &Self::Rows) -> (usize, usize);
    /// Rows of `x` as host memory `[rows.len(), columns]`; copies into `scratch` only where it
    /// must.
    fn host_rows<'a>(
        &self,
        x: &'a Self::Rows,
        rows: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> Result<&'a [f32]>;
    /// Overwrites rows `first..` of `x` with `values` `[n, columns]`.
    fn write_rows(&self, x: &mut Self::Rows, first: usize, values: &[f32]) -> Result<()>;
    /// An operand without rows.
    fn new_operand(&self) -> Self::Operand;
    /// Packs a weight matrix `[out, in]` and its bias.
    fn linear_from(&self, weight: WeightView<'_>, bias: Option<&[f32]>) -> Result<Self::Linear>;
    /// Bytes of a packed matrix and its bias, all of which a product reads.
    fn linear_bytes(&self, linear: &Self::Linear) -> usize;
    /// Uploads a vector.
    fn vector_from(&self, values: &[f32]) -> Result<Self::Vector>;

    // --- the forward pass ------------------------------------------------------------------------

    /// `out[i] = table[ids[i]]`, with `table` a packed `[vocab, hidden]` matrix. Ids are in range.
    fn embed(&self, table: &Self::Linear, ids: &[u32], out: &mut Self::Rows) -> Result<()>;
    /// `out = x / √(mean(x²) + eps) · weight`, row by row, in f32.
    fn rms_norm(
        &self,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Rows,
    ) -> Result<()>;
    /// As [`Backend::rms_norm`] then [`Backend::operand`].
    fn rms_norm_operand(
        &self,
        x: &Self::Rows,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Operand,
    ) -> Result<()>;
    /// As [`Backend::rms_norm`], over each head of `x` `[rows, heads · head_dim]`, in place.
    fn head_norm(&self, x: &mut Self::Rows, weight: &Self::Vector, eps: f32) -> Result<()>;
    /// `x` for products that take it; gives `out` its shape.
    fn operand(&self, x: &Self::Rows, out: &mut Self::Operand) -> Result<()>;
    /// Matrix products: `outs[i] = x · Wᵢᵀ + biasᵢ`.
    fn linears(
        &self,
        ws: &[&Self::Linear],
        x: &Self::Operand,
        outs: &mut [&mut Self::Rows],
    ) -> Result<()>;
    /// `out += x · Wᵀ + bias`: as [`Backend::linears`] then [`Backend::add_assign`].
    fn linear_add(&self, w: &Self::Linear, x: &Self::Operand, out: &mut Self::Rows) -> Result<()>;
    /// `out = silu(x · gateᵀ) · (x · upᵀ)`, with the biases: as [`Backend::linears`], then
    /// [`Backend::silu`], then [`Backend::mul`], then [`Backend::operand`].
    fn gated(
        &self,
        gate: &Self::Linear,
        up: &Self::Linear,
        x: &Self::Operand,
        out: &mut Self::Operand,
    ) -> Result<()>;
    /// As [`Backend::linears`] then [`Backend::argmax`], without the products in between.
    fn linear_argmax(&self, w: &Self::Linear, x: &Self::Operand, limit: usize) -> Result<Vec<u32>>;
    /// `out = silu(x) = x / (1 + e^-x)`.
    fn silu(&self, x: &Self::Rows, out: &mut Self::Rows) -> Result<()>;
    /// `out = x · y`, element by element.
    fn mul(&self, x: &Self::Rows, y: &Self::Rows, out: &mut Self::Rows) -> Result<()>;
    /// `x += y`.
    fn add_assign(&self, x: &mut Self::Rows, y: &Self::Rows) -> Result<()>;
    /// `out[i] = x[rows[i]]`; gives `out` its shape.
    fn gather(&self, x: &Self::Rows, rows: &[usize], out: &mut Self::Rows) -> Result<()>;
    /// Index of each row's largest value within its first `limit` columns; the lowest index wins
    /// ties.
    fn argmax(&self, x: &Self::Rows, limit: usize) -> Result<Vec<u32>>;

    // --- attention -------------------------------------------------------------------------------

    /// An empty cache. It takes memory page by page, when keys are appended.
    fn new_kv(&self, shape: KvShape) -> Self::Kv;
    /// Tokens in the cache.
    fn kv_len(&self, kv: &Self::Kv) -> usize;
    /// Bytes a cache holds.
    fn kv_bytes(&self, kv: &Self::Kv) -> usize;
    /// Forgets all tokens from `len` on; what is kept is bit for bit as if they had never been
    /// there.
    fn truncate_kv(&self, kv: &mut Self::Kv, len: usize);
    /// Empty column sums.
    fn new_column_sums(&self, layers: usize, heads: usize) -> Self::ColumnSums;
    /// Begins a pass over the rows of `spans`, which lie one after the other from row 0 on.
    fn begin_pass<'a>(
        &self,
        spans: Vec<Span<'a, Self::Kv, Self::ColumnSums>>,
        rotary: Rotary<'_>,
    ) -> Result<Self::Pass<'a>>;
    /// Rotates the first `2 · half` components of every head of `x` `[rows, heads · head_dim]` in
    /// place, pairing component `i` with `i + half` (HuggingFace's rotate-half).
    fn rope(&self, x: &mut Self::Rows, pass: &Self::Pass<'_>, head_dim: usize) -> Result<()>;
    /// Writes a layer's rotated keys and values `[rows, kv_heads · head_dim]` behind each span's
    /// cache.
    fn append_kv(
        &self,
        layer: usize,
        k: &Self::Rows,
        v: &Self::Rows,
        pass: &mut Self::Pass<'_>,
    ) -> Result<()>;
    /// From here on only the last `kept[i]` rows of each span `i` go on; they are renumbered from
    /// 0.
    fn narrow_pass(&self, pass: &mut Self::Pass<'_>, kept: &[usize]) -> Result<()>;
    /// Causal attention: `out[i, h] = Σ_k softmax_k(scale · q[i, h] · K[k]) V[k]` over the keys
    /// visible from row `i`'s position, spans being ragged. `q` and `out` are `[rows, heads ·
    /// head_dim]`. With `lse`, also writes each row's and head's log-sum-exp of the scaled scores,
    /// `[rows, heads]`.
    fn attend(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        pass: &Self::Pass<'_>,
        out: &mut Self::Rows,
        lse: Option<&mut Self::Rows>,
    ) -> Result<()>;
    /// The second pass of definition 2.4: adds `exp(score - lse)` of every row to its key's sum, in
    /// spans that have column sums. Sums run over rows in position order, so how a sequence was cut
    /// into passes does not change their bits.
    fn add_column_sums(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        lse: &Self::Rows,
        pass: &mut Self::Pass<'_>,
    ) -> Result<()>;
    /// The sums of one layer, `[heads, tokens]`.
    fn column_sums(&self, sums: &Self::ColumnSums, layer: usize, tokens: usize)
    -> Result<Vec<f64>>;
    /// The probabilities themselves, `[heads, span rows, keys up to the last row's own]`: for short
    /// sequences.
    fn attention_weights(
        &self,
        attention: &Attention,
        q: &Self::Rows,
        lse: &Self::Rows,
        pass: &Self::Pass<'_>,
        span: usize,
    ) -> Result<Vec<f32>>;
    /// Ends a pass of which every layer has appended its keys and values: they count from now on.
    fn end_pass(&self, pass: Self::Pass<'_>) -> Result<()>;

    // --- what probes and edits need of rows ------------------------------------------------------

    /// Overwrites rows `first..` of `out` with rows `rows` of `x`, which has as many columns.
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
    /// Changes rows of `x`, one edit after the other.
    fn edit_rows(&self, x: &mut Self::Rows, edits: &[RowEdit<'_>]) -> Result<()>;
}
