//! A pass, as the host describes it to the device.

use std::ops::Range;
use std::sync::Arc;

use fathom_backend::{Backend, KeyMask, Result, Rotary, Span};
use fathom_kernels::{ColumnSums, Cpu, Kv};

use crate::device::Device;
use crate::memory::{ForeignKv, ForeignSums};

type CpuPass<'a> = <Cpu as Backend>::Pass<'a>;

/// A forward pass over the rows of several sequences.
pub struct Pass<'a> {
    caches: Vec<&'a mut ForeignKv>,
    /// Number of rows of each span before [`Pass::narrow`], all of which are appended to its cache.
    appended: Vec<usize>,
    rows: PassRows,
}

/// The description of a pass that is sent to the device with every operation.
#[derive(Clone)]
pub(crate) struct PassRows {
    spans: Vec<SpanRows>,
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    half: usize,
}

#[derive(Clone)]
struct SpanRows {
    rows: Range<usize>,
    first_position: usize,
    kv: u64,
    column_sums: Option<u64>,
    mask: Option<Arc<KeyMask>>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        spans: Vec<Span<'a, ForeignKv, ForeignSums>>,
        rotary: Rotary<'_>,
    ) -> Pass<'a> {
        let mut pass = Pass {
            caches: Vec::new(),
            appended: spans.iter().map(|span| span.rows.len()).collect(),
            rows: PassRows {
                spans: Vec::new(),
                cos: rotary.cos.into(),
                sin: rotary.sin.into(),
                half: rotary.half,
            },
        };
        for Span { rows, first_position, kv, column_sums, mask } in spans {
            let column_sums = column_sums.map(|sums| sums.object.id);
            let kv_id = kv.object.id;
            let mask = mask.map(|mask| Arc::new(mask.clone()));
            pass.rows.spans.push(SpanRows { rows, first_position, kv: kv_id, column_sums, mask });
            pass.caches.push(kv);
        }
        pass
    }

    pub(crate) fn rows(&self) -> PassRows {
        self.rows.clone()
    }

    pub(crate) fn narrow(&mut self, kept: &[usize]) {
        let mut first = 0;
        for (span, &kept) in self.rows.spans.iter_mut().zip(kept) {
            span.first_position += span.rows.len() - kept;
            span.rows = first..first + kept;
            first += kept;
        }
    }

    /// Adds the appended rows to the lengths of the caches. The result describes the pass with all
    /// its rows, including those that [`Pass::narrow`] removed.
    pub(crate) fn end(self) -> PassRows {
        let mut rows = self.rows;
        let mut first = 0;
        let spans = rows.spans.iter_mut().zip(self.caches).zip(self.appended);
        for ((span, kv), appended) in spans {
            (span.rows, span.first_position) = (first..first + appended, kv.len);
            first += appended;
            kv.len += appended;
        }
        rows
    }
}

impl PassRows {
    /// Runs `work` on the device with the pass of its CPU backend.
    pub fn with<T>(
        self,
        device: &mut Device,
        work: impl FnOnce(&Device, CpuPass<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut objects: Vec<(Box<Kv>, Option<Box<ColumnSums>>)> = Vec::new();
        for span in &self.spans {
            let sums = span.column_sums.map(|sums| device.take(sums)).transpose()?;
            objects.push((device.take(span.kv)?, sums));
        }
        let spans = self.spans.iter().zip(&mut objects);
        let spans = spans.map(|(span, (kv, sums))| Span {
            rows: span.rows.clone(),
            first_position: span.first_position,
            kv: &mut **kv,
            column_sums: sums.as_deref_mut(),
            mask: span.mask.as_deref(),
        });
        let rotary = Rotary { cos: &self.cos, sin: &self.sin, half: self.half };
        let pass = device.cpu.begin_pass(spans.collect(), rotary)?;
        let done = work(device, pass);
        for (span, (kv, sums)) in self.spans.iter().zip(objects) {
            device.put(span.kv, kv);
            if let Some((id, sums)) = span.column_sums.zip(sums) {
                device.put(id, sums);
            }
        }
        done
    }
}
