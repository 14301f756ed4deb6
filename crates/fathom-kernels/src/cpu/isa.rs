//! Which instruction set the kernels use, decided at run time.

use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::amx::{Model, TilePairs, TileUnit};
use crate::gemm::{ForProduct, ProductKernel, is_pairs};
use crate::simd::{Kernel, Portable, Simd};

/// An instruction set the kernels are compiled for.
///
/// Results of different sets may differ in their last bits; those of one set never do. On other
/// architectures than x86-64 there is [`Isa::Portable`] alone, which the compiler maps to what they
/// have (NEON on aarch64): that builds, but has not been run there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, for any machine.
    Portable,
    /// 256-bit vectors with fused multiply-add: `avx2`, `fma`.
    Avx2,
    /// 512-bit vectors: `avx512f`, `avx512bw`, `avx512dq`, `avx512vl`.
    Avx512,
    /// [`Isa::Avx512`] with the bfloat16 dot product `vdpbf16ps`: `avx512bf16`.
    Avx512Bf16,
    /// [`Isa::Avx512Bf16`], whose bfloat16 products run in tile registers: `amx-tile`, `amx-bf16`.
    /// In f32 it is the same as [`Isa::Avx512Bf16`]. Used only where a self-test passes: the
    /// kernels have run on a software model of the instructions and on an emulated CPU, not yet on
    /// a real one.
    Avx512Amx,
}

impl Isa {
    /// Every set, slowest first.
    pub const ALL: [Isa; 5] =
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Avx512Amx];

    /// The best set this machine runs.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        let best = || Isa::ALL.into_iter().rev().find(|isa| isa.is_supported());
        *BEST.get_or_init(|| best().unwrap_or(Isa::Portable))
    }

    /// Whether this machine runs it.
    pub fn is_supported(self) -> bool {
        self.unavailable().is_none()
    }

    /// Why this machine does not run it, if it does not: as `it lacks avx2, fma`.
    pub fn unavailable(self) -> Option<String> {
        let missing: Vec<_> =
            self.features().iter().filter(|f| !f.present).map(|f| f.name).collect();
        if !missing.is_empty() {
            return Some(format!("it lacks {}", missing.join(", ")));
        }
        #[cfg(target_arch = "x86_64")]
        if self == Isa::Avx512Amx {
            // Its features are not enough: the system has to cooperate, and the instructions to
            // work.
            return amx::unavailable().map(str::to_owned);
        }
        None
    }

    /// The CPU features it needs, and whether this machine has them.
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

    /// Its name in options and reports.
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
    /// Whether the machine has it.
    pub present: bool,
}

/// What this CPU offers of the features any kernel cares about.
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

/// An [`Isa`] this machine is known to run: the proof that dispatching to it is sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supported {
    isa: Isa,
    /// Whether products of bfloat16 pairs run on the model of tile registers instead.
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

    /// This set for vectors, and a model for tiles.
    pub(crate) fn with_modelled_tiles(self) -> Supported {
        Supported { modelled_tiles: true, ..self }
    }

    pub(crate) fn isa(self) -> Isa {
        self.isa
    }

    /// Where products of bfloat16 pairs run, if not in vector registers.
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
            // SAFETY: `Supported` exists only for sets whose every feature was detected.
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

    /// Runs a kernel that multiplies, with the product that its operands and this machine call for.
    pub(crate) fn run_product<K: ProductKernel>(self, product: ForProduct<K>) {
        match self.tiles().filter(|_| is_pairs(product.storage, product.precision)) {
            None => self.run(product),
            Some(Tiles::Modelled) => self.run(WithTiles::<Model, K>(product.kernel, PhantomData)),
            #[cfg(target_arch = "x86_64")]
            Some(Tiles::Amx) => {
                let _release = amx::Release;
                // SAFETY: as in `run`.
                let vectors = unsafe { crate::simd::Avx512::<true>::new() };
                vectors.vectorize(WithTiles::<amx::Amx, K>(product.kernel, PhantomData));
            }
        }
    }
}

/// What has tile registers.
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
