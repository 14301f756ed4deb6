//! Detection of AMX's bfloat16 products.

use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::{Amx, TileModel, TilePairs, TileRelease, TileUnit};
use crate::gemm::{PANEL, Product, ROW_STRIDE, Tile};
use crate::simd::{Portable, Simd};

/// Whether CPUID reports `amx-tile` and `amx-bf16` (leaf 7). Leaf 0x1D, which describes the tile
/// registers, is ignored: some hypervisors leave it empty although they offer AMX, and palette 1 is
/// the same on all CPUs.
pub(crate) fn cpuid() -> (bool, bool) {
    if __cpuid_count(0, 0).eax < 7 {
        return (false, false);
    }
    let edx = __cpuid_count(7, 0).edx;
    (edx & 1 << 24 != 0, edx & 1 << 22 != 0)
}

/// Why AMX cannot be used here, or `None` if it can. Checked once per process.
pub(crate) fn unavailable() -> Option<&'static str> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    REASON.get_or_init(|| check_available().err()).as_deref()
}

/// Each check makes the next one safe. If CPUID reports tile registers, XCR0 enables them and the
/// system has granted permission, no tile instruction is illegal, and palette 1 with shapes within
/// its bounds is valid on every CPU that has tiles.
fn check_available() -> Result<(), String> {
    if !matches!(cpuid(), (true, true)) {
        return Err("the CPU has no AMX-BF16".into());
    }
    if !system_enables_tiles() {
        return Err("the operating system does not enable tile registers".into());
    }
    request_permission()?;
    if !passes_self_test() {
        return Err("the AMX self-test failed: its results differ from the software model's".into());
    }
    Ok(())
}

/// Whether the system saves tile registers on context switches: both of their bits are set in XCR0.
fn system_enables_tiles() -> bool {
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: the caller has checked OSXSAVE, which enables XGETBV; XCR0 always exists.
        unsafe { _xgetbv(0) }
    }
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u64 = 1 << 17 | 1 << 18;
    // SAFETY: the left operand has checked OSXSAVE, which implies the target feature `xsave`.
    __cpuid_count(1, 0).ecx & OSXSAVE != 0 && unsafe { xcr0() } & TILES == TILES
}

/// Linux enables the 8 KiB of tile state for a process only on request.
#[cfg(target_os = "linux")]
fn request_permission() -> Result<(), String> {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: the call passes no pointers and changes only this process's XSTATE permission.
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
    Err("AMX is supported on Linux only".into())
}

/// Self-test: multiplies small integers, whose sums are exact in any order, on the CPU and on the
/// software model, and compares. Covers every kernel, with full and partial tiles.
fn passes_self_test() -> bool {
    let _release = TileRelease;
    [(1, 16), (16, 40), (17, 7), (32, 33)].into_iter().all(|(rows, steps)| {
        (1..=3).all(|panels| {
            let product = IntegerProduct { rows, steps, panels };
            product.computed_by::<Amx>() == product.computed_by::<TileModel>()
        })
    })
}

/// A product of integers in [-8, 8], as bfloat16 pairs, accumulated onto an integer C.
struct IntegerProduct {
    rows: usize,
    steps: usize,
    panels: usize,
}

impl IntegerProduct {
    fn computed_by<U: TileUnit>(&self) -> Vec<f32> {
        let IntegerProduct { rows, steps, panels } = *self;
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
        // SAFETY: `a` holds `rows` rows of ROW_STRIDE ≥ `steps` words, `w` `panels` panels of
        // `steps` steps, `c` `rows` rows of `panels` panels; `c` is borrowed mutably here alone.
        unsafe { TilePairs::<U>::tiles(Portable, rows, panels * PANEL / Portable::LANES, tile) };
        c
    }
}
