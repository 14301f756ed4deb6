//! The matrix products, one per epilogue.

use std::sync::{Mutex, PoisonError};

use fathom_backend::Result;

use super::epilogue::{Best, Epilogue};
use super::matrix::Linear;
use super::multiply::{Gemm, multiply};
use super::operand::Operand;
use crate::cpu::Cpu;
use crate::memory::Rows;

/// `outs[i] = x · Wᵢᵀ + biasᵢ`
pub(crate) fn linears(cpu: &Cpu, ws: &[&Linear], x: &Operand, outs: &mut [&mut Rows]) {
    assert_eq!(ws.len(), outs.len(), "one output for each matrix");
    let gemms = ws.iter().zip(outs).map(|(&w, out)| {
        assert_eq!((out.rows(), out.columns()), (x.rows(), w.out_features()), "linear output");
        Gemm { gate: None, w, epilogue: Epilogue::Set(out.shared()) }
    });
    multiply(cpu, x, &gemms.collect::<Vec<_>>());
}

/// `out += x · Wᵀ + bias`
pub(crate) fn linear_add(cpu: &Cpu, w: &Linear, x: &Operand, out: &mut Rows) {
    assert_eq!((out.rows(), out.columns()), (x.rows(), w.out_features()), "linear output");
    multiply(cpu, x, &[Gemm { gate: None, w, epilogue: Epilogue::Add(out.shared()) }]);
}

/// `out = silu(x · gateᵀ) · (x · upᵀ)`
pub(crate) fn gated(
    cpu: &Cpu,
    gate: &Linear,
    up: &Linear,
    x: &Operand,
    out: &mut Operand,
) -> Result<()> {
    assert_eq!(gate.out_features(), up.out_features(), "gate and up");
    out.resize(x.rows(), up.out_features())?;
    let epilogue = Epilogue::Gate(out.shared());
    multiply(cpu, x, &[Gemm { gate: Some(gate), w: up, epilogue }]);
    Ok(())
}

/// The column of each row's largest `x · Wᵀ + bias` within the first `limit`.
pub(crate) fn argmax(cpu: &Cpu, w: &Linear, x: &Operand, limit: usize) -> Vec<u32> {
    let best = Mutex::new(vec![Best::NONE; x.rows()]);
    multiply(cpu, x, &[Gemm { gate: None, w, epilogue: Epilogue::Best { best: &best, limit } }]);
    let best = best.into_inner().unwrap_or_else(PoisonError::into_inner);
    best.into_iter().map(|best| best.column.unwrap_or(0) as u32).collect()
}
