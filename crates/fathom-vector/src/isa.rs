//! Which instruction set the functions of this crate use, decided when they are called.

/// A computation that is compiled once for each instruction set.
pub(crate) trait Work {
    type Output;
    /// The computation, with (`FUSED`) or without an instruction for multiply-add. `WIDTH` is the
    /// number of f32 in four vectors: enough sums side by side to hide the latency of an addition.
    /// Must be `#[inline(always)]`, as must everything it calls: only so it ends up in the function
    /// whose instructions the compiler may use.
    fn run<const WIDTH: usize, const FUSED: bool>(self) -> Self::Output;
}

/// An instruction set this machine runs: each variant is the proof that dispatching to it is sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supported(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    /// Whatever the compiler's target has.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Supported {
    /// The best this machine runs.
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

    /// Every set this machine runs.
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

    /// f32 in four of its vectors, and whether it has fused multiply-add.
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
            // SAFETY: a `Supported` of this set exists only where its features were detected.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(work) },
            // SAFETY: as above.
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
    // `mul_add` without the instruction would be a slow library call: two operations, each rounded.
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
