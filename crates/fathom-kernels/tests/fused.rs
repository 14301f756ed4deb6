//! Every fused operation returns the bits of the operations it fuses.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use fathom_backend::{Backend, DType};
use fathom_kernels::{Cpu, Linear, Operand, Rows};
use proptest::prelude::*;

const DTYPES: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];

/// A matrix `[n, k]` of random weights with a bias.
fn matrix(cpu: &Cpu, seed: u64, n: usize, k: usize, dtype: DType) -> Linear {
    let bytes = bytes_of(&numbers(seed, n * k), dtype);
    cpu.linear_from(view(&bytes, dtype, n, k), Some(&numbers(seed ^ 77, n))).unwrap()
}

fn operand(cpu: &Cpu, x: &Rows) -> Operand {
    let mut operand = cpu.new_operand();
    cpu.operand(x, &mut operand).unwrap();
    operand
}

fn product(cpu: &Cpu, w: &Linear, x: &Rows) -> Rows {
    let mut out = cpu.alloc(cpu.shape(x).0, w.out_features()).unwrap();
    common::linear(cpu, w, x, &mut out);
    out
}

fn bits_of(cpu: &Cpu, rows: &Rows) -> Vec<u32> {
    bits(&values_of(cpu, rows))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn fused_operations_return_the_bits_of_their_parts(
        rows in 1_usize..=40, k in 1_usize..=600, n in 1_usize..=300, threads in 1_usize..=3,
        dtypes in prop::array::uniform3(prop::sample::select(DTYPES.to_vec())), seed: u64,
    ) {
        for cpu in variants().map(|(path, precision)| cpu(path, precision, threads)) {
            let what = format!("{} {:?}", cpu.isa(), cpu.precision());
            let x = rows_of(&cpu, &numbers(seed, rows * k), k);
            let packed = operand(&cpu, &x);

            // Several matrices at once, of different dtypes and widths.
            let ws = [n, n.div_ceil(2), n + 5];
            let ws = [0, 1, 2].map(|i| matrix(&cpu, seed ^ i as u64, ws[i], k, dtypes[i]));
            let mut outs = ws.each_ref().map(|w| cpu.alloc(rows, w.out_features()).unwrap());
            let [a, b, c] = &mut outs;
            cpu.linears(&ws.each_ref(), &packed, &mut [a, b, c]).unwrap();
            for (w, out) in ws.iter().zip(&outs) {
                let want = bits_of(&cpu, &product(&cpu, w, &x));
                prop_assert!(bits_of(&cpu, out) == want, "{what}: linears");
            }

            // Accumulation into the output.
            let y = numbers(seed ^ 5, rows * n);
            let (mut fused, mut parts) = (rows_of(&cpu, &y, n), rows_of(&cpu, &y, n));
            cpu.linear_add(&ws[0], &packed, &mut fused).unwrap();
            cpu.add_assign(&mut parts, &product(&cpu, &ws[0], &x)).unwrap();
            prop_assert!(bits_of(&cpu, &fused) == bits_of(&cpu, &parts), "{what}: linear_add");

            // The gated activation, packed for the next product.
            let up = matrix(&cpu, seed ^ 6, n, k, dtypes[1]);
            let down = matrix(&cpu, seed ^ 7, 33, n, dtypes[2]);
            let (mut fused, mut parts) = (cpu.new_operand(), cpu.alloc(rows, n).unwrap());
            cpu.gated(&ws[0], &up, &packed, &mut fused).unwrap();
            let mut silu = cpu.alloc(rows, n).unwrap();
            cpu.silu(&outs[0], &mut silu).unwrap();
            cpu.mul(&silu, &product(&cpu, &up, &x), &mut parts).unwrap();
            let mut out = cpu.alloc(rows, 33).unwrap();
            cpu.linears(&[&down], &fused, &mut [&mut out]).unwrap();
            prop_assert!(
                bits_of(&cpu, &out) == bits_of(&cpu, &product(&cpu, &down, &parts)), "{what}: gated"
            );

            // The norm, packed for the next product.
            let weight = cpu.vector_from(&numbers(seed ^ 8, k)).unwrap();
            let (mut fused, mut parts) = (cpu.new_operand(), cpu.alloc(rows, k).unwrap());
            cpu.rms_norm_operand(&x, &weight, 1e-5, &mut fused).unwrap();
            cpu.rms_norm(&x, &weight, 1e-5, &mut parts).unwrap();
            cpu.linears(&[&ws[0]], &fused, &mut [&mut outs[0]]).unwrap();
            prop_assert!(
                bits_of(&cpu, &outs[0]) == bits_of(&cpu, &product(&cpu, &ws[0], &parts)),
                "{what}: rms_norm_operand"
            );

            // The largest logit.
            for limit in [1, n.div_ceil(2), n, n + 9] {
                let want = cpu.argmax(&product(&cpu, &ws[0], &x), limit).unwrap();
                let got = cpu.linear_argmax(&ws[0], &packed, limit).unwrap();
                prop_assert_eq!(got, want, "{}: linear_argmax", &what);
            }
        }
    }
}

#[test]
fn the_lowest_of_equally_likely_tokens_wins_and_nan_never_does() {
    // For a row of positive x, columns 7, 17, 27, … are equally large, column 18 is infinite, and
    // column 3 is NaN.
    let (n, k) = (20_000, 64);
    let mut values: Vec<f32> =
        (0..n * k).map(|i| if i / k % 10 == 7 { 1.0 } else { 0.5 }).collect();
    values[3 * k] = f32::NAN;
    values[18 * k..19 * k].fill(f32::INFINITY);
    let bytes = bytes_of(&values, DType::F32);
    for cpu in variants().map(|(path, precision)| cpu(path, precision, 3)) {
        let w = cpu.linear_from(view(&bytes, DType::F32, n, k), None).unwrap();
        let x: Vec<f32> = [1.0, -1.0, f32::NAN, 0.0].into_iter().flat_map(|x| [x; 64]).collect();
        let x = rows_of(&cpu, &x, k);
        for limit in [1, 8, 18, n] {
            let want = cpu.argmax(&product(&cpu, &w, &x), limit).unwrap();
            // A row of NaN has only NaN results, so column 0 is chosen.
            let first = if limit > 18 {
                18
            } else if limit > 7 {
                7
            } else {
                0
            };
            assert_eq!(want, [first, 0, 0, 0], "{} {limit}", cpu.isa());
            assert_eq!(
                cpu.linear_argmax(&w, &operand(&cpu, &x), limit).unwrap(),
                want,
                "{}",
                cpu.isa()
            );
        }
    }
}
