//! The foreign backend passes the conformance check, and the check detects flawed backends.
#![allow(clippy::unwrap_used)]

use fathom_backend::conformance::{Violation, check};
use fathom_kernels::{Cpu, CpuOptions};
use foreign_backend::{Failure, Foreign};

fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap()
}

#[test]
fn the_foreign_backend_conforms() {
    check(&Foreign::new(cpu())).unwrap();
}

#[test]
fn a_backend_without_row_invariance_is_detected() {
    let error = check(&Foreign::flawed(cpu())).unwrap_err();
    assert!(matches!(error, Violation::Bits(_)), "{error}");
}

#[test]
fn a_failure_is_reported() {
    for failure in [Failure::OutOfMemory, Failure::Lost] {
        let error = check(&Foreign::failing(cpu(), 100, failure)).unwrap_err();
        assert!(matches!(error, Violation::Failed(_)), "{error}");
    }
}
