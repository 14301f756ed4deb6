//! A conformance check for backends: row invariance, as [`Backend`] defines it.

use std::ops::Range;

use crate::{
    Attention, Backend, BackendError, DType, KvShape, Rotary, RowChange, RowEdit, Span, WeightView,
};

/// Why a backend does not conform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// An operation returns different bits for a row when other rows are computed with it, or a
    /// fused operation returns different bits than the operations it fuses.
    #[error("row invariance is broken: {0}")]
    Bits(String),
    /// An operation failed.
    #[error(transparent)]
    Failed(#[from] BackendError),
}

type Result<T> = std::result::Result<T, Violation>;

/// Runs the matrix products, attention and most row operations on single rows, on groups of rows,
/// on all rows and in chunks, with ragged shapes, and compares the bits. Takes about a second on a
/// CPU.
///
/// # Errors
/// The first operation that breaks row invariance, or fails.
pub fn check<B: Backend>(b: &B) -> Result<()> {
    for (k, n) in [(1, 1), (31, 33), (200, 70), (777, 130)] {
        products(b, k, n)?;
        rows(b, k)?;
    }
    for (heads, kv_heads, head_dim, window) in
        [(2, 2, 16, None), (14, 2, 64, None), (4, 1, 10, Some(37)), (6, 3, 24, Some(150))]
    {
        let scale = 1.0 / (head_dim as f32).sqrt();
        attention(b, &Attention { layer: 0, heads, kv_heads, head_dim, scale, window })?;
    }
    Ok(())
}

/// Number of rows, and the sizes of the groups they are computed in.
const ROWS: usize = 37;
const GROUPS: [usize; 5] = [1, 2, 5, 16, 36];

fn groups() -> impl Iterator<Item = Range<usize>> {
    let of = |size: usize| (0..ROWS).step_by(size).map(move |at| at..ROWS.min(at + size));
    GROUPS.into_iter().flat_map(of)
}

/// Pseudo-random numbers in [-1, 1), determined by the seed.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn upload<B: Backend>(b: &B, values: &[f32], columns: usize) -> Result<B::Rows> {
    let mut rows = b.alloc(values.len() / columns, columns)?;
    b.write_rows(&mut rows, 0, values)?;
    Ok(rows)
}

fn bits<B: Backend>(b: &B, rows: &B::Rows) -> Result<Vec<u32>> {
    let mut scratch = Vec::new();
    let values = b.host_rows(rows, 0..b.shape(rows).0, &mut scratch)?;
    Ok(values.iter().map(|x| x.to_bits()).collect())
}

fn same<T: PartialEq>(got: &[T], want: &[T], what: &str) -> Result<()> {
    match got == want {
        true => Ok(()),
        false => Err(Violation::Bits(what.to_owned())),
    }
}

fn weights<B: Backend>(b: &B, seed: u64, n: usize, k: usize, dtype: DType) -> Result<B::Linear> {
    let values = numbers(seed, n * k);
    let bytes: Vec<u8> = match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        // The upper half of an f32 is a bfloat16; here any bits will do.
        _ => values.iter().flat_map(|x| [x.to_le_bytes()[2], x.to_le_bytes()[3]]).collect(),
    };
    let view = WeightView { bytes: &bytes, dtype, rows: n, columns: k };
    Ok(b.linear_from(view, Some(&numbers(seed ^ 77, n)))?)
}

fn operand<B: Backend>(b: &B, x: &B::Rows) -> Result<B::Operand> {
    let mut operand = b.new_operand();
    b.operand(x, &mut operand)?;
    Ok(operand)
}

fn product<B: Backend>(
    b: &B,
    w: &B::Linear,
    n: usize,
    x: &B::Operand,
    rows: usize,
) -> Result<B::Rows> {
    let mut out = b.alloc(rows, n)?;
    b.linears(&[w], x, &mut [&mut out])?;
    Ok(out)
}

/// Matrix products over groups of rows, and fused products against the operations they fuse.
fn products<B: Backend>(b: &B, k: usize, n: usize) -> Result<()> {
    let x = numbers(1, ROWS * k);
    for dtype in [DType::Bf16, DType::F32] {
        let (gate, up) = (weights(b, 2, n, k, dtype)?, weights(b, 3, n, k, dtype)?);
        let down = weights(b, 4, 33, n, dtype)?;
        let run = |rows: Range<usize>| {
            let count = rows.len();
            let x = operand(b, &upload(b, &x[rows.start * k..rows.end * k], k)?)?;
            let plain = product(b, &gate, n, &x, count)?;
            let mut sum = upload(b, &numbers(5, ROWS * n)[rows.start * n..rows.end * n], n)?;
            b.linear_add(&up, &x, &mut sum)?;
            let mut gated = b.new_operand();
            b.gated(&gate, &up, &x, &mut gated)?;
            let gated = product(b, &down, 33, &gated, count)?;
            let best = b.linear_argmax(&gate, &x, n.div_ceil(2))?;
            Ok::<_, Violation>((bits(b, &plain)?, bits(b, &sum)?, bits(b, &gated)?, best))
        };
        let all = run(0..ROWS)?;
        let what = |operation: &str| format!("{operation} with a {n}x{k} {dtype:?} matrix");
        for rows in groups() {
            let some = run(rows.clone())?;
            let within = |width: usize| rows.start * width..rows.end * width;
            same(&some.0, &all.0[within(n)], &what("linears"))?;
            same(&some.1, &all.1[within(n)], &what("linear_add"))?;
            same(&some.2, &all.2[within(33)], &what("gated"))?;
            same(&some.3, &all.3[rows], &what("linear_argmax"))?;
        }

        // Fused operations return the bits of the operations they fuse.
        let packed = operand(b, &upload(b, &x, k)?)?;
        let (g, u) = (product(b, &gate, n, &packed, ROWS)?, product(b, &up, n, &packed, ROWS)?);
        let mut sum = upload(b, &numbers(5, ROWS * n), n)?;
        b.add_assign(&mut sum, &u)?;
        same(&all.1, &bits(b, &sum)?, &what("linear_add against linears and add_assign"))?;
        let (mut act, mut gated) = (b.alloc(ROWS, n)?, b.alloc(ROWS, n)?);
        b.silu(&g, &mut act)?;
        b.mul(&act, &u, &mut gated)?;
        let gated = product(b, &down, 33, &operand(b, &gated)?, ROWS)?;
        same(&all.2, &bits(b, &gated)?, &what("gated against linears, silu and mul"))?;
        let best = b.argmax(&g, n.div_ceil(2))?;
        same(&all.3, &best, &what("linear_argmax against linears and argmax"))?;
        let norm = b.vector_from(&numbers(6, k))?;
        let rows = upload(b, &x, k)?;
        let (mut fused, mut normed) = (b.new_operand(), b.alloc(ROWS, k)?);
        b.rms_norm_operand(&rows, &norm, 1e-5, &mut fused)?;
        b.rms_norm(&rows, &norm, 1e-5, &mut normed)?;
        let fused = bits(b, &product(b, &gate, n, &fused, ROWS)?)?;
        let separate = bits(b, &product(b, &gate, n, &operand(b, &normed)?, ROWS)?)?;
        same(&fused, &separate, &what("rms_norm_operand against rms_norm and operand"))?;
    }
    Ok(())
}

/// Norms and dot products, with their output positions, and row edits.
fn rows<B: Backend>(b: &B, columns: usize) -> Result<()> {
    let x = numbers(7, ROWS * columns);
    let all = upload(b, &x, columns)?;
    let mut together = b.alloc(2, ROWS)?;
    b.row_norms(&all, 0..ROWS, &mut together, (0, 0))?;
    b.row_dots(&all, 0..ROWS, (&all, 3), &mut together, (1, 0))?;
    for rows in groups() {
        let mut some = b.alloc(3, ROWS + 2)?;
        b.row_norms(&all, rows.clone(), &mut some, (2, 1))?;
        b.row_dots(&all, rows.clone(), (&all, 3), &mut some, (0, 2))?;
        let (some, all) = (bits(b, &some)?, bits(b, &together)?);
        let norms = &some[2 * (ROWS + 2) + 1..][..rows.len()];
        same(norms, &all[rows.clone()], "row_norms")?;
        let dots = &some[2..][..rows.len()];
        same(dots, &all[ROWS + rows.start..ROWS + rows.end], "row_dots")?;
    }
    let mut edited = upload(b, &x, columns)?;
    let last = [columns - 1];
    let change = |row, columns, change| RowEdit { row, columns, change };
    b.edit_rows(
        &mut edited,
        &[
            change(2, None, RowChange::Fill(0.0)),
            change(5, Some(&last), RowChange::Scale(2.0)),
            change(6, None, RowChange::Write(&x[..columns])),
        ],
    )?;
    let mut want: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    want[2 * columns..3 * columns].fill(0.0_f32.to_bits());
    want[6 * columns - 1] = (2.0 * x[6 * columns - 1]).to_bits();
    want.copy_within(..columns, 6 * columns);
    same(&bits(b, &edited)?, &want, "edit_rows")
}

/// Queries, keys and values of a sequence, each `[tokens, width]`.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// The tokens of one sequence that a pass processes.
struct Chunk<'a, B: Backend> {
    sequence: &'a Sequence,
    tokens: Range<usize>,
    kv: &'a mut B::Kv,
    sums: Option<&'a mut B::ColumnSums>,
}

/// Runs one pass; returns the bits of the attention results and of the log-sum-exps.
fn pass<B: Backend>(
    b: &B,
    attention: &Attention,
    chunks: Vec<Chunk<'_, B>>,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let Attention { layer, heads, kv_heads, head_dim, .. } = *attention;
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
    let mut spans = Vec::new();
    let mut first = 0;
    for Chunk { sequence, tokens, kv, sums } in chunks {
        let slice = |x: &[f32], w: usize| x[tokens.start * w..tokens.end * w].to_vec();
        q.extend(slice(&sequence.q, width));
        k.extend(slice(&sequence.k, kv_width));
        v.extend(slice(&sequence.v, kv_width));
        let rows = first..first + tokens.len();
        first = rows.end;
        spans.push(Span { rows, first_position: tokens.start, kv, column_sums: sums });
    }
    let (q, k) = (upload(b, &q, width)?, upload(b, &k, kv_width)?);
    let v = upload(b, &v, kv_width)?;
    let (mut out, mut lse) = (b.alloc(first, width)?, b.alloc(first, heads)?);
    let mut pass = b.begin_pass(spans, Rotary::NONE)?;
    b.append_kv(layer, &k, &v, &mut pass)?;
    b.attend(attention, &q, &pass, &mut out, Some(&mut lse))?;
    b.add_column_sums(attention, &q, &lse, &mut pass)?;
    b.end_pass(pass)?;
    Ok((bits(b, &out)?, bits(b, &lse)?))
}

/// Attention and column sums in chunks of several sizes; then attention after truncating the cache,
/// in one batch with another sequence.
fn attention<B: Backend>(b: &B, attention: &Attention) -> Result<()> {
    let Attention { heads, kv_heads, head_dim, .. } = *attention;
    let shape = KvShape { layers: 1, kv_heads, head_dim };
    let tokens = 300;
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let sequence = |seed: u64| Sequence {
        q: numbers(seed, tokens * width).into_iter().map(|x| 3.0 * x).collect(),
        k: numbers(seed + 1, tokens * kv_width),
        v: numbers(seed + 2, tokens * kv_width),
    };
    let (one, other) = (sequence(10), sequence(20));
    let in_chunks = |chunk: usize| {
        let (mut kv, mut sums) = (b.new_kv(shape), b.new_column_sums(1, heads));
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for from in (0..tokens).step_by(chunk) {
            let tokens = from..tokens.min(from + chunk);
            let chunk = Chunk { sequence: &one, tokens, kv: &mut kv, sums: Some(&mut sums) };
            let (o, l) = pass(b, attention, vec![chunk])?;
            out.extend(o);
            lse.extend(l);
        }
        let sums = b.column_sums(&sums, 0, tokens)?;
        let sums: Vec<u64> = sums.into_iter().map(f64::to_bits).collect();
        Ok::<_, Violation>((out, lse, sums, kv))
    };
    let whole = in_chunks(tokens)?;
    let what = |what: &str| format!("{what} of {attention:?}");
    for chunk in [1, 7, 64, 128, 299] {
        let chunks = in_chunks(chunk)?;
        same(&chunks.0, &whole.0, &what(&format!("attend in chunks of {chunk}")))?;
        same(&chunks.1, &whole.1, &what(&format!("log-sum-exps in chunks of {chunk}")))?;
        same(&chunks.2, &whole.2, &what(&format!("column sums in chunks of {chunk}")))?;
    }
    // Truncate the cache and recompute its end, in one batch with another sequence.
    let mut kv = whole.3;
    let mut other_kv = b.new_kv(shape);
    let chunk = Chunk { sequence: &other, tokens: 0..90, kv: &mut other_kv, sums: None };
    pass(b, attention, vec![chunk])?;
    for keep in [0, 127, 128, 250] {
        b.truncate_kv(&mut kv, keep);
        b.truncate_kv(&mut other_kv, 90);
        let both = vec![
            Chunk { sequence: &other, tokens: 90..93, kv: &mut other_kv, sums: None },
            Chunk { sequence: &one, tokens: keep..tokens, kv: &mut kv, sums: None },
        ];
        let (out, _) = pass(b, attention, both)?;
        same(&out[3 * width..], &whole.0[keep * width..], &what("attend in a batch"))?;
    }
    // Share the cache at any length, and let both go on differently.
    for keep in [1, 90, 128, 290] {
        let mut shared = b.share_kv(&kv, keep);
        let mut grown = b.share_kv(&kv, keep);
        let both = vec![
            Chunk { sequence: &other, tokens: keep..tokens, kv: &mut grown, sums: None },
            Chunk { sequence: &one, tokens: keep..tokens, kv: &mut shared, sums: None },
        ];
        let (out, _) = pass(b, attention, both)?;
        let last = &out[(tokens - keep) * width..];
        same(last, &whole.0[keep * width..], &what("attend with a shared cache"))?;
        b.truncate_kv(&mut kv, tokens - 1);
        let end = Chunk { sequence: &one, tokens: tokens - 1..tokens, kv: &mut kv, sums: None };
        let (out, _) = pass(b, attention, vec![end])?;
        let end = &whole.0[(tokens - 1) * width..];
        same(&out, end, &what("attend with a cache that others shared"))?;
    }
    Ok(())
}
