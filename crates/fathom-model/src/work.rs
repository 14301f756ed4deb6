//! The memory a forward pass works in, kept from one pass to the next.

use std::sync::{MutexGuard, PoisonError};

use fathom_backend::Backend;

use crate::mlp::Stages;
use crate::{Model, ModelConfig, PREFILL_CHUNK, Result};

/// Rows of a pass whose memory is kept: four chunks. A long text run in one step gives it back.
const KEPT_ROWS: usize = 4 * PREFILL_CHUNK;

/// Activations of a pass over `n` rows. Their contents mean nothing between passes.
pub(crate) struct Work<B: Backend> {
    /// The residual stream, `[n, hidden]`.
    pub x: B::Rows,
    /// What the next matrix product takes.
    pub operand: B::Operand,
    pub q: B::Rows,   // [n, heads · head_dim]
    pub k: B::Rows,   // [n, kv_heads · head_dim]
    pub v: B::Rows,   // [n, kv_heads · head_dim]
    pub ctx: B::Rows, // [n, heads · head_dim]
    pub lse: B::Rows, // [n, heads]
    /// `silu(gate) · up`, `[n, intermediate]`.
    pub gated: B::Operand,
    pub stages: Stages<B>,
    /// Rows of the residual stream that need logits, while they are being gathered. `[≤ n, hidden]`
    pub chosen: B::Rows,
}

impl<B: Backend> Model<B> {
    /// Memory for a pass over `n` rows: an earlier pass's, unless another thread's pass has it.
    ///
    /// # Errors
    /// No room for it.
    pub(crate) fn take_work(&self, n: usize) -> Result<Work<B>> {
        let b = &self.backend;
        let ModelConfig { hidden, intermediate, heads, kv_heads, head_dim, .. } = self.config;
        let kept = self.idle_work().pop();
        let mut work = match kept {
            Some(work) => work,
            None => Work {
                x: b.alloc(0, hidden)?,
                operand: b.new_operand(),
                q: b.alloc(0, heads * head_dim)?,
                k: b.alloc(0, kv_heads * head_dim)?,
                v: b.alloc(0, kv_heads * head_dim)?,
                ctx: b.alloc(0, heads * head_dim)?,
                lse: b.alloc(0, heads)?,
                gated: b.new_operand(),
                stages: Stages::new(b, intermediate)?,
                chosen: b.alloc(0, hidden)?,
            },
        };
        let Work { x, q, k, v, ctx, lse, chosen, .. } = &mut work;
        for rows in [x, q, k, v, ctx, lse, chosen] {
            let (_, columns) = b.shape(rows);
            b.resize(rows, n, columns)?;
        }
        Ok(work)
    }

    /// Keeps the memory of a pass over `n` rows that is over for the next one, unless it is more
    /// than passes usually need.
    pub(crate) fn give_back(&self, work: Work<B>, n: usize) {
        if n <= KEPT_ROWS {
            self.idle_work().push(work);
        }
    }

    fn idle_work(&self) -> MutexGuard<'_, Vec<Work<B>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
