//! Human-readable descriptions of the kernels a [`Cpu`] uses.

use fathom_backend::DType;

use super::cpu::Cpu;
use super::isa::Tiles;
use crate::gemm::{PANEL, Storage, is_pairs, product_name};
use crate::simd::{Kernel, Simd};

/// The code path a [`Cpu`] uses for one kind of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPath {
    /// The kind of work, such as `matrix product, bf16 checkpoint`.
    pub work: &'static str,
    /// The code path, such as `f32, 16 lanes`.
    pub path: String,
}

impl Cpu {
    /// The code path of each kind of work.
    pub fn kernel_paths(&self) -> Vec<KernelPath> {
        let Vectors { lanes, tile_rows, bf16_dot } = self.isa.run(Describe);
        let product = |storage| {
            let tiles = self.isa.tiles().filter(|_| is_pairs(storage, self.precision));
            if let Some(tiles) = tiles {
                let unit = match tiles {
                    Tiles::Modelled => "software tile model",
                    #[cfg(target_arch = "x86_64")]
                    Tiles::Amx => "tdpbf16ps (passed its self-test here)",
                };
                return format!("bf16 pairs, {unit}, 2 × 2 tiles of 16 × 16");
            }
            let name = product_name(storage, self.precision, bf16_dot);
            format!("{name}, register tile {tile_rows} × {}", PANEL.min(2 * lanes))
        };
        let weights = |dtype| product(Storage::of_weights(dtype, self.precision));
        let path = |work, path| KernelPath { work, path };
        vec![
            path("matrix product, bf16 checkpoint", weights(DType::Bf16)),
            path("matrix product, f16 or f32 checkpoint", weights(DType::F32)),
            path("attention", product(Storage::of_cache(self.precision))),
            path("norms, rotary embedding, activations", format!("f32, {lanes} lanes")),
        ]
    }
}

struct Vectors {
    lanes: usize,
    tile_rows: usize,
    bf16_dot: bool,
}

struct Describe;

impl Kernel for Describe {
    type Output = Vectors;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vectors {
        Vectors { lanes: S::LANES, tile_rows: S::TILE_ROWS, bf16_dot: S::BF16_DOT }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::{Cpu, CpuOptions, Isa};
    use fathom_backend::Precision;

    #[test]
    fn a_forced_portable_path_says_so() {
        let cpu = Cpu::new(CpuOptions {
            isa: Some(Isa::Portable),
            precision: Precision::Bf16,
            ..CpuOptions::default()
        })
        .unwrap();
        let paths = cpu.kernel_paths();
        assert!(paths.iter().all(|p| !p.path.contains("vdpbf16ps")), "{paths:?}");
        assert!(paths.iter().any(|p| p.path == "f32, 4 lanes"), "{paths:?}");
    }
}
