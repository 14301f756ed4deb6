//! Run-time dispatch to an instruction set.

/// A computation that is compiled once for each instruction set.
pub(crate) trait Work {
    type Output;
    /// The computation, with fused multiply-add or without (`FUSED`). `WIDTH` is the number of f32
    /// in four vectors: enough independent sums to hide the latency of addition.
    ///
    /// `run` and everything it calls must be `#[inline(always)]`: only code inlined into the
    /// function with the target features is compiled for them.
    fn run<const WIDTH: usize, const FUSED: bool>(self) -> Self::Output;
}

/// An instruction set this CPU supports, as a proof that dispatching to it is sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supported(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    /// The baseline of the compiler's target.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Supported {
    /// The best supported set.
    pub(crate) fn best() -> Supported {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Supported(Isa::Avx512);
            }
            if has_avx2() {
                return Supported(Isa::Avx2);
            }
        }
        Supported(Isa::Portable)
    }

    /// All supported sets.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Supported> {
        #[allow(unused_mut)]
        let mut all = vec![Supported(Isa::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(has_avx2().then_some(Supported(Isa::Avx2)));
            all.extend(has_avx512().then_some(Supported(Isa::Avx512)));
        }
        all
    }

    /// `WIDTH` and `FUSED` of this set.
    #[cfg(test)]
    pub(crate) fn shape(self) -> (usize, bool) {
        struct Shape;
        impl Work for Shape {
            type Output = (usize, bool);
            #[inline(always)]
            fn run<const WIDTH: usize, const FUSED: bool>(self) -> (usize, bool) {
                (WIDTH, FUSED)
            }
        }
        self.run(Shape)
    }

    /// Runs `work` compiled for this instruction set.
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            Isa::Portable => portable(work),
            // SAFETY: a `Supported(Isa::Avx2)` exists only if `has_avx2` detected its features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(work) },
            // SAFETY: a `Supported(Isa::Avx512)` exists only if `has_avx512` detected its features.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512(work) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[inline(never)]
fn portable<W: Work>(work: W) -> W::Output {
    // Not fused: without the instruction, `mul_add` is a slow library call.
    work.run::<16, false>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn avx2<W: Work>(work: W) -> W::Output {
    work.run::<32, true>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<W: Work>(work: W) -> W::Output {
    work.run::<64, true>()
}
