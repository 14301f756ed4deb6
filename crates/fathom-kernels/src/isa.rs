//! Which instruction set the kernels use, decided at run time.

use std::fmt;

use crate::simd::{Kernel, Portable, Simd};

/// An instruction set the kernels are compiled for.
///
/// Results of different sets may differ in their last bits; those of one set never do.
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
}

impl Isa {
    /// Every set, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The best set this machine runs.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_supported()).unwrap_or(Isa::Portable)
    }

    /// Whether this machine runs it.
    pub fn is_supported(self) -> bool {
        self.features().iter().all(|feature| feature.present)
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

/// What this CPU offers of the features any kernel, present or planned, cares about.
pub fn cpu_features() -> Vec<Feature> {
    macro_rules! features {
        ($($name:tt)*) => {
            vec![$(Feature { name: $name, present: std::arch::is_x86_feature_detected!($name) }),*]
        };
    }
    #[cfg(target_arch = "x86_64")]
    return features!("avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return Vec::new();
}

/// An [`Isa`] this machine is known to run: the proof that dispatching to it is sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supported(Isa);

impl Supported {
    pub(crate) fn best() -> Supported {
        Supported(Isa::detect())
    }

    pub(crate) fn new(isa: Isa) -> Option<Supported> {
        isa.is_supported().then_some(Supported(isa))
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        use crate::simd::{Avx2, Avx512};
        match self.0 {
            Isa::Portable => Portable.vectorize(kernel),
            // SAFETY: `Supported` exists only for sets whose every feature was detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { Avx2::new() }.vectorize(kernel),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { Avx512::<false>::new() }.vectorize(kernel),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => unsafe { Avx512::<true>::new() }.vectorize(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            _ => Portable.vectorize(kernel),
        }
    }
}
