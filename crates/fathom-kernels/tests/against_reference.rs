//! Every operation on every supported instruction set, against the reference implementation, on
//! ragged shapes.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use fathom_backend::{Attention, Backend, DType, Massive, Precision, Rotary};
use fathom_kernels::reference;
use proptest::prelude::*;

fn shapes() -> impl Strategy<Value = Attention> {
    let head_dims = prop::sample::select(vec![10, 16, 24, 64, 128, 300]);
    let groups = prop::sample::select(vec![(1, 1), (2, 1), (4, 2), (7, 1), (3, 3), (20, 1)]);
    let windows = prop::option::of(1_usize..200);
    (head_dims, groups, windows, 0_usize..2).prop_map(
        |(head_dim, (heads, kv_heads), window, layer)| Attention {
            layer,
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window,
        },
    )
}

/// Rounds to values that a bf16 cache holds exactly, so that only arithmetic differs from the
/// reference.
fn rounded(precision: Precision, values: &mut [f32]) {
    if precision == Precision::Bf16 {
        for x in values {
            *x = half::bf16::from_f32(*x).to_f32();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn linear(
        rows in 1_usize..=120, k in 1_usize..=700, n in 1_usize..=150, bias: bool, seed: u64,
        dtype in prop::sample::select(vec![DType::Bf16, DType::F16, DType::F32]),
    ) {
        let bytes = bytes_of(&numbers(seed, n * k), dtype);
        let weight = view(&bytes, dtype, n, k);
        let bias = bias.then(|| numbers(seed ^ 1, n));
        let x = numbers(seed ^ 2, rows * k);
        let want = reference::linear(weight, bias.as_deref(), &x);
        for (isa, precision) in variants() {
            let cpu = cpu(isa, precision, 2);
            let w = cpu.linear_from(weight, bias.as_deref()).unwrap();
            let mut out = cpu.alloc(rows, n).unwrap();
            common::linear(&cpu, &w, &rows_of(&cpu, &x, k), &mut out);
            let error = relative_error(&values_of(&cpu, &out), &want);
            prop_assert!(error < tolerance(precision), "{isa} {precision:?}: off by {error}");
        }
    }

    #[test]
    fn attention(
        attention in shapes(), before in 0_usize..300, rows in 1_usize..70, masked: bool, seed: u64,
    ) {
        let tokens = before + rows;
        let mask = masked.then(|| random_mask(attention.layer, tokens, seed >> 2));
        let mask = mask.as_ref();
        let mut sequence = Sequence::random(&attention, tokens, seed >> 1);
        let width = attention.heads * attention.head_dim;
        for precision in PRECISIONS {
            rounded(precision, &mut sequence.q);
            rounded(precision, &mut sequence.k);
            rounded(precision, &mut sequence.v);
            let q = &sequence.q[before * width..];
            let want = reference::attend(&attention, q, &sequence.k, &sequence.v, mask);
            let want_weights = reference::attention_weights(&attention, q, &sequence.k, mask);
            let want_sums = reference::column_sums(&attention, q, &sequence.k, mask);
            let want_entropies = reference::entropies(&attention, q, &sequence.k, mask);
            for isa in paths(precision) {
                let cpu = cpu(isa, precision, 2);
                let mut kv = new_kv(&cpu, &attention);
                if before > 0 {
                    attend_chunk(&cpu, &attention, &sequence, 0, before, &mut kv, mask);
                }
                let (got, lse) =
                    attend_chunk(&cpu, &attention, &sequence, before, tokens, &mut kv, mask);
                let error = relative_error(&got, &want);
                prop_assert!(error < tolerance(precision), "{isa} {precision:?}: off by {error}");

                // The second pass runs before the cache advances, so truncate the cache to its
                // earlier length.
                let mut sums =
                    cpu.new_column_sums(attention.layer + 1, attention.heads, true);
                cpu.truncate_kv(&mut kv, before);
                let kv_width = attention.kv_heads * attention.head_dim;
                let rows_k = rows_of(&cpu, &sequence.k[before * kv_width..], kv_width);
                let rows_v = rows_of(&cpu, &sequence.v[before * kv_width..], kv_width);
                let mut pass = pass(&cpu, rows, before, &mut kv, Some(&mut sums), mask);
                cpu.append_kv(attention.layer, &rows_k, &rows_v, &mut pass).unwrap();
                let (q, lse) = (rows_of(&cpu, q, width), rows_of(&cpu, &lse, attention.heads));
                let weights = cpu.attention_weights(&attention, &q, &lse, &pass, 0).unwrap();
                let error = relative_error(&weights, &want_weights);
                prop_assert!(error < 1e-5, "{isa} {precision:?}: weights off by {error}");
                cpu.add_column_sums(&attention, &q, &lse, &mut pass).unwrap();
                drop(pass);
                let entropies = cpu.attention_entropies(&sums, attention.layer).unwrap();
                assert_eq!(entropies.len(), attention.heads);
                let sums = cpu.column_sums(&sums, attention.layer, tokens).unwrap();
                let as_f32 = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
                let error = relative_error(&as_f32(&sums), &as_f32(&want_sums));
                prop_assert!(error < 1e-5, "{isa} {precision:?}: column sums off by {error}");
                for (got, want) in entropies.iter().zip(&want_entropies) {
                    let close = (got - want).abs() < 1e-5 * want.max(rows as f64);
                    prop_assert!(close, "{isa} {precision:?}: entropy {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn row_operations(
        rows in 1_usize..=40, heads in 1_usize..=4, half in 1_usize..=20, rest in 0_usize..=9,
        seed: u64,
    ) {
        let head_dim = 2 * half + rest;
        let columns = heads * head_dim;
        let x = numbers(seed, rows * columns);
        let y = numbers(seed ^ 1, rows * columns);
        let weight = numbers(seed ^ 2, columns);
        let (cos, sin) = (numbers(seed ^ 3, rows * half), numbers(seed ^ 4, rows * half));
        for isa in isas() {
            let cpu = cpu(isa, Precision::F32, 2);
            let close = |got: &[f32], want: &[f32], what: &str| {
                let error = relative_error(got, want);
                assert!(error < 1e-6, "{isa}: {what} off by {error}");
            };
            let (rows_x, rows_y) = (rows_of(&cpu, &x, columns), rows_of(&cpu, &y, columns));
            let mut out = cpu.alloc(rows, columns).unwrap();

            cpu.rms_norm(&rows_x, &cpu.vector_from(&weight).unwrap(), 1e-5, &mut out).unwrap();
            close(&values_of(&cpu, &out), &reference::rms_norm(&x, &weight, 1e-5), "rms_norm");

            let mut heads_x = rows_of(&cpu, &x, columns);
            let head_weight = cpu.vector_from(&weight[..head_dim]).unwrap();
            cpu.head_norm(&mut heads_x, &head_weight, 1e-5).unwrap();
            let want = reference::rms_norm(&x, &weight[..head_dim], 1e-5);
            close(&values_of(&cpu, &heads_x), &want, "head_norm");

            let mut rotated = rows_of(&cpu, &x, columns);
            let rotary = Rotary { cos: &cos, sin: &sin, half };
            let pass = cpu.begin_pass(Vec::new(), rotary).unwrap();
            cpu.rope(&mut rotated, &pass, head_dim).unwrap();
            let want = reference::rope(&x, columns, head_dim, &cos, &sin);
            close(&values_of(&cpu, &rotated), &want, "rope");

            cpu.silu(&rows_x, &mut out).unwrap();
            let silu = values_of(&cpu, &out);
            close(&silu, &reference::silu(&x), "silu");

            cpu.mul(&rows_x, &rows_y, &mut out).unwrap();
            let product: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a * b).collect();
            assert_eq!(bits(&values_of(&cpu, &out)), bits(&product), "{isa}: mul");

            let mut sum = rows_of(&cpu, &x, columns);
            cpu.add_assign(&mut sum, &rows_y).unwrap();
            let want: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a + b).collect();
            assert_eq!(bits(&values_of(&cpu, &sum)), bits(&want), "{isa}: add_assign");

            // A few components are large enough to be massive, in some rows more than are listed.
            let mut large: Vec<f32> = x.iter().map(|x| x / 8.0).collect();
            large.iter_mut().step_by(1 + (seed % 50) as usize).for_each(|x| *x *= 4e3);
            let at = (1, 2);
            let mut numbers = cpu.alloc(1 + Massive::NUMBERS, 2 + rows).unwrap();
            let rows_large = rows_of(&cpu, &large, columns);
            cpu.row_massive(&rows_large, 0..rows, &mut numbers, at).unwrap();
            let numbers = values_of(&cpu, &numbers);
            for (row, x) in large.chunks_exact(columns).enumerate() {
                let number = |i| numbers[(at.0 + i) * (2 + rows) + at.1 + row];
                let (found, want) = (Massive::from_numbers(number), reference::massive(x));
                assert_eq!(found.count, want.len(), "{isa}: row_massive");
                assert_eq!(found.largest.len(), want.len().min(Massive::LISTED));
                let listed = |i: &usize| found.largest.iter().any(|(index, _)| index == i);
                let least = want.iter().filter(|i| listed(i)).map(|i| x[*i].abs());
                let least = least.fold(f32::INFINITY, f32::min);
                let left_out = want.iter().filter(|i| !listed(i)).all(|i| x[*i].abs() <= least);
                assert!(left_out, "{isa}: row_massive");
                for (index, value) in found.largest {
                    assert!(want.contains(&index) && value == x[index], "{isa}: row_massive");
                }
            }

            let limit = columns - rest.min(columns - 1);
            let want: Vec<u32> = x
                .chunks_exact(columns)
                .map(|x| (0..limit).rev().max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap() as u32)
                .collect();
            assert_eq!(cpu.argmax(&rows_x, limit).unwrap(), want, "{isa}: argmax");

            let chosen = [rows - 1, 0, rows / 2];
            let mut picked = cpu.alloc(chosen.len(), columns).unwrap();
            cpu.gather(&rows_x, &chosen, &mut picked).unwrap();
            let want: Vec<f32> =
                chosen.iter().flat_map(|r| &x[r * columns..(r + 1) * columns]).copied().collect();
            assert_eq!(values_of(&cpu, &picked), want, "{isa}: gather");
        }
    }

    #[test]
    fn embed(vocab in 1_usize..=100, hidden in 1_usize..=50, seed: u64) {
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            let bytes = bytes_of(&numbers(seed, vocab * hidden), dtype);
            let table = view(&bytes, dtype, vocab, hidden);
            let cpu = cpu(isas().last().unwrap(), Precision::F32, 2);
            let ids: Vec<u32> = (0..vocab as u32).rev().collect();
            let mut out = cpu.alloc(vocab, hidden).unwrap();
            cpu.embed(&cpu.linear_from(table, None).unwrap(), &ids, &mut out).unwrap();
            let rows = reference::widen(table);
            let row_of = |&id: &u32| &rows[id as usize * hidden..][..hidden];
            let want: Vec<f32> = ids.iter().flat_map(row_of).copied().collect();
            prop_assert_eq!(values_of(&cpu, &out), want);
        }
    }
}
