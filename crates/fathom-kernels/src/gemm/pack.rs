//! Packing of weights and activations into the micro-kernel's layouts.
//!
//! Packing transposes: consecutive k of a column end up one panel row (128 bytes) apart. It
//! proceeds in chunks of 32 steps of all 32 columns: about 128 bytes of each column are read and 4
//! KiB are written in order. Both sides stay in L1, and memory sees two sequential streams: the
//! file's pages and fresh pages. Loading is then dominated by the operating system, which clears
//! pages and reads the file.

use std::ops::Range;

use fathom_backend::{DType, Result, WeightView};
use half::{bf16, f16};

use super::layout::{PANEL, ROW_STRIDE, Storage};
use super::product::{Product, k_block};
use crate::memory::Aligned;
use crate::simd::Simd;

/// A packed matrix `[columns, k]`: `[columns / 32][k][32]` f32, or `[columns / 32][k / 2][32][2]`
/// bfloat16. Padding columns and k are zero.
pub(crate) struct Panels {
    pub(crate) storage: Storage,
    pub(crate) columns: usize,
    pub(crate) k: usize,
    pub(crate) words: Aligned<u32>,
}

impl Panels {
    pub(crate) fn zeroed(columns: usize, k: usize, storage: Storage) -> Result<Panels> {
        let words = columns.div_ceil(PANEL) * storage.steps(k) * PANEL;
        let words = Aligned::try_zeroed_to_stream(words, "weights")?;
        Ok(Panels { storage, columns, k, words })
    }

    pub(crate) fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// Words of one panel.
    pub(crate) fn stride(&self) -> usize {
        self.storage.steps(self.k) * PANEL
    }

    /// Pointer to the first word of a panel.
    pub(crate) fn panel(&self, panel: usize) -> *const u32 {
        self.words[panel * self.stride()..].as_ptr()
    }

    /// Column `column` as f32.
    pub(crate) fn read_column(&self, column: usize, out: &mut [f32]) {
        let panel = &self.words[column / PANEL * self.stride()..][..self.stride()];
        let lane = column % PANEL;
        match self.storage {
            Storage::F32 => {
                for (out, step) in out.iter_mut().zip(panel.chunks_exact(PANEL)) {
                    *out = f32::from_bits(step[lane]);
                }
            }
            Storage::Bf16 => {
                for (out, step) in out.chunks_mut(2).zip(panel.chunks_exact(PANEL)) {
                    out[0] = f32::from_bits(step[lane] << 16);
                    if let Some(out) = out.get_mut(1) {
                        *out = f32::from_bits(step[lane] & 0xffff_0000);
                    }
                }
            }
        }
    }
}

/// Packs panels `panels` of `weight` into `words`, their range of [`Panels::words`].
pub(crate) fn pack_weights(
    weight: &WeightView<'_>,
    storage: Storage,
    panels: Range<usize>,
    words: &mut [u32],
) {
    let stride = storage.steps(weight.columns) * PANEL;
    if stride == 0 {
        return;
    }
    let row_bytes = weight.columns * weight.dtype.size();
    for (panel, words) in panels.zip(words.chunks_exact_mut(stride)) {
        let rows = panel * PANEL..weight.rows.min((panel + 1) * PANEL);
        // Few k at a time over all columns, so that the panel is written nearly in order.
        const STEPS: usize = 32;
        for (chunk, words) in words.chunks_mut(STEPS * PANEL).enumerate() {
            let first = chunk * STEPS * storage.k_per_word();
            let k = first..weight.columns.min(first + STEPS * storage.k_per_word());
            for (lane, row) in rows.clone().enumerate() {
                let size = weight.dtype.size();
                let bytes = &weight.bytes[row * row_bytes..][k.start * size..k.end * size];
                pack_column(bytes, weight.dtype, storage, &mut words[lane..]);
            }
        }
    }
}

/// Writes consecutive k of one column to every `PANEL`-th word.
fn pack_column(bytes: &[u8], dtype: DType, storage: Storage, words: &mut [u32]) {
    let words = words.iter_mut().step_by(PANEL);
    match (storage, dtype) {
        (Storage::Bf16, DType::Bf16) => {
            for (word, pair) in words.zip(bytes.chunks(4)) {
                *word = match *pair {
                    [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                    [a, b] => u32::from_le_bytes([a, b, 0, 0]),
                    _ => 0,
                };
            }
        }
        (Storage::Bf16, _) => {
            let size = dtype.size();
            for (word, pair) in words.zip(bytes.chunks(2 * size)) {
                let mut halves = pair.chunks_exact(size).map(|x| bf16_bits(element(x, dtype)));
                let low = halves.next().unwrap_or(0);
                *word = low | halves.next().unwrap_or(0) << 16;
            }
        }
        (Storage::F32, _) => {
            for (word, x) in words.zip(bytes.chunks_exact(dtype.size())) {
                *word = element(x, dtype).to_bits();
            }
        }
    }
}

/// Rounds to the nearest bfloat16, ties to even, as `bf16::from_f32` does. Branch-free, so that
/// loops over it vectorize.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { nearest }
}

/// Decodes one element from `bytes`.
pub(crate) fn element(bytes: &[u8], dtype: DType) -> f32 {
    match (dtype, bytes) {
        (DType::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("a {dtype:?} does not have {} bytes", bytes.len()),
    }
}

/// Packs `x`, at most [`k_block`] consecutive k of one row, as the product reads it: f32, f32
/// rounded to bfloat16 (`round`), or bfloat16 pairs. An odd k is padded with a zero.
#[inline(always)]
pub(crate) fn pack_row<S: Simd, P: Product>(
    s: S,
    round: bool,
    x: &[f32],
    out: &mut [u32; ROW_STRIDE],
) {
    let lanes = S::LANES;
    debug_assert!(x.len() <= k_block::<P>());
    let out = out.as_mut_ptr();
    let mut at = 0;
    while at < x.len() {
        let values = s.load_some(&x[at..]);
        // SAFETY: `at < x.len() ≤ k_block`, so `at + LANES` is at most `k_block` rounded up to a
        // vector; `out` is a whole packed row.
        unsafe { store_packed::<S, P>(s, round, values, out, at) };
        at += lanes;
    }
}

/// Writes a vector of consecutive k, starting at `k`, into a packed row.
///
/// # Safety
/// `out` holds [`ROW_STRIDE`] words and `k + S::LANES` is at most [`k_block`] rounded up to a
/// vector.
#[inline(always)]
pub(crate) unsafe fn store_packed<S: Simd, P: Product>(
    s: S,
    round: bool,
    values: S::F32,
    out: *mut u32,
    k: usize,
) {
    // SAFETY: by the caller's contract the vector's elements are within the row, as f32 (one word
    // each) or bfloat16 (half a word each).
    unsafe {
        if P::A_PAIRS {
            s.store_bf16(out.cast::<u16>().add(k), values);
        } else if round {
            s.store(out.cast::<f32>().add(k), s.round_bf16(values));
        } else {
            s.store(out.cast::<f32>().add(k), values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        let edges = [
            0,
            1,
            0x7fff,
            0x8000,
            0x8001,
            0x18000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fff_ffff,
        ];
        let signed = edges.into_iter().flat_map(|bits| [bits, bits | 1 << 31]);
        for bits in signed.chain((0..u32::MAX).step_by(65_521)) {
            let x = f32::from_bits(bits);
            assert_eq!(bf16_bits(x), u32::from(bf16::from_f32(x).to_bits()), "{bits:#010x}");
        }
    }
}
