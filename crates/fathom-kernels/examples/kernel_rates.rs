//! Kernels as fractions of this machine's limits: `cargo run --release --example kernel_rates`.

use std::time::{Duration, Instant};

use fathom_kernels::*;

fn main() -> Result<(), CpuError> {
    for precision in [Precision::F32, Precision::Bf16] {
        let cpu = Cpu::new(CpuOptions { precision, ..CpuOptions::default() })?;
        let limits = limits::measure(&cpu);
        let peak = match precision {
            Precision::F32 => limits.f32_flops,
            Precision::Bf16 => limits.bf16_flops.unwrap_or(limits.f32_flops),
        };
        println!(
            "\n{precision:?}, {}, {} threads: {:.1} GB/s, {:.0} GFLOP/s",
            cpu.isa(),
            cpu.threads(),
            limits.read_bytes / 1e9,
            peak / 1e9
        );
        for (k, n) in [(896, 896), (896, 4864), (4864, 896), (1536, 8960), (896, 65536)] {
            // Several copies, so that weights come from memory and not from the cache.
            let copies = (256 << 20_usize).div_ceil(k * n * 2).min(64);
            let bytes: Vec<u8> = (0..k * n).flat_map(|i| [(i % 251) as u8, 0x3c]).collect();
            let view = WeightView { bytes: &bytes, dtype: DType::Bf16, rows: n, columns: k };
            let weights: Vec<_> = (0..copies).map(|_| cpu.linear_from(view, None)).collect();
            print!("{k:5} x {n:5}:");
            for rows in [1, 2, 4, 8, 16, 64, 512, 2048] {
                let mut x = cpu.alloc(rows, k);
                let ones = vec![1.0; rows * k];
                cpu.write_rows(&mut x, 0, &ones);
                let mut out = cpu.alloc(rows, n);
                let mut next = weights.iter().cycle();
                let seconds = time(|| {
                    if let Some(w) = next.next() {
                        cpu.linear(w, &x, &mut out)
                    }
                });
                let flops = (2 * rows * k * n) as f64 / seconds / peak;
                let bytes = (2 * k * n) as f64 / seconds / limits.read_bytes;
                print!("  {rows}:{:.0}%/{:.0}%", 100. * flops, 100. * bytes);
            }
            println!();
        }
        for (heads, kv_heads, head_dim, tokens) in
            [(14, 2, 64, 512), (14, 2, 64, 4096), (12, 2, 128, 4096)]
        {
            let attention =
                Attention { layer: 0, heads, kv_heads, head_dim, scale: 0.125, window: None };
            let mut kv = cpu.new_kv(KvShape { layers: 1, kv_heads, head_dim });
            let fill = |columns: usize| {
                let mut x = cpu.alloc(tokens, columns);
                let values: Vec<f32> =
                    (0..tokens * columns).map(|i| ((i * 7919) % 1000) as f32 / 1000.0).collect();
                cpu.write_rows(&mut x, 0, &values);
                x
            };
            let (q, k, v) =
                (fill(heads * head_dim), fill(kv_heads * head_dim), fill(kv_heads * head_dim));
            let mut out = cpu.alloc(tokens, heads * head_dim);
            let mut lse = cpu.alloc(tokens, heads);
            let mut spans = [Span { rows: 0..tokens, kv: &mut kv }];
            cpu.append_kv(0, &k, &v, &mut spans);
            let seconds = time(|| cpu.attend(&attention, &q, &spans, &mut out, Some(&mut lse)));
            let flops = (2 * tokens * tokens * heads * head_dim) as f64;
            let mut sums = cpu.new_column_sums(1, heads);
            let second = time(|| cpu.add_column_sums(&attention, &q, &lse, &spans[0], &mut sums));
            // Decode: one more row.
            let [span] = spans;
            cpu.advance_kv(span.kv, tokens);
            let one = cpu.alloc(1, heads * head_dim);
            let mut out = cpu.alloc(1, heads * head_dim);
            let (k1, v1) = (cpu.alloc(1, kv_heads * head_dim), cpu.alloc(1, kv_heads * head_dim));
            let mut spans = [Span { rows: 0..1, kv: &mut kv }];
            cpu.append_kv(0, &k1, &v1, &mut spans);
            let decode = time(|| cpu.attend(&attention, &one, &spans, &mut out, None));
            let kv_bytes = (tokens
                * kv_heads
                * head_dim
                * 2
                * if precision == Precision::F32 { 4 } else { 2 })
                as f64;
            println!(
                "attention {heads}/{kv_heads}x{head_dim} T={tokens}: {:.1} ms {:.0}%   column sums {:.1} ms {:.0}%, {:.2} of attention   decode {:.0} us {:.1} GB/s",
                seconds * 1e3,
                100. * flops / seconds / peak,
                second * 1e3,
                50. * flops / second / peak,
                second / seconds,
                decode * 1e6,
                kv_bytes / decode / 1e9
            );
        }
    }
    Ok(())
}

/// Median seconds of a call.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 5 || (start.elapsed() < Duration::from_millis(300) && times.len() < 200) {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}
