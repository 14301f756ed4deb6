//! Instruction sets and run-time dispatch.

use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::amx::{TileModel, TilePairs, TileUnit};
use crate::gemm::{ForProduct, ProductKernel, is_pairs};
use crate::simd::{Kernel, Portable, Simd};

/// An instruction set the kernels are compiled for.
///
/// Results of different sets may differ in their last bits; those of one set never do. On
/// architectures other than x86-64 only [`Isa::Portable`] exists, which the compiler maps to the
/// target's vectors (NEON on aarch64). It compiles for aarch64 but has not been run there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust, for any CPU.
    Portable,
    /// 256-bit vectors with fused multiply-add: `avx2`, `fma`.
    Avx2,
    /// 512-bit vectors: `avx512f`, `avx512bw`, `avx512dq`, `avx512vl`.
    Avx512,
    /// [`Isa::Avx512`] with the bfloat16 dot product `vdpbf16ps`: `avx512bf16`.
    Avx512Bf16,
    /// [`Isa::Avx512Bf16`] with bfloat16 products in AMX tile registers: `amx-tile`, `amx-bf16`. In
    /// f32 precision it is the same as [`Isa::Avx512Bf16`]. Used only if a self-test passes: the
    /// kernels have run on a software model of the instructions and on an emulated CPU, but not yet
    /// on a real one.
    Avx512Amx,
}

impl Isa {
    /// Every set, slowest first.
    pub const ALL: [Isa; 5] =
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Avx512Amx];

    /// The best set this CPU supports.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        let best = || Isa::ALL.into_iter().rev().find(|isa| isa.is_supported());
        *BEST.get_or_init(|| best().unwrap_or(Isa::Portable))
    }

    /// Whether this CPU supports it.
    pub fn is_supported(self) -> bool {
        self.unavailable().is_none()
    }

    /// Why this CPU does not support it, such as `it lacks avx2, fma`; `None` if it does.
    pub fn unavailable(self) -> Option<String> {
        let missing: Vec<_> =
            self.features().iter().filter(|f| !f.present).map(|f| f.name).collect();
        if !missing.is_empty() {
            return Some(format!("it lacks {}", missing.join(", ")));
        }
        #[cfg(target_arch = "x86_64")]
        if self == Isa::Avx512Amx {
            // CPU features are not enough: the operating system must enable AMX, and the self-test
            // must pass.
            return amx::unavailable().map(str::to_owned);
        }
        None
    }

    /// The CPU features it needs, and whether this CPU has them.
    pub fn features(self) -> Vec<Feature> {
        let all = cpu_features();
        let needed: &[&str] = match self {
            Isa::Portable => &[],
            Isa::Avx2 => &["avx2", "fma"],
            Isa::Avx512 => &["avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"],
            Isa::Avx512Bf16 => {
                &["avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16"]
            }
            Isa::Avx512Amx => &[
                "avx2",
                "fma",
                "avx512f",
                "avx512bw",
                "avx512dq",
                "avx512vl",
                "avx512bf16",
                "amx-tile",
                "amx-bf16",
            ],
        };
        let present = |name| all.iter().any(|feature| feature.name == name && feature.present);
        needed.iter().map(|&name| Feature { name, present: present(name) }).collect()
    }

    /// The name used in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Avx512Amx => "amx-bf16",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A CPU feature, by its name in `/proc/cpuinfo` and in `rustc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The name.
    pub name: &'static str,
    /// Whether this CPU has it.
    pub present: bool,
}

/// All features that any kernel uses, and whether this CPU has them.
pub fn cpu_features() -> Vec<Feature> {
    macro_rules! features {
        ($($name:tt)*) => {
            vec![$(Feature { name: $name, present: std::arch::is_x86_feature_detected!($name) }),*]
        };
    }
    #[cfg(target_arch = "x86_64")]
    {
        let mut features =
            features!("avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512bf16");
        let (amx_tile, amx_bf16) = amx::cpuid();
        features.push(Feature { name: "amx-tile", present: amx_tile });
        features.push(Feature { name: "amx-bf16", present: amx_bf16 });
        features
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// An [`Isa`] this CPU is known to support, as a proof that dispatching to it is sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supported {
    isa: Isa,
    /// Whether products of bfloat16 pairs run on the software model of tile registers.
    modelled_tiles: bool,
}

impl Supported {
    /// # Errors
    /// [`Isa::unavailable`]
    pub(crate) fn new(isa: Isa) -> Result<Supported, String> {
        match isa.unavailable() {
            None => Ok(Supported { isa, modelled_tiles: false }),
            Some(reason) => Err(reason),
        }
    }

    /// The same instruction set for vectors, with the software model of tile registers.
    pub(crate) fn with_tile_model(self) -> Supported {
        Supported { modelled_tiles: true, ..self }
    }

    pub(crate) fn isa(self) -> Isa {
        self.isa
    }

    /// The tile registers that products of bfloat16 pairs use; `None`: vector registers.
    pub(crate) fn tiles(self) -> Option<Tiles> {
        match self.isa {
            _ if self.modelled_tiles => Some(Tiles::Modelled),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Amx => Some(Tiles::Amx),
            _ => None,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        use crate::simd::{Avx2, Avx512};
        match self.isa {
            Isa::Portable => Portable.vectorize(kernel),
            // SAFETY: a `Supported` exists only for a set all of whose features were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { Avx2::new() }.vectorize(kernel),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { Avx512::<false>::new() }.vectorize(kernel),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Avx512Amx => unsafe { Avx512::<true>::new() }.vectorize(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            _ => Portable.vectorize(kernel),
        }
    }

    /// Runs a kernel with the product for its operands' storage and precision on this CPU.
    pub(crate) fn run_product<K: ProductKernel>(self, product: ForProduct<K>) {
        match self.tiles().filter(|_| is_pairs(product.storage, product.precision)) {
            None => self.run(product),
            Some(Tiles::Modelled) => {
                self.run(WithTiles::<TileModel, K>(product.kernel, PhantomData))
            }
            #[cfg(target_arch = "x86_64")]
            Some(Tiles::Amx) => {
                let _release = amx::TileRelease;
                // SAFETY: as in `run`: `Tiles::Amx` implies `Isa::Avx512Amx`, whose features
                // include those of `Avx512<true>`.
                let vectors = unsafe { crate::simd::Avx512::<true>::new() };
                vectors.vectorize(WithTiles::<amx::Amx, K>(product.kernel, PhantomData));
            }
        }
    }
}

/// Implementations of tile registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiles {
    Modelled,
    #[cfg(target_arch = "x86_64")]
    Amx,
}

/// A kernel whose product is [`TilePairs`].
struct WithTiles<U, K>(K, PhantomData<U>);

impl<U: TileUnit, K: ProductKernel> Kernel for WithTiles<U, K> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run::<S, TilePairs<U>>(s, false);
    }
}
