//! Implements [`Backend`] for [`Cpu`].

use std::ops::Range;
use std::time::Instant;

use fathom_backend::{
    Attention, Backend, KvShape, Precision, Result, Rotary, RowEdit, Span, WeightView,
};

use crate::attention::{self, ColumnSums, Kv, Pass};
use crate::cpu::Cpu;
use crate::linear::{self, Linear, Operand, operand};
use crate::memory::{Rows, Vector};
use crate::ops::{activation, norm, rope, rows as row_ops};

impl Cpu {
    /// Tokens per page of the KV cache.
    pub const KV_PAGE: usize = attention::BLOCK;
}

impl Backend for Cpu {
    type Rows = Rows;
    type Operand = Operand;
    type Linear = Linear;
    type Vector = Vector;
    type Kv = Kv;
    type ColumnSums = ColumnSums;
    type Pass<'a> = Pass<'a>;
    type Mark = Instant;

    fn name(&self) -> String {
        format!("cpu {}", self.isa())
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn kv_page(&self) -> usize {
        Cpu::KV_PAGE
    }

    fn attach_thread(&self) {
        self.pin_caller();
    }

    fn set_co_running(&self, shared: bool) {
        self.use_co_running_threads(shared);
    }

    fn synchronize(&self) -> Result<()> {
        Ok(()) // every call returns when its work is done
    }

    fn mark(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn seconds_between(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64())
    }

    fn alloc(&self, rows: usize, columns: usize) -> Result<Rows> {
        Rows::zeroed(rows, columns)
    }

    fn resize(&self, x: &mut Rows, rows: usize, columns: usize) -> Result<()> {
        x.resize(rows, columns)
    }

    fn shape(&self, x: &Rows) -> (usize, usize) {
        (x.rows(), x.columns())
    }

    fn host_rows<'a>(
        &self,
        x: &'a Rows,
        rows: Range<usize>,
        _scratch: &'a mut Vec<f32>,
    ) -> Result<&'a [f32]> {
        Ok(x.slice(rows))
    }

    fn write_rows(&self, x: &mut Rows, first: usize, values: &[f32]) -> Result<()> {
        let start = first * x.columns();
        x.as_mut_slice()[start..start + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn new_operand(&self) -> Operand {
        Operand::default()
    }

    fn linear_from(&self, weight: WeightView<'_>, bias: Option<&[f32]>) -> Result<Linear> {
        linear::pack(self, &weight, bias)
    }

    fn linear_bytes(&self, linear: &Linear) -> usize {
        linear.bytes()
    }

    fn vector_from(&self, values: &[f32]) -> Result<Vector> {
        Ok(Vector::from(values))
    }

    fn embed(&self, table: &Linear, ids: &[u32], out: &mut Rows) -> Result<()> {
        linear::embed(self, table, ids, out);
        Ok(())
    }

    fn rms_norm(&self, x: &Rows, weight: &Vector, eps: f32, out: &mut Rows) -> Result<()> {
        norm::rms_norm(self, x, weight, eps, out);
        Ok(())
    }

    fn rms_norm_operand(
        &self,
        x: &Rows,
        weight: &Vector,
        eps: f32,
        out: &mut Operand,
    ) -> Result<()> {
        norm::rms_norm_operand(self, x, weight, eps, out)
    }

    fn head_norm(&self, x: &mut Rows, weight: &Vector, eps: f32) -> Result<()> {
        norm::head_norm(self, x, weight, eps);
        Ok(())
    }

    fn operand(&self, x: &Rows, out: &mut Operand) -> Result<()> {
        operand::pack(self, x, out)
    }

    fn linears(&self, ws: &[&Linear], x: &Operand, outs: &mut [&mut Rows]) -> Result<()> {
        linear::linears(self, ws, x, outs);
        Ok(())
    }

    fn linear_add(&self, w: &Linear, x: &Operand, out: &mut Rows) -> Result<()> {
        linear::linear_add(self, w, x, out);
        Ok(())
    }

    fn gated(&self, gate: &Linear, up: &Linear, x: &Operand, out: &mut Operand) -> Result<()> {
        linear::gated(self, gate, up, x, out)
    }

    fn linear_argmax(&self, w: &Linear, x: &Operand, limit: usize) -> Result<Vec<u32>> {
        Ok(linear::argmax(self, w, x, limit))
    }

    fn silu(&self, x: &Rows, out: &mut Rows) -> Result<()> {
        activation::silu(self, x, out);
        Ok(())
    }

    fn mul(&self, x: &Rows, y: &Rows, out: &mut Rows) -> Result<()> {
        activation::mul(self, x, y, out);
        Ok(())
    }

    fn add_assign(&self, x: &mut Rows, y: &Rows) -> Result<()> {
        activation::add_assign(self, x, y);
        Ok(())
    }

    fn gather(&self, x: &Rows, rows: &[usize], out: &mut Rows) -> Result<()> {
        out.resize(rows.len(), x.columns())?;
        for (out, &row) in out.iter_rows_mut().zip(rows) {
            out.copy_from_slice(x.row(row));
        }
        Ok(())
    }

    fn argmax(&self, x: &Rows, limit: usize) -> Result<Vec<u32>> {
        Ok(activation::argmax(self, x, limit))
    }

    fn new_kv(&self, shape: KvShape) -> Kv {
        Kv::new(shape, self.precision)
    }

    fn kv_len(&self, kv: &Kv) -> usize {
        kv.len()
    }

    fn kv_bytes(&self, kv: &Kv) -> usize {
        kv.bytes()
    }

    fn truncate_kv(&self, kv: &mut Kv, len: usize) {
        kv.truncate(len);
    }

    fn share_kv(&self, kv: &Kv, len: usize) -> Kv {
        kv.share(len)
    }

    fn new_column_sums(&self, layers: usize, heads: usize) -> ColumnSums {
        ColumnSums::new(layers, heads)
    }

    fn begin_pass<'a>(
        &self,
        spans: Vec<Span<'a, Kv, ColumnSums>>,
        rotary: Rotary<'_>,
    ) -> Result<Pass<'a>> {
        Ok(Pass::new(spans, rotary))
    }

    fn rope(&self, x: &mut Rows, pass: &Pass<'_>, head_dim: usize) -> Result<()> {
        rope::rotate(self, x, &pass.rope, head_dim);
        Ok(())
    }

    fn append_kv(&self, layer: usize, k: &Rows, v: &Rows, pass: &mut Pass<'_>) -> Result<()> {
        attention::append(self, layer, k, v, &mut pass.spans)
    }

    fn narrow_pass(&self, pass: &mut Pass<'_>, kept: &[usize]) -> Result<()> {
        pass.narrow(kept);
        Ok(())
    }

    fn attend(
        &self,
        attention: &Attention,
        q: &Rows,
        pass: &Pass<'_>,
        out: &mut Rows,
        lse: Option<&mut Rows>,
    ) -> Result<()> {
        attention::attend(self, attention, q, &pass.spans, out, lse);
        Ok(())
    }

    fn add_column_sums(
        &self,
        attention: &Attention,
        q: &Rows,
        lse: &Rows,
        pass: &mut Pass<'_>,
    ) -> Result<()> {
        for span in &mut pass.spans {
            attention::add_column_sums(self, attention, q, lse, span);
        }
        Ok(())
    }

    fn column_sums(&self, sums: &ColumnSums, layer: usize, tokens: usize) -> Result<Vec<f64>> {
        Ok(sums.of_layer(layer, tokens))
    }

    fn attention_weights(
        &self,
        attention: &Attention,
        q: &Rows,
        lse: &Rows,
        pass: &Pass<'_>,
        span: usize,
    ) -> Result<Vec<f32>> {
        Ok(attention::weights(self, attention, q, lse, &pass.spans[span]))
    }

    fn end_pass(&self, pass: Pass<'_>) -> Result<()> {
        pass.end();
        Ok(())
    }

    fn copy_rows(&self, x: &Rows, rows: Range<usize>, out: &mut Rows, first: usize) -> Result<()> {
        row_ops::copy(x, rows, out, first);
        Ok(())
    }

    fn row_norms(
        &self,
        x: &Rows,
        rows: Range<usize>,
        out: &mut Rows,
        at: (usize, usize),
    ) -> Result<()> {
        row_ops::norms(self, x, rows, out, at);
        Ok(())
    }

    fn row_dots(
        &self,
        x: &Rows,
        rows: Range<usize>,
        y: (&Rows, usize),
        out: &mut Rows,
        at: (usize, usize),
    ) -> Result<()> {
        row_ops::dots(self, x, rows, y.0.row(y.1), out, at);
        Ok(())
    }

    fn edit_rows(&self, x: &mut Rows, edits: &[RowEdit<'_>]) -> Result<()> {
        row_ops::edit(x, edits);
        Ok(())
    }
}
