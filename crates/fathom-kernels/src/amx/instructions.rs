//! AMX instructions on this CPU's tile registers.

use std::arch::asm;
use std::cell::Cell;

use super::{PAIRS, TILE_ROWS, TILE_WORDS, TileShapes, TileUnit};

// The shapes this thread's registers are configured to; `None` initially and after `tilerelease`.
thread_local! {
    static CONFIGURED: Cell<Option<TileShapes>> = const { Cell::new(None) };
}

/// AMX's instructions. They may be executed only if [`super::unavailable`] is `None`; every
/// `SAFETY` comment below relies on that.
///
/// Register contents survive from one `asm!` to the next: compiled code uses no tile registers,
/// because no function enables their target features.
#[derive(Default)]
pub(crate) struct Amx;

/// Operand of `ldtilecfg`. Palette 1 is 8 registers of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<TileConfig>() == 64);

impl TileUnit for Amx {
    #[inline]
    fn configure(&mut self, shape: TileShapes) {
        if CONFIGURED.get() == Some(shape) {
            return;
        }
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        for tile in 0..8 {
            let (rows, words) = shape.of(tile);
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = (words * size_of::<u32>()) as u16;
        }
        // SAFETY: AMX is available (see the type). `config` is a live 64-byte palette-1
        // configuration whose rows (1 to 16) and row bytes (4 to 64) are within the palette's
        // bounds.
        unsafe {
            asm!(
                "ldtilecfg [{}]", in(reg) &config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly)
            );
        }
        CONFIGURED.set(Some(shape));
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        macro_rules! zero {
            ($($tile:literal $name:tt)+) => {
                match T {
                    // SAFETY: AMX is available; the caller has configured the registers, as
                    // `TileUnit` requires.
                    $($tile => unsafe {
                        asm!(
                            concat!("tilezero ", $name), out($name) _,
                            options(nomem, nostack, preserves_flags)
                        )
                    },)+
                    _ => unreachable!("accumulator tiles are 0 to 3"),
                }
            };
        }
        zero!(0 "tmm0" 1 "tmm1" 2 "tmm2" 3 "tmm3");
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize) {
        macro_rules! load {
            ($($tile:literal $name:tt)+) => {
                match T {
                    // SAFETY: as in `zero`; the caller guarantees that `from` is valid for the rows
                    // and words of register `T`.
                    $($tile => unsafe {
                        asm!(
                            concat!("tileloadd ", $name, ", [{from} + {stride} * 4]"),
                            from = in(reg) from, stride = in(reg) stride, out($name) _,
                            options(readonly, nostack, preserves_flags)
                        )
                    },)+
                    _ => unreachable!("registers are 0 to 7"),
                }
            };
        }
        load!(0 "tmm0" 1 "tmm1" 2 "tmm2" 3 "tmm3" 4 "tmm4" 5 "tmm5" 6 "tmm6" 7 "tmm7");
    }

    #[inline(always)]
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        macro_rules! multiply {
            ($(($c:literal $a:literal $b:literal) $c_name:tt $a_name:tt $b_name:tt;)+) => {
                match (C, A, B) {
                    // SAFETY: as in `zero`; `TileShapes` guarantees that the shapes of A, B and C
                    // match.
                    $(($c, $a, $b) => unsafe {
                        asm!(
                            concat!("tdpbf16ps ", $c_name, ", ", $a_name, ", ", $b_name),
                            out($c_name) _,
                            options(nomem, nostack, preserves_flags)
                        )
                    },)+
                    _ => unreachable!("no kernel uses this combination of tiles"),
                }
            };
        }
        multiply!(
            (0 4 6) "tmm0" "tmm4" "tmm6";
            (1 4 7) "tmm1" "tmm4" "tmm7";
            (2 4 6) "tmm2" "tmm4" "tmm6";
            (3 4 7) "tmm3" "tmm4" "tmm7";
            (2 5 6) "tmm2" "tmm5" "tmm6";
            (3 5 7) "tmm3" "tmm5" "tmm7";
        );
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
        macro_rules! store {
            ($($tile:literal $name:tt)+) => {
                match T {
                    // SAFETY: as in `zero`; the caller guarantees that `to` is valid for writing
                    // the rows and words of register `T`.
                    $($tile => unsafe {
                        asm!(
                            concat!("tilestored [{to} + {stride} * 4], ", $name),
                            to = in(reg) to, stride = in(reg) stride,
                            options(nostack, preserves_flags)
                        )
                    },)+
                    _ => unreachable!("accumulator tiles are 0 to 3"),
                }
            };
        }
        store!(0 "tmm0" 1 "tmm1" 2 "tmm2" 3 "tmm3");
    }
}

/// Releases this thread's tile registers on drop, if they were configured. Otherwise every context
/// switch would save 8 KiB of tile data, and an idle core could not enter deep sleep states.
pub(crate) struct TileRelease;

impl Drop for TileRelease {
    fn drop(&mut self) {
        if CONFIGURED.take().is_some() {
            // SAFETY: this thread has configured the registers, so AMX is available.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nomem, nostack, preserves_flags)
                );
            }
        }
    }
}

/// Floating-point operations per step of [`peak_products`].
pub(crate) const PEAK_PRODUCTS_FLOPS: f64 = (4 * 2 * TILE_ROWS * TILE_WORDS * 2 * PAIRS) as f64;

/// Runs `steps` times four tile products without memory accesses, to measure the unit's peak rate.
pub(crate) fn peak_products(steps: usize) {
    let _release = TileRelease;
    let mut unit = Amx;
    unit.configure(TileShapes { top: TILE_ROWS, bottom: TILE_ROWS, pairs: PAIRS });
    for _ in 0..steps {
        unit.multiply::<0, 4, 6>();
        unit.multiply::<1, 4, 7>();
        unit.multiply::<2, 5, 6>();
        unit.multiply::<3, 5, 7>();
    }
}
