//! Options of [`Cpu`]: what is refused, and that threads do not affect bits.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use fathom_backend::{Backend, DType, Precision};
use fathom_kernels::{Cpu, CpuError, CpuOptions, Isa, cpu_features};

#[test]
fn no_threads_are_refused() {
    let none = CpuOptions { threads: Some(0), ..CpuOptions::default() };
    assert!(matches!(Cpu::new(none), Err(CpuError::NoThreads)));
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    assert!(matches!(cpu.with_co_running_threads(0), Err(CpuError::NoThreads)));
}

#[test]
fn an_instruction_set_without_its_features_is_refused_by_name() {
    let offered = cpu_features();
    for isa in Isa::ALL {
        let missing = isa
            .features()
            .iter()
            .find(|needed| {
                !offered.iter().any(|feature| feature.present && feature.name == needed.name)
            })
            .copied();
        match (Cpu::new(CpuOptions { isa: Some(isa), ..CpuOptions::default() }), missing) {
            (Ok(cpu), None) => assert_eq!(cpu.isa(), isa),
            (Err(error), Some(feature)) => assert!(error.to_string().contains(feature.name)),
            // Tile registers need more than CPU features: the operating system must enable them.
            (Err(error), None) if isa == Isa::Avx512Amx => {
                assert!(error.to_string().contains(&isa.unavailable().unwrap()));
            }
            (result, missing) => panic!("{isa}: {:?} with {missing:?} missing", result.err()),
        }
    }
}

#[test]
fn fewer_threads_for_co_running_return_the_same_bits() {
    let (rows, k, n) = (30, 200, 170);
    let bytes = bytes_of(&numbers(1, n * k), DType::Bf16);
    let x = numbers(2, rows * k);
    let cpu = cpu(Path::Isa(Isa::detect()), Precision::F32, 3).with_co_running_threads(2).unwrap();
    let w = cpu.linear_from(view(&bytes, DType::Bf16, n, k), None).unwrap();
    let run = |shared: bool, threads: usize| {
        cpu.set_co_running(shared);
        assert_eq!(cpu.threads(), threads);
        let mut out = cpu.alloc(rows, n).unwrap();
        linear(&cpu, &w, &rows_of(&cpu, &x, k), &mut out);
        bits(&values_of(&cpu, &out))
    };
    let alone = run(false, 3);
    assert_eq!(run(true, 2), alone);
    assert_eq!(run(false, 3), alone);
}
