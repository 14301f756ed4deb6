//! Row operations of probes and edits: norms, dot products, massive activations, copies, edits.
//!
//! The numbers are those of [`fathom_vector`], so that their bits equal those of an analysis of
//! rows that were read back.

use std::ops::Range;

use fathom_backend::{Massive, RowEdit};
use fathom_vector::{change_values, dot, massive, norm};

use crate::cpu::Cpu;
use crate::memory::Rows;

/// `out[at.0, at.1 + i] = ‖x[rows.start + i]‖`
pub(crate) fn norms(cpu: &Cpu, x: &Rows, rows: Range<usize>, out: &mut Rows, at: (usize, usize)) {
    each(cpu, x, rows, out, at, norm);
}

/// `out[at.0, at.1 + i] = x[rows.start + i] · y`
pub(crate) fn dots(
    cpu: &Cpu,
    x: &Rows,
    rows: Range<usize>,
    y: &[f32],
    out: &mut Rows,
    at: (usize, usize),
) {
    each(cpu, x, rows, out, at, |row| dot(row, y));
}

/// Writes one number per row of `x` to consecutive elements of a row of `out`.
fn each(
    cpu: &Cpu,
    x: &Rows,
    rows: Range<usize>,
    out: &mut Rows,
    at: (usize, usize),
    number: impl Fn(&[f32]) -> f32 + Sync,
) {
    assert!(at.1 + rows.len() <= out.columns(), "{} numbers from column {}", rows.len(), at.1);
    let first = at.0 * out.columns() + at.1;
    assert!(first + rows.len() <= out.as_slice().len(), "row {} of the numbers", at.0);
    let out = out.shared();
    cpu.split_rows(rows.len(), rows.len() * x.columns(), |part| {
        // SAFETY: threads have disjoint parts, which are within `out` (asserted above).
        let out = unsafe { out.slice(first + part.start..first + part.end) };
        for (out, row) in out.iter_mut().zip(part) {
            *out = number(x.row(rows.start + row));
        }
    });
}

/// `out[at.0 + j, at.1 + i]` = number `j` of the massive activations of `x[rows.start + i]`
pub(crate) fn massives(
    cpu: &Cpu,
    x: &Rows,
    rows: Range<usize>,
    out: &mut Rows,
    at: (usize, usize),
) {
    let columns = out.columns();
    assert!(at.1 + rows.len() <= columns, "{} rows from column {}", rows.len(), at.1);
    assert!(at.0 + Massive::NUMBERS <= out.rows(), "row {} of the numbers", at.0);
    let out = out.shared();
    cpu.split_rows(rows.len(), rows.len() * x.columns(), |part| {
        for row in part {
            for (j, number) in massive(x.row(rows.start + row)).numbers().enumerate() {
                let place = (at.0 + j) * columns + at.1 + row;
                // SAFETY: a column of `out` belongs to one row of `x`, and threads have disjoint
                // rows. The place is within `out` (asserted above; `numbers` has at most NUMBERS).
                let out = unsafe { out.slice(place..place + 1) };
                out[0] = number;
            }
        }
    });
}

/// Overwrites rows `first..` of `out` with rows `rows` of `x`.
pub(crate) fn copy(x: &Rows, rows: Range<usize>, out: &mut Rows, first: usize) {
    let columns = x.columns();
    assert_eq!(out.columns(), columns, "columns of copied rows");
    let to = first * columns..(first + rows.len()) * columns;
    out.as_mut_slice()[to].copy_from_slice(x.slice(rows));
}

/// Applies edits in order.
pub(crate) fn edit(x: &mut Rows, edits: &[RowEdit<'_>]) {
    let width = x.columns();
    for RowEdit { row, columns, change } in edits {
        let row = &mut x.as_mut_slice()[row * width..(row + 1) * width];
        match columns {
            None => change_values(change, row),
            Some(columns) => {
                let mut chosen: Vec<f32> = columns.iter().map(|&c| row[c]).collect();
                change_values(change, &mut chosen);
                columns.iter().zip(chosen).for_each(|(&c, value)| row[c] = value);
            }
        }
    }
}
