//! A software model of the tile registers: what Intel's manual specifies for each instruction,
//! element by element.
//!
//! Tests run the tile kernels on it on any CPU, and the self-test compares a CPU's own instructions
//! with it before they are used.

use super::{PAIRS, TILE_ROWS, TILE_WORDS, TileShapes, TileUnit};

type Register = [[u32; TILE_WORDS]; TILE_ROWS];

/// Eight tile registers and their shapes.
pub(crate) struct TileModel {
    shape: Option<TileShapes>,
    registers: [Register; 8],
}

impl Default for TileModel {
    fn default() -> TileModel {
        TileModel { shape: None, registers: [[[0; TILE_WORDS]; TILE_ROWS]; 8] }
    }
}

impl TileModel {
    /// Rows of a register, and words per row. Panics without a configuration, where the
    /// instructions fault.
    fn shape_of(&self, tile: usize) -> (usize, usize) {
        self.shape.unwrap_or_else(|| panic!("tile registers were not configured")).of(tile)
    }
}

impl TileUnit for TileModel {
    fn configure(&mut self, shape: TileShapes) {
        *self = TileModel { shape: Some(shape), ..TileModel::default() };
        for tile in 0..8 {
            let (rows, words) = shape.of(tile);
            assert!((1..=TILE_ROWS).contains(&rows) && (1..=TILE_WORDS).contains(&words));
        }
    }

    fn zero<const T: usize>(&mut self) {
        self.shape_of(T);
        self.registers[T] = Register::default();
    }

    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize) {
        let (rows, words) = self.shape_of(T);
        self.registers[T] = Register::default();
        for (i, row) in self.registers[T].iter_mut().enumerate().take(rows) {
            for (j, word) in row.iter_mut().enumerate().take(words) {
                // SAFETY: `i < rows` and `j < words`, which the caller guarantees to be readable.
                *word = unsafe { from.add(i * stride + j).read() };
            }
        }
    }

    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        let ((c_rows, c_words), (a_rows, pairs), (b_rows, b_words)) =
            (self.shape_of(C), self.shape_of(A), self.shape_of(B));
        assert!(
            c_rows == a_rows && pairs == b_rows && c_words == b_words,
            "tile shapes do not match"
        );
        let mut c = self.registers[C];
        let (a, b) = (&self.registers[A], &self.registers[B]);
        for (c, a) in c.iter_mut().zip(a).take(c_rows) {
            // Elements beyond the configured shapes are zero.
            *c = row_product(*c, a, b);
        }
        self.registers[C] = c;
    }

    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
        let (rows, words) = self.shape_of(T);
        for (i, row) in self.registers[T].iter().enumerate().take(rows) {
            for (j, word) in row.iter().enumerate().take(words) {
                // SAFETY: `i < rows` and `j < words`, which the caller guarantees to be writable.
                unsafe { to.add(i * stride + j).write(f32::from_bits(*word)) }
            }
        }
    }
}

/// One row of `C + A · B`: even and odd k are accumulated separately with fused multiply-adds, the
/// two sums are added, and the result is added to C. Each operation rounds to nearest even;
/// subnormal inputs and results are flushed to zero.
fn row_product(c: [u32; TILE_WORDS], a: &[u32; PAIRS], b: &Register) -> [u32; TILE_WORDS] {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn with_fma(c: [u32; TILE_WORDS], a: &[u32; PAIRS], b: &Register) -> [u32; TILE_WORDS] {
            portable(c, a, b)
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            // SAFETY: `avx2` and `fma` were detected. With them `mul_add` compiles to one
            // instruction instead of a library call.
            return unsafe { with_fma(c, a, b) };
        }
    }
    portable(c, a, b)
}

#[inline(always)]
fn portable(c: [u32; TILE_WORDS], a: &[u32; PAIRS], b: &Register) -> [u32; TILE_WORDS] {
    let low = |pair: u32| flushed(f32::from_bits(pair << 16));
    let high = |pair: u32| flushed(f32::from_bits(pair & 0xffff_0000));
    let (mut even, mut odd) = ([0.0_f32; TILE_WORDS], [0.0_f32; TILE_WORDS]);
    for (&a, b) in a.iter().zip(b) {
        for n in 0..TILE_WORDS {
            even[n] = flushed(low(a).mul_add(low(b[n]), even[n]));
            odd[n] = flushed(high(a).mul_add(high(b[n]), odd[n]));
        }
    }
    let mut out = c;
    for n in 0..TILE_WORDS {
        let sum = flushed(even[n] + odd[n]);
        out[n] = flushed(flushed(f32::from_bits(c[n])) + sum).to_bits();
    }
    out
}

#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0_f32.copysign(x) } else { x }
}
