//! The [`Backend`] trait, implemented with handles of objects in the device's memory.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fathom_backend::{
    Attention, Backend, BackendError, KvShape, Precision, Result, Rotary, RowChange, RowEdit, Span,
    WeightView,
};
use fathom_kernels::{ColumnSums, Kv, Linear, Operand, Rows};

use crate::Foreign;
use crate::device::{Command, Device};
use crate::edit::OwnedEdit;
use crate::memory::{
    ForeignKv, ForeignLinear, ForeignMark, ForeignOperand, ForeignRows, ForeignSums, ForeignVector,
};
use crate::pass::Pass;

/// The error that a flawed device adds to row 0 of a product of several rows.
const FLAW: RowEdit<'static> = RowEdit { row: 0, columns: None, change: RowChange::Scale(1.001) };

impl Backend for Foreign {
    type Rows = ForeignRows;
    type Operand = ForeignOperand;
    type Linear = ForeignLinear;
    type Vector = ForeignVector;
    type Kv = ForeignKv;
    type ColumnSums = ForeignSums;
    type Pass<'a> = Pass<'a>;
    type Mark = ForeignMark;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    /// Deliberately different from the CPU's.
    fn kv_page(&self) -> usize {
        48
    }

    fn synchronize(&self) -> Result<()> {
        self.read(|_| Ok(()))
    }

    fn mark(&self) -> Result<ForeignMark> {
        let moment = Arc::new(OnceLock::new());
        let mark = ForeignMark(Arc::clone(&moment));
        self.launch(move |_| {
            moment.get_or_init(Instant::now);
            Ok(())
        })?;
        Ok(mark)
    }

    fn seconds_between(&self, from: &ForeignMark, to: &ForeignMark) -> Result<f64> {
        self.synchronize()?;
        let moment = |mark: &ForeignMark| {
            let lost = || BackendError::Lost("a mark was never reached".to_owned());
            mark.0.get().copied().ok_or_else(lost)
        };
        Ok(moment(to)?.duration_since(moment(from)?).as_secs_f64())
    }

    fn alloc(&self, rows: usize, columns: usize) -> Result<ForeignRows> {
        let object = self.make(move |cpu| cpu.alloc(rows, columns))?;
        Ok(ForeignRows { object, rows, columns })
    }

    fn resize(&self, x: &mut ForeignRows, rows: usize, columns: usize) -> Result<()> {
        (x.rows, x.columns) = (rows, columns);
        self.write(x, move |device, x| {
            device.cpu.resize(x, rows, columns)?;
            // The contents are unspecified. NaN exposes code that reads them.
            device.cpu.write_rows(x, 0, &vec![f32::NAN; rows * columns])
        })
    }

    fn shape(&self, x: &ForeignRows) -> (usize, usize) {
        (x.rows, x.columns)
    }

    fn host_rows<'a>(
        &self,
        x: &'a ForeignRows,
        rows: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> Result<&'a [f32]> {
        let x = x.object.id;
        *scratch = self.read(move |device| {
            let mut none = Vec::new();
            Ok(device.cpu.host_rows(device.get(x)?, rows, &mut none)?.to_vec())
        })?;
        Ok(scratch)
    }

    fn write_rows(&self, x: &mut ForeignRows, first: usize, values: &[f32]) -> Result<()> {
        let values = values.to_vec();
        self.write(x, move |device, x| device.cpu.write_rows(x, first, &values))
    }

    fn new_operand(&self) -> ForeignOperand {
        ForeignOperand(self.make_empty(|cpu| cpu.new_operand()))
    }

    fn linear_from(&self, weight: WeightView<'_>, bias: Option<&[f32]>) -> Result<ForeignLinear> {
        let WeightView { dtype, rows, columns, .. } = weight;
        let (bytes, bias) = (weight.bytes.to_vec(), bias.map(<[f32]>::to_vec));
        let object = self.make(move |cpu| {
            let weight = WeightView { bytes: &bytes, dtype, rows, columns };
            cpu.linear_from(weight, bias.as_deref())
        })?;
        let id = object.id;
        let bytes = self.read(move |device| Ok(device.get::<Linear>(id)?.bytes()))?;
        Ok(ForeignLinear { object, bytes })
    }

    fn linear_bytes(&self, linear: &ForeignLinear) -> usize {
        linear.bytes
    }

    fn vector_from(&self, values: &[f32]) -> Result<ForeignVector> {
        let values = values.to_vec();
        Ok(ForeignVector(self.make(move |cpu| cpu.vector_from(&values))?))
    }

    fn embed(&self, table: &ForeignLinear, ids: &[u32], out: &mut ForeignRows) -> Result<()> {
        let (table, ids) = (table.object.id, ids.to_vec());
        self.write(out, move |device, out| device.cpu.embed(device.get(table)?, &ids, out))
    }

    fn rms_norm(
        &self,
        x: &ForeignRows,
        weight: &ForeignVector,
        eps: f32,
        out: &mut ForeignRows,
    ) -> Result<()> {
        let (x, weight) = (x.object.id, weight.0.id);
        self.write(out, move |device, out| {
            device.cpu.rms_norm(device.get(x)?, device.get(weight)?, eps, out)
        })
    }

    fn rms_norm_operand(
        &self,
        x: &ForeignRows,
        weight: &ForeignVector,
        eps: f32,
        out: &mut ForeignOperand,
    ) -> Result<()> {
        let (x, weight) = (x.object.id, weight.0.id);
        self.change(&out.0, move |device, out| {
            device.cpu.rms_norm_operand(device.get(x)?, device.get(weight)?, eps, out)
        })
    }

    fn head_norm(&self, x: &mut ForeignRows, weight: &ForeignVector, eps: f32) -> Result<()> {
        let weight = weight.0.id;
        self.write(x, move |device, x| device.cpu.head_norm(x, device.get(weight)?, eps))
    }

    fn operand(&self, x: &ForeignRows, out: &mut ForeignOperand) -> Result<()> {
        let x = x.object.id;
        self.change(&out.0, move |device, out| device.cpu.operand(device.get(x)?, out))
    }

    fn linears(
        &self,
        ws: &[&ForeignLinear],
        x: &ForeignOperand,
        outs: &mut [&mut ForeignRows],
    ) -> Result<()> {
        let (x, flawed) = (x.0.id, self.flawed);
        for (w, out) in ws.iter().zip(outs) {
            let w = w.object.id;
            self.write(out, move |device, out| {
                device.cpu.linears(&[device.get(w)?], device.get(x)?, &mut [&mut *out])?;
                match flawed && device.cpu.shape(out).0 > 1 {
                    true => device.cpu.edit_rows(out, &[FLAW]),
                    false => Ok(()),
                }
            })?;
        }
        Ok(())
    }

    fn linear_add(
        &self,
        w: &ForeignLinear,
        x: &ForeignOperand,
        out: &mut ForeignRows,
    ) -> Result<()> {
        let (w, x) = (w.object.id, x.0.id);
        self.write(out, move |device, out| {
            device.cpu.linear_add(device.get(w)?, device.get(x)?, out)
        })
    }

    fn gated(
        &self,
        gate: &ForeignLinear,
        up: &ForeignLinear,
        x: &ForeignOperand,
        out: &mut ForeignOperand,
    ) -> Result<()> {
        let (gate, up, x) = (gate.object.id, up.object.id, x.0.id);
        self.change::<Operand>(&out.0, move |device, out| {
            device.cpu.gated(device.get(gate)?, device.get(up)?, device.get(x)?, out)
        })
    }

    fn linear_argmax(
        &self,
        w: &ForeignLinear,
        x: &ForeignOperand,
        limit: usize,
    ) -> Result<Vec<u32>> {
        let (w, x) = (w.object.id, x.0.id);
        self.read(move |device| device.cpu.linear_argmax(device.get(w)?, device.get(x)?, limit))
    }

    fn silu(&self, x: &ForeignRows, out: &mut ForeignRows) -> Result<()> {
        let x = x.object.id;
        self.write(out, move |device, out| device.cpu.silu(device.get(x)?, out))
    }

    fn mul(&self, x: &ForeignRows, y: &ForeignRows, out: &mut ForeignRows) -> Result<()> {
        let (x, y) = (x.object.id, y.object.id);
        self.write(out, move |device, out| device.cpu.mul(device.get(x)?, device.get(y)?, out))
    }

    fn add_assign(&self, x: &mut ForeignRows, y: &ForeignRows) -> Result<()> {
        let y = y.object.id;
        self.write(x, move |device, x| device.cpu.add_assign(x, device.get(y)?))
    }

    fn gather(&self, x: &ForeignRows, rows: &[usize], out: &mut ForeignRows) -> Result<()> {
        (out.rows, out.columns) = (rows.len(), x.columns);
        let (x, rows) = (x.object.id, rows.to_vec());
        self.write(out, move |device, out| device.cpu.gather(device.get(x)?, &rows, out))
    }

    fn argmax(&self, x: &ForeignRows, limit: usize) -> Result<Vec<u32>> {
        let x = x.object.id;
        self.read(move |device| device.cpu.argmax(device.get(x)?, limit))
    }

    fn new_kv(&self, shape: KvShape) -> ForeignKv {
        ForeignKv { object: self.make_empty(move |cpu| cpu.new_kv(shape)), len: 0 }
    }

    fn kv_len(&self, kv: &ForeignKv) -> usize {
        kv.len
    }

    fn kv_bytes(&self, kv: &ForeignKv) -> usize {
        let id = kv.object.id;
        let bytes = self.read(move |device| Ok(device.cpu.kv_bytes(device.get::<Kv>(id)?)));
        bytes.unwrap_or(0) // the device is lost
    }

    fn truncate_kv(&self, kv: &mut ForeignKv, len: usize) {
        kv.len = len;
        let id = kv.object.id;
        self.queue.send(Command::Work(Box::new(move |device: &mut Device| {
            let mut kv = device.take::<Kv>(id)?;
            device.cpu.truncate_kv(&mut kv, len);
            device.put(id, kv);
            Ok(())
        })));
    }

    fn share_kv(&self, kv: &ForeignKv, len: usize) -> ForeignKv {
        let (shared, id) = (self.queue.object(), kv.object.id);
        let to = shared.id;
        self.queue.send(Command::Work(Box::new(move |device: &mut Device| {
            let kv = device.cpu.share_kv(device.get::<Kv>(id)?, len);
            device.put(to, Box::new(kv));
            Ok(())
        })));
        ForeignKv { object: shared, len }
    }

    fn new_column_sums(&self, layers: usize, heads: usize) -> ForeignSums {
        ForeignSums { object: self.make_empty(move |cpu| cpu.new_column_sums(layers, heads)) }
    }

    fn begin_pass<'a>(
        &self,
        spans: Vec<Span<'a, ForeignKv, ForeignSums>>,
        rotary: Rotary<'_>,
    ) -> Result<Pass<'a>> {
        self.launch(|_| Ok(()))?;
        Ok(Pass::new(spans, rotary))
    }

    fn rope(&self, x: &mut ForeignRows, pass: &Pass<'_>, head_dim: usize) -> Result<()> {
        let (id, pass) = (x.object.id, pass.rows());
        self.launch(move |device| {
            let mut x = device.take::<Rows>(id)?;
            pass.with(device, |device, pass| device.cpu.rope(&mut x, &pass, head_dim))?;
            device.put(id, x);
            Ok(())
        })
    }

    fn append_kv(
        &self,
        layer: usize,
        k: &ForeignRows,
        v: &ForeignRows,
        pass: &mut Pass<'_>,
    ) -> Result<()> {
        let (k, v, pass) = (k.object.id, v.object.id, pass.rows());
        self.launch(move |device| {
            pass.with(device, |device, mut pass| {
                device.cpu.append_kv(layer, device.get(k)?, device.get(v)?, &mut pass)
            })
        })
    }

    fn narrow_pass(&self, pass: &mut Pass<'_>, kept: &[usize]) -> Result<()> {
        pass.narrow(kept);
        self.launch(|_| Ok(()))
    }

    fn attend(
        &self,
        attention: &Attention,
        q: &ForeignRows,
        pass: &Pass<'_>,
        out: &mut ForeignRows,
        lse: Option<&mut ForeignRows>,
    ) -> Result<()> {
        let (attention, q, pass) = (*attention, q.object.id, pass.rows());
        let (out, lse) = (out.object.id, lse.map(|lse| lse.object.id));
        self.launch(move |device| {
            let mut out_rows = device.take::<Rows>(out)?;
            let mut lse_rows = lse.map(|lse| device.take::<Rows>(lse)).transpose()?;
            pass.with(device, |device, pass| {
                let q = device.get(q)?;
                device.cpu.attend(&attention, q, &pass, &mut out_rows, lse_rows.as_deref_mut())
            })?;
            device.put(out, out_rows);
            if let Some((lse, rows)) = lse.zip(lse_rows) {
                device.put(lse, rows);
            }
            Ok(())
        })
    }

    fn add_column_sums(
        &self,
        attention: &Attention,
        q: &ForeignRows,
        lse: &ForeignRows,
        pass: &mut Pass<'_>,
    ) -> Result<()> {
        let (attention, q, lse, pass) = (*attention, q.object.id, lse.object.id, pass.rows());
        self.launch(move |device| {
            pass.with(device, |device, mut pass| {
                let (q, lse) = (device.get(q)?, device.get(lse)?);
                device.cpu.add_column_sums(&attention, q, lse, &mut pass)
            })
        })
    }

    fn column_sums(&self, sums: &ForeignSums, layer: usize, tokens: usize) -> Result<Vec<f64>> {
        let id = sums.object.id;
        self.read(move |device| {
            device.cpu.column_sums(device.get::<ColumnSums>(id)?, layer, tokens)
        })
    }

    fn attention_weights(
        &self,
        attention: &Attention,
        q: &ForeignRows,
        lse: &ForeignRows,
        pass: &Pass<'_>,
        span: usize,
    ) -> Result<Vec<f32>> {
        let (attention, q, lse, pass) = (*attention, q.object.id, lse.object.id, pass.rows());
        self.read(move |device| {
            pass.with(device, |device, pass| {
                let (q, lse) = (device.get(q)?, device.get(lse)?);
                device.cpu.attention_weights(&attention, q, lse, &pass, span)
            })
        })
    }

    fn end_pass(&self, pass: Pass<'_>) -> Result<()> {
        let pass = pass.end();
        self.launch(move |device| pass.with(device, |device, pass| device.cpu.end_pass(pass)))
    }

    fn copy_rows(
        &self,
        x: &ForeignRows,
        rows: Range<usize>,
        out: &mut ForeignRows,
        first: usize,
    ) -> Result<()> {
        let x = x.object.id;
        self.write(out, move |device, out| device.cpu.copy_rows(device.get(x)?, rows, out, first))
    }

    fn row_norms(
        &self,
        x: &ForeignRows,
        rows: Range<usize>,
        out: &mut ForeignRows,
        at: (usize, usize),
    ) -> Result<()> {
        let x = x.object.id;
        self.write(out, move |device, out| device.cpu.row_norms(device.get(x)?, rows, out, at))
    }

    fn row_dots(
        &self,
        x: &ForeignRows,
        rows: Range<usize>,
        y: (&ForeignRows, usize),
        out: &mut ForeignRows,
        at: (usize, usize),
    ) -> Result<()> {
        let (x, y, y_row) = (x.object.id, y.0.object.id, y.1);
        self.write(out, move |device, out| {
            device.cpu.row_dots(device.get(x)?, rows, (device.get(y)?, y_row), out, at)
        })
    }

    fn edit_rows(&self, x: &mut ForeignRows, edits: &[RowEdit<'_>]) -> Result<()> {
        let edits: Vec<OwnedEdit> = edits.iter().map(OwnedEdit::of).collect();
        self.write(x, move |device, x| {
            let edits: Vec<RowEdit<'_>> = edits.iter().map(OwnedEdit::borrow).collect();
            device.cpu.edit_rows(x, &edits)
        })
    }
}
