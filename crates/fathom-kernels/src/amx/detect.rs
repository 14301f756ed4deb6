//! Whether this machine executes AMX's bfloat16 products.

use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::{Amx, Model, Release, TilePairs, TileUnit};
use crate::gemm::{PANEL, Product, ROW_STRIDE, Tile};
use crate::simd::{Portable, Simd};

/// Whether CPUID names `amx-tile` and `amx-bf16` (leaf 7). Leaf 0x1D, which describes the tile
/// registers, is not asked: some hypervisors leave it empty although they offer AMX, and palette 1
/// is the same everywhere.
pub(crate) fn cpuid() -> (bool, bool) {
    if __cpuid_count(0, 0).eax < 7 {
        return (false, false);
    }
    let edx = __cpuid_count(7, 0).edx;
    (edx & 1 << 24 != 0, edx & 1 << 22 != 0)
}

/// Why this machine cannot use AMX, if it cannot: found out once.
pub(crate) fn unavailable() -> Option<&'static str> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    REASON.get_or_init(|| try_it().err()).as_deref()
}

/// Each step makes the next one safe: with tile registers in CPUID and switched on in XCR0 (which
/// only CPUs that implement them let a system do) and with the system's permission, no instruction
/// on them is illegal, and palette 1 with shapes within its bounds is valid on every CPU that has
/// them.
fn try_it() -> Result<(), String> {
    if !matches!(cpuid(), (true, true)) {
        return Err("the CPU has no AMX-BF16".into());
    }
    if !system_keeps_tiles() {
        return Err("the operating system does not keep tile registers".into());
    }
    request_permission()?;
    if !computes_correctly() {
        return Err("AMX computes something else than it should: a self-test failed".into());
    }
    Ok(())
}

/// Whether the system switches tile registers from thread to thread: both of their bits in XCR0.
fn system_keeps_tiles() -> bool {
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: OSXSAVE says that the system allows the instruction; register 0 always exists.
        unsafe { _xgetbv(0) }
    }
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u64 = 1 << 17 | 1 << 18;
    // SAFETY: OSXSAVE implies the feature.
    __cpuid_count(1, 0).ecx & OSXSAVE != 0 && unsafe { xcr0() } & TILES == TILES
}

/// Linux gives the 8 KiB of tile registers to a process only when it asks.
#[cfg(target_os = "linux")]
fn request_permission() -> Result<(), String> {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but this process's permission.
    let refused =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } != 0;
    if refused {
        let error = std::io::Error::last_os_error();
        return Err(format!("the operating system refuses tile registers: {error}"));
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn request_permission() -> Result<(), String> {
    Err("tile registers are asked for on Linux only".into())
}

/// Multiplies small whole numbers, whose sums are exact in any order, and compares with the model:
/// every kernel, whole tiles and ragged ones.
fn computes_correctly() -> bool {
    let _release = Release;
    [(1, 16), (16, 40), (17, 7), (32, 33)].into_iter().all(|(rows, steps)| {
        (1..=3).all(|panels| {
            let product = WholeNumbers { rows, steps, panels };
            product.multiplied_by::<Amx>() == product.multiplied_by::<Model>()
        })
    })
}

/// A product of numbers between -8 and 8 (pairs of bfloat16), on top of what C holds.
struct WholeNumbers {
    rows: usize,
    steps: usize,
    panels: usize,
}

impl WholeNumbers {
    fn multiplied_by<U: TileUnit>(&self) -> Vec<f32> {
        let WholeNumbers { rows, steps, panels } = *self;
        let number = |i: usize| ((i * 7919 + i / 13) % 17) as f32 - 8.0;
        let pair =
            |i: usize| number(2 * i).to_bits() >> 16 | number(2 * i + 1).to_bits() & 0xffff_0000;
        let a: Vec<u32> = (0..rows * ROW_STRIDE).map(pair).collect();
        let w: Vec<u32> = (0..panels * steps * PANEL).map(|i| pair(i + 5)).collect();
        let mut c: Vec<f32> = (0..rows * panels * PANEL).map(number).collect();
        let tile = Tile {
            a: a.as_ptr(),
            w: w.as_ptr(),
            panel_stride: steps * PANEL,
            steps,
            c: c.as_mut_ptr(),
            c_stride: panels * PANEL,
            resume: true,
            bias: std::ptr::null(),
            prefetch: (w.as_ptr(), 0),
            prefetch_a: (a.as_ptr(), 0),
        };
        // SAFETY: `a`, `w` and `c` hold all rows, steps and panels.
        unsafe { TilePairs::<U>::tiles(Portable, rows, panels * PANEL / Portable::LANES, tile) };
        c
    }
}
