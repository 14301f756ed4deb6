//! The tile registers in software: what Intel's manual says the instructions do, element by
//! element.
//!
//! Tests check the tile kernels with it on any machine, and a CPU's own instructions are compared
//! with it before they are used.

use super::{PAIRS, Shape, TILE_ROWS, TILE_WORDS, TileUnit};

type Register = [[u32; TILE_WORDS]; TILE_ROWS];

/// Eight tile registers and their shapes.
pub(crate) struct Model {
    shape: Option<Shape>,
    registers: [Register; 8],
}

impl Default for Model {
    fn default() -> Model {
        Model { shape: None, registers: [[[0; TILE_WORDS]; TILE_ROWS]; 8] }
    }
}

impl Model {
    /// Rows and words of a register. The instructions fault without a configuration; this panics.
    fn shape_of(&self, tile: usize) -> (usize, usize) {
        self.shape.unwrap_or_else(|| panic!("tile registers were not configured")).of(tile)
    }
}

impl TileUnit for Model {
    fn configure(&mut self, shape: Shape) {
        *self = Model { shape: Some(shape), ..Model::default() };
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
                // SAFETY: the caller's promise.
                *word = unsafe { from.add(i * stride + j).read() };
            }
        }
    }

    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        let ((c_rows, c_words), (a_rows, pairs), (b_rows, b_words)) =
            (self.shape_of(C), self.shape_of(A), self.shape_of(B));
        assert!(c_rows == a_rows && pairs == b_rows && c_words == b_words, "shapes of a product");
        let mut c = self.registers[C];
        let (a, b) = (&self.registers[A], &self.registers[B]);
        for (c, a) in c.iter_mut().zip(a).take(c_rows) {
            // What lies beyond the shapes is zero.
            *c = row_product(*c, a, b);
        }
        self.registers[C] = c;
    }

    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
        let (rows, words) = self.shape_of(T);
        for (i, row) in self.registers[T].iter().enumerate().take(rows) {
            for (j, word) in row.iter().enumerate().take(words) {
                // SAFETY: the caller's promise.
                unsafe { to.add(i * stride + j).write(f32::from_bits(*word)) }
            }
        }
    }
}

/// A row of `C + A · B`: even and odd k by themselves, fused multiply-add after fused multiply-add,
/// then their sum, then that added to C. Rounded to nearest even each time; subnormal numbers are
/// zeros on the way in and on the way out.
fn row_product(c: [u32; TILE_WORDS], a: &[u32; PAIRS], b: &Register) -> [u32; TILE_WORDS] {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn with_fma(c: [u32; TILE_WORDS], a: &[u32; PAIRS], b: &Register) -> [u32; TILE_WORDS] {
            portable(c, a, b)
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            // SAFETY: the features are there. `mul_add` is one instruction then, not a library
            // call.
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
