//! Memory for the activations of a forward pass, reused by later passes.

use std::sync::{MutexGuard, PoisonError};

use fathom_backend::Backend;

use crate::mlp::Stages;
use crate::{ModelConfig, PREFILL_CHUNK, Result, Transformer};

/// Largest pass, in rows, whose memory is kept for reuse: four chunks.
const MAX_REUSED_ROWS: usize = 4 * PREFILL_CHUNK;

/// Activations of a pass over `n` rows. Their contents are undefined between passes.
pub(crate) struct Workspace<B: Backend> {
    /// The residual stream, `[n, hidden]`.
    pub x: B::Rows,
    /// Input of the next matrix product.
    pub operand: B::Operand,
    pub q: B::Rows,   // [n, heads · head_dim]
    pub k: B::Rows,   // [n, kv_heads · head_dim]
    pub v: B::Rows,   // [n, kv_heads · head_dim]
    pub ctx: B::Rows, // [n, heads · head_dim]
    pub lse: B::Rows, // [n, heads]
    /// `silu(gate) · up`, `[n, intermediate]`.
    pub gated: B::Operand,
    pub stages: Stages<B>,
    /// Scratch for gathering the rows that need logits, `[≤ n, hidden]`.
    pub chosen: B::Rows,
}

impl<B: Backend> Transformer<B> {
    /// Memory for a pass over `n` rows, reused from an earlier pass if possible.
    ///
    /// # Errors
    /// The backend is out of memory.
    pub(crate) fn take_workspace(&self, n: usize) -> Result<Workspace<B>> {
        let b = &self.backend;
        let ModelConfig { hidden, intermediate, heads, kv_heads, head_dim, .. } = self.config;
        let idle = self.idle_workspaces().pop();
        let mut workspace = match idle {
            Some(workspace) => workspace,
            None => Workspace {
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
        let Workspace { x, q, k, v, ctx, lse, chosen, .. } = &mut workspace;
        for rows in [x, q, k, v, ctx, lse, chosen] {
            let (_, columns) = b.shape(rows);
            b.resize(rows, n, columns)?;
        }
        Ok(workspace)
    }

    /// Keeps the memory of a finished pass over `n` rows for later passes if `n` is at most
    /// [`MAX_REUSED_ROWS`].
    pub(crate) fn return_workspace(&self, workspace: Workspace<B>, n: usize) {
        if n <= MAX_REUSED_ROWS {
            self.idle_workspaces().push(workspace);
        }
    }

    fn idle_workspaces(&self) -> MutexGuard<'_, Vec<Workspace<B>>> {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
