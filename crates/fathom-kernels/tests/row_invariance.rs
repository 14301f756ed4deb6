//! Row invariance: a row's bits depend on that row and the weights only.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use fathom_backend::{Attention, Backend, DType, KeyMask, Precision, Rotary, Span};
use fathom_kernels::{Cpu, Kv};
use proptest::prelude::*;

fn geometry(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Attention {
    Attention { layer: 0, heads, kv_heads, head_dim, scale: 0.2, window }
}

fn geometries() -> [Attention; 5] {
    [
        geometry(2, 2, 16, None),
        geometry(14, 2, 64, None),
        geometry(4, 1, 10, Some(37)),
        geometry(3, 3, 24, Some(150)),
        geometry(20, 1, 128, None),
    ]
}

/// Bits of the results and log-sum-exps of a sequence that is processed in chunks.
fn in_chunks(
    cpu: &Cpu,
    attention: &Attention,
    sequence: &Sequence,
    tokens: usize,
    chunk: usize,
    kv: &mut Kv,
) -> (Vec<u32>, Vec<u32>) {
    in_masked_chunks(cpu, attention, sequence, tokens, chunk, kv, None)
}

/// As [`in_chunks`], under a mask.
fn in_masked_chunks(
    cpu: &Cpu,
    attention: &Attention,
    sequence: &Sequence,
    tokens: usize,
    chunk: usize,
    kv: &mut Kv,
    mask: Option<&KeyMask>,
) -> (Vec<u32>, Vec<u32>) {
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    let mut from = cpu.kv_len(kv);
    while from < tokens {
        let to = tokens.min(from + chunk);
        let (o, l) = attend_chunk(cpu, attention, sequence, from, to, kv, mask);
        out.extend(bits(&o));
        lse.extend(bits(&l));
        from = to;
    }
    (out, lse)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_linear_row_is_the_same_alone_and_among_others(
        rows in 2_usize..=64, k in 1_usize..=1200, n in 1_usize..=200, seed: u64,
    ) {
        let bytes = bytes_of(&numbers(seed, n * k), DType::Bf16);
        let weight = view(&bytes, DType::Bf16, n, k);
        let x = numbers(seed ^ 1, rows * k);
        for (isa, precision) in variants() {
            let run = |threads: usize, x: &[f32]| {
                let cpu = cpu(isa, precision, threads);
                let w = cpu.linear_from(weight, None).unwrap();
                let mut out = cpu.alloc(x.len() / k, n).unwrap();
                linear(&cpu, &w, &rows_of(&cpu, x, k), &mut out);
                bits(&values_of(&cpu, &out))
            };
            let together = run(1, &x);
            prop_assert_eq!(&together, &run(2, &x), "{} {:?}: 2 threads", isa, precision);
            prop_assert_eq!(&together, &run(3, &x), "{} {:?}: 3 threads", isa, precision);
            let alone: Vec<u32> = x.chunks(k).flat_map(|row| run(1, row)).collect();
            prop_assert_eq!(&together, &alone, "{} {:?}: alone", isa, precision);
        }
    }
}

#[test]
fn many_rows_are_the_rows_alone() {
    // More rows than one block of rows (`ROW_BLOCKS` tiles), and more k than one block of k.
    let (rows, k, n) = (500, 300, 70);
    for dtype in [DType::F32, DType::Bf16] {
        assert_rows_are_the_rows_alone(dtype, rows, k, n, &[0, 13, 14, 223, 224, 499]);
    }
}

#[test]
fn rows_are_the_same_in_register_tiles_of_any_size() {
    // An odd k in two blocks, and a last panel that is not full.
    for rows in [2, 3, 4, 5, 6, 7, 13, 28, 97] {
        let some = [0, rows / 2, rows - 1];
        assert_rows_are_the_rows_alone(DType::Bf16, rows, 391, 45, &some);
    }
}

fn assert_rows_are_the_rows_alone(dtype: DType, rows: usize, k: usize, n: usize, some: &[usize]) {
    let bytes = bytes_of(&numbers(1, n * k), dtype);
    let x = numbers(2, rows * k);
    for (isa, precision) in variants() {
        let cpu = cpu(isa, precision, 2);
        let w = cpu.linear_from(view(&bytes, dtype, n, k), None).unwrap();
        let run = |x: &[f32]| {
            let mut out = cpu.alloc(x.len() / k, n).unwrap();
            linear(&cpu, &w, &rows_of(&cpu, x, k), &mut out);
            bits(&values_of(&cpu, &out))
        };
        let together = run(&x);
        for &row in some {
            let alone = run(&x[row * k..(row + 1) * k]);
            let what = format!("{isa} {precision:?} {dtype:?}: row {row} of {rows}");
            assert!(together[row * n..(row + 1) * n] == alone, "{what}");
        }
    }
}

#[test]
fn attention_is_the_same_in_any_chunks_and_threads() {
    assert_any_chunks_and_threads(None);
}

#[test]
fn attention_under_a_mask_is_the_same_in_any_chunks_and_threads() {
    assert_any_chunks_and_threads(Some(&random_mask(0, 300, 11)));
}

fn assert_any_chunks_and_threads(mask: Option<&KeyMask>) {
    let tokens = 300;
    for attention in geometries() {
        let sequence = Sequence::random(&attention, tokens, 5);
        for (isa, precision) in variants() {
            let run = |threads: usize, chunk: usize| {
                let cpu = cpu(isa, precision, threads);
                let mut kv = new_kv(&cpu, &attention);
                in_masked_chunks(&cpu, &attention, &sequence, tokens, chunk, &mut kv, mask)
            };
            let whole = run(1, tokens);
            for (threads, chunk) in [(2, tokens), (3, tokens), (1, 64), (2, 7), (1, 1)] {
                assert!(
                    run(threads, chunk) == whole,
                    "{isa} {precision:?} {attention:?}: {threads} threads, chunks of {chunk}"
                );
            }
        }
    }
}

/// Rows whose keys are all visible have the bits they have without a mask, even in a block in which
/// keys are hidden from other rows.
#[test]
fn a_mask_changes_only_the_rows_that_it_hides_keys_from() {
    let tokens = 300;
    let mut mask = KeyMask::default();
    for (key, from) in [(3, 40), (130, 200), (131, 290)] {
        mask.hide(0, key, from);
    }
    for attention in geometries() {
        let sequence = Sequence::random(&attention, tokens, 12);
        let width = attention.heads * attention.head_dim;
        for (isa, precision) in variants() {
            let cpu = cpu(isa, precision, 2);
            let run = |mask: Option<&KeyMask>| {
                let mut kv = new_kv(&cpu, &attention);
                in_masked_chunks(&cpu, &attention, &sequence, tokens, tokens, &mut kv, mask).0
            };
            let (plain, masked) = (run(None), run(Some(&mask)));
            for row in 0..tokens {
                let first = attention.window.map_or(0, |window| (row + 1).saturating_sub(window));
                let hidden = (first..row).any(|key| mask.hides(0, key, row));
                let columns = row * width..(row + 1) * width;
                let same = plain[columns.clone()] == masked[columns];
                assert_eq!(same, !hidden, "{isa} {precision:?} {attention:?}: row {row}");
            }
        }
    }
}

/// Keys per KV split, as in `src/attention/queries.rs`.
const KV_SPLIT: usize = 512;

#[test]
fn long_contexts_are_the_same_in_prefill_verification_and_decoding() {
    let tokens = 3 * KV_SPLIT + 2;
    for window in [None, Some(KV_SPLIT + 1)] {
        let attention = geometry(2, 1, 16, window);
        let sequence = Sequence::random(&attention, tokens, 8);
        let width = attention.heads * attention.head_dim;
        for (path, precision) in variants() {
            let one = cpu(path, precision, 1);
            let mut kv = new_kv(&one, &attention);
            let whole = in_chunks(&one, &attention, &sequence, tokens, tokens, &mut kv);
            let three = cpu(path, precision, 3);
            for first in
                [3, 2, 1].into_iter().flat_map(|i| (0..4).map(move |k| i * KV_SPLIT + 1 - k))
            {
                for rows in [1, tokens.min(first + 2) - first] {
                    three.truncate_kv(&mut kv, first);
                    let (out, lse) =
                        in_chunks(&three, &attention, &sequence, first + rows, rows, &mut kv);
                    let what = format!("{path} {precision:?} {window:?}: {rows} after {first}");
                    assert!(out == whole.0[first * width..][..out.len()], "{what}");
                    assert!(lse == whole.1[first * attention.heads..][..lse.len()], "{what}");
                }
            }
        }
    }
}

#[test]
fn long_and_short_contexts_in_one_batch_are_the_sequences_alone() {
    let lengths =
        [(KV_SPLIT - 1, 1), (KV_SPLIT, 16), (3, 1), (4 * KV_SPLIT + 1, 1), (2 * KV_SPLIT - 7, 9)];
    let attention = geometry(4, 2, 16, None);
    for variant in variants() {
        assert_batch_is_its_sequences_alone(variant, 3, &attention, &lengths);
    }
}

#[test]
fn sequences_of_different_lengths_in_one_batch_are_the_sequences_alone() {
    let lengths = [(0, 5), (130, 1), (40, 33), (256, 12)];
    for attention in geometries() {
        for variant in variants() {
            assert_batch_is_its_sequences_alone(variant, 2, &attention, &lengths);
        }
    }
}

/// Compares sequences of `(cached tokens, new tokens)`, all in one batch, with each sequence alone
/// on one thread.
fn assert_batch_is_its_sequences_alone(
    (path, precision): (Path, Precision),
    threads: usize,
    attention: &Attention,
    lengths: &[(usize, usize)],
) {
    let (cpu, one) = (&cpu(path, precision, threads), cpu(path, precision, 1));
    let (width, kv_width) =
        (attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim);
    let mut caches = Vec::new();
    let mut alone = Vec::new();
    let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
    for (seed, &(before, rows)) in lengths.iter().enumerate() {
        let tokens = before + rows;
        let sequence = Sequence::random(attention, tokens, seed as u64);
        let mut kv = new_kv(cpu, attention);
        in_chunks(&one, attention, &sequence, before, 700, &mut kv);
        alone.extend(in_chunks(&one, attention, &sequence, tokens, rows, &mut kv).0);
        cpu.truncate_kv(&mut kv, before);
        caches.push(kv);
        q.extend_from_slice(&sequence.q[before * width..]);
        k.extend_from_slice(&sequence.k[before * kv_width..]);
        v.extend_from_slice(&sequence.v[before * kv_width..]);
    }
    let mut spans = Vec::new();
    let mut first = 0;
    for (kv, (_, rows)) in caches.iter_mut().zip(lengths) {
        let first_position = cpu.kv_len(kv);
        let rows = first..first + rows;
        first = rows.end;
        spans.push(Span { rows, first_position, kv, column_sums: None, mask: None });
    }
    let [q, k, v] = [(&q, width), (&k, kv_width), (&v, kv_width)].map(|(x, w)| rows_of(cpu, x, w));
    let mut out = cpu.alloc(first, width).unwrap();
    let mut pass = cpu.begin_pass(spans, Rotary::NONE).unwrap();
    cpu.append_kv(0, &k, &v, &mut pass).unwrap();
    cpu.attend(attention, &q, &pass, &mut out, None).unwrap();
    assert!(bits(&values_of(cpu, &out)) == alone, "{path} {precision:?} {attention:?} {threads}");
}

#[test]
fn column_sums_are_the_same_in_any_chunks_and_threads() {
    let tokens = 290;
    let mask = random_mask(0, tokens, 13);
    for mask in [None, Some(&mask)] {
        assert_column_sums_in_any_chunks_and_threads(tokens, mask);
    }
}

fn assert_column_sums_in_any_chunks_and_threads(tokens: usize, mask: Option<&KeyMask>) {
    for attention in geometries() {
        let sequence = Sequence::random(&attention, tokens, 9);
        let (width, kv_width) =
            (attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim);
        for (isa, precision) in variants() {
            let run = |threads: usize, chunk: usize| {
                let cpu = cpu(isa, precision, threads);
                let mut kv = new_kv(&cpu, &attention);
                let mut sums = cpu.new_column_sums(1, attention.heads, true);
                for from in (0..tokens).step_by(chunk) {
                    let n = chunk.min(tokens - from);
                    let part = |x: &[f32], w: usize| rows_of(&cpu, &x[from * w..(from + n) * w], w);
                    let q = part(&sequence.q, width);
                    let (k, v) = (part(&sequence.k, kv_width), part(&sequence.v, kv_width));
                    let mut out = cpu.alloc(n, width).unwrap();
                    let mut lse = cpu.alloc(n, attention.heads).unwrap();
                    let mut pass = pass(&cpu, n, from, &mut kv, Some(&mut sums), mask);
                    cpu.append_kv(0, &k, &v, &mut pass).unwrap();
                    cpu.attend(&attention, &q, &pass, &mut out, Some(&mut lse)).unwrap();
                    cpu.add_column_sums(&attention, &q, &lse, &mut pass).unwrap();
                    cpu.end_pass(pass).unwrap();
                }
                let entropies = cpu.attention_entropies(&sums, 0).unwrap();
                let sums = [cpu.column_sums(&sums, 0, tokens).unwrap(), entropies].concat();
                sums.into_iter().map(f64::to_bits).collect::<Vec<_>>()
            };
            let whole = run(1, tokens);
            for (threads, chunk) in [(3, tokens), (2, 64), (1, 7), (2, 1)] {
                assert!(
                    run(threads, chunk) == whole,
                    "{isa} {precision:?} {attention:?}: {threads} threads, chunks of {chunk}"
                );
            }
        }
    }
}

#[test]
fn a_truncated_cache_continues_as_if_the_rest_had_never_been() {
    for attention in geometries() {
        let good = Sequence::random(&attention, 200, 3);
        let mut bad = Sequence::random(&attention, 200, 4);
        // Dropped keys must not enter the arithmetic, not even as 0 · NaN.
        bad.k.fill(f32::NAN);
        bad.v.fill(f32::NAN);
        for (isa, precision) in variants() {
            let cpu = cpu(isa, precision, 2);
            for keep in [0, 1, 95, 128, 131] {
                let mut kv = new_kv(&cpu, &attention);
                let untouched = in_chunks(&cpu, &attention, &good, 200, 13, &mut kv);
                let mut kv = new_kv(&cpu, &attention);
                in_chunks(&cpu, &attention, &good, keep, 64, &mut kv);
                in_chunks(&cpu, &attention, &bad, 200, 11, &mut kv);
                cpu.truncate_kv(&mut kv, keep);
                assert_eq!(cpu.kv_len(&kv), keep);
                let (out, lse) = in_chunks(&cpu, &attention, &good, 200, 13, &mut kv);
                let (width, heads) = (attention.heads * attention.head_dim, attention.heads);
                assert!(out == untouched.0[keep * width..], "{isa} {precision:?} keep {keep}");
                assert!(lse == untouched.1[keep * heads..], "{isa} {precision:?} keep {keep}");
            }
        }
    }
}

#[test]
fn a_nan_in_one_position_stays_out_of_the_rows_that_do_not_see_it() {
    let tokens = 180;
    for attention in geometries() {
        let clean = Sequence::random(&attention, tokens, 6);
        let width = attention.heads * attention.head_dim;
        let kv_width = attention.kv_heads * attention.head_dim;
        for (isa, precision) in variants() {
            let cpu = cpu(isa, precision, 2);
            let whole = |sequence: &Sequence| {
                let mut kv = new_kv(&cpu, &attention);
                in_chunks(&cpu, &attention, sequence, tokens, tokens, &mut kv).0
            };
            let want = whole(&clean);
            for poisoned in [1, 50, 129] {
                let mut sequence = Sequence::random(&attention, tokens, 6);
                let at = poisoned * kv_width..(poisoned + 1) * kv_width;
                sequence.k[at.clone()].fill(f32::NAN);
                sequence.v[at].fill(f32::INFINITY);
                let got = whole(&sequence);
                for row in 0..tokens {
                    let start = attention.window.map_or(0, |w| (row + 1).saturating_sub(w));
                    let sees = (start..=row).contains(&poisoned);
                    let columns = row * width..(row + 1) * width;
                    if sees {
                        assert!(got[columns].iter().all(|x| f32::from_bits(*x).is_nan()));
                    } else {
                        assert!(got[columns.clone()] == want[columns], "{isa} {precision:?} {row}");
                    }
                }
            }
        }
    }
}
