//! Shared by the kernel tests: deterministic numbers, all code paths of this CPU, comparisons.
#![allow(dead_code)] // each test binary uses a part of it
#![allow(clippy::unwrap_used)]

use std::fmt;

use fathom_backend::{
    Attention, Backend, DType, KeyMask, KvShape, Precision, Rotary, Span, WeightView,
};
use fathom_kernels::{ColumnSums, Cpu, CpuOptions, Isa, Kv, Linear, Pass, Rows};
use half::{bf16, f16};

pub const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// A code path of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Isa(Isa),
    /// The vectors of the best instruction set, with the software model of tile registers.
    ModelledTiles,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Isa(isa) => isa.fmt(f),
            Path::ModelledTiles => f.write_str("modelled tiles"),
        }
    }
}

/// All supported instruction sets.
pub fn isas() -> impl Iterator<Item = Path> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported()).map(Path::Isa)
}

/// All code paths that differ in this precision.
pub fn paths(precision: Precision) -> impl Iterator<Item = Path> {
    isas().chain((precision == Precision::Bf16).then_some(Path::ModelledTiles))
}

/// All code paths in all precisions.
pub fn variants() -> impl Iterator<Item = (Path, Precision)> {
    PRECISIONS.into_iter().flat_map(|precision| paths(precision).map(move |path| (path, precision)))
}

pub fn cpu(path: Path, precision: Precision, threads: usize) -> Cpu {
    let options = |isa| CpuOptions { threads: Some(threads), precision, isa };
    match path {
        Path::Isa(isa) => Cpu::new(options(Some(isa))).unwrap(),
        Path::ModelledTiles => Cpu::new(options(None)).unwrap().with_tile_model(),
    }
}

/// Pseudo-random numbers in [-1, 1), determined by the seed.
pub fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The bytes of `values` as a checkpoint stores them.
pub fn bytes_of(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

pub fn view(bytes: &[u8], dtype: DType, rows: usize, columns: usize) -> WeightView<'_> {
    WeightView { bytes, dtype, rows, columns }
}

pub fn rows_of(cpu: &Cpu, values: &[f32], columns: usize) -> Rows {
    let mut rows = cpu.alloc(values.len() / columns, columns).unwrap();
    cpu.write_rows(&mut rows, 0, values).unwrap();
    rows
}

pub fn values_of(cpu: &Cpu, rows: &Rows) -> Vec<f32> {
    cpu.host_rows(rows, 0..cpu.shape(rows).0, &mut Vec::new()).unwrap().to_vec()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// `‖got - want‖ / ‖want‖`
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let difference: f64 =
        got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    let norm: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    difference.sqrt() / norm.sqrt().max(f64::MIN_POSITIVE)
}

/// Tolerated relative error of a product or of attention.
pub fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 2e-6,
        Precision::Bf16 => 1e-2,
    }
}

/// One sequence's queries, keys and values `[tokens, heads or kv_heads · head_dim]`.
pub struct Sequence {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Sequence {
    pub fn random(attention: &Attention, tokens: usize, seed: u64) -> Sequence {
        let width = attention.head_dim * attention.kv_heads;
        let scaled = |x: Vec<f32>| x.into_iter().map(|x| x * 3.0).collect();
        Sequence {
            q: scaled(numbers(seed, tokens * attention.head_dim * attention.heads)),
            k: numbers(seed + 1, tokens * width),
            v: numbers(seed + 2, tokens * width),
        }
    }
}

/// An empty cache with layers `0 ..= attention.layer`.
pub fn new_kv(cpu: &Cpu, attention: &Attention) -> Kv {
    let Attention { layer, kv_heads, head_dim, .. } = *attention;
    cpu.new_kv(KvShape { layers: layer + 1, kv_heads, head_dim })
}

/// A mask of layers `0 ..= layer` that hides about half of the keys, at once or after a while, and
/// the keys of whole blocks; the last few keys have no bound.
pub fn random_mask(layer: usize, tokens: usize, seed: u64) -> KeyMask {
    let blocks = numbers(seed ^ 5, tokens.div_ceil(128));
    let until = |(key, x): (usize, f32)| match x {
        _ if blocks[key / 128] > 0.5 => key + 1,
        x if x < 0.2 => KeyMask::NEVER,
        x if x < 0.5 => key,
        x => key + (x * 200.0) as usize,
    };
    let layers = (0..=layer as u64).map(|layer| {
        let keys = numbers(seed ^ layer, tokens.saturating_sub(3));
        keys.into_iter().enumerate().map(until).collect()
    });
    KeyMask::new(layers.collect())
}

/// `out = x · Wᵀ + bias`
pub fn linear(cpu: &Cpu, w: &Linear, x: &Rows, out: &mut Rows) {
    let mut operand = cpu.new_operand();
    cpu.operand(x, &mut operand).unwrap();
    cpu.linears(&[w], &operand, &mut [out]).unwrap();
}

/// A pass of one sequence: `rows` tokens from position `from` on.
pub fn pass<'a>(
    cpu: &Cpu,
    rows: usize,
    from: usize,
    kv: &'a mut Kv,
    column_sums: Option<&'a mut ColumnSums>,
    mask: Option<&'a KeyMask>,
) -> Pass<'a> {
    let span = Span { rows: 0..rows, first_position: from, kv, column_sums, mask };
    cpu.begin_pass(vec![span], Rotary::NONE).unwrap()
}

/// Attention of the tokens `from..to` of a sequence whose earlier tokens are in `kv`. Returns the
/// results and the log-sum-exps.
pub fn attend_chunk(
    cpu: &Cpu,
    attention: &Attention,
    sequence: &Sequence,
    from: usize,
    to: usize,
    kv: &mut Kv,
    mask: Option<&KeyMask>,
) -> (Vec<f32>, Vec<f32>) {
    let width = attention.head_dim * attention.heads;
    let kv_width = attention.head_dim * attention.kv_heads;
    let q = rows_of(cpu, &sequence.q[from * width..to * width], width);
    let k = rows_of(cpu, &sequence.k[from * kv_width..to * kv_width], kv_width);
    let v = rows_of(cpu, &sequence.v[from * kv_width..to * kv_width], kv_width);
    let mut out = cpu.alloc(to - from, width).unwrap();
    let mut lse = cpu.alloc(to - from, attention.heads).unwrap();
    let mut pass = pass(cpu, to - from, from, kv, None, mask);
    cpu.append_kv(attention.layer, &k, &v, &mut pass).unwrap();
    cpu.attend(attention, &q, &pass, &mut out, Some(&mut lse)).unwrap();
    cpu.end_pass(pass).unwrap();
    (values_of(cpu, &out), values_of(cpu, &lse))
}
