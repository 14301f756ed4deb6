//! The CPU: its worker threads, their cores and their scratch memory.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use fathom_backend::Precision;

use super::affinity;
use super::isa::{Isa, Supported};
use super::options::{CpuError, CpuOptions};
use super::pool::{Pool, lock};
use super::scratch::{AttentionScratch, Scratch};

/// The CPU as a [`Backend`](fathom_backend::Backend).
///
/// Owns its worker threads. Concurrent calls from several threads are serialized.
pub struct Cpu {
    pub(crate) precision: Precision,
    pub(crate) isa: Supported,
    pool: Pool,
    /// Used instead of `pool` while another model is running.
    co_running: Option<Pool>,
    is_shared: AtomicBool,
    /// The cores that threads are pinned to, if any: thread `i` of either pool to `cores[i]`.
    cores: Option<Vec<usize>>,
    pub(crate) scratch: Scratch,
}

/// Elements accessed, or multiplications, below which waking a second thread takes longer than the
/// work.
pub(crate) const PARALLEL_THRESHOLD: usize = 1 << 16;

impl Cpu {
    /// Detects the instruction set and starts the worker threads.
    pub fn new(options: CpuOptions) -> Result<Cpu, CpuError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let isa = Supported::new(isa).map_err(|reason| CpuError::UnsupportedIsa { isa, reason })?;
        let threads = match options.threads {
            Some(0) => return Err(CpuError::NoThreads),
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let mut scratch = Scratch::default();
        scratch.grow(threads);
        Ok(Cpu {
            precision: options.precision,
            isa,
            pool: Pool::new(threads, None)?,
            co_running: None,
            is_shared: AtomicBool::new(false),
            cores: None,
            scratch,
        })
    }

    /// Runs products of bfloat16 pairs on a software model of AMX's tile registers, on any CPU.
    /// Slow: it is for testing the tile kernels.
    pub fn with_tile_model(self) -> Cpu {
        Cpu { isa: self.isa.with_tile_model(), ..self }
    }

    /// Uses only `threads` threads while another model runs at the same time; see
    /// [`Backend::set_co_running`](fathom_backend::Backend::set_co_running).
    ///
    /// # Errors
    /// `threads` is 0, or more than the operating system or [`Cpu::pinned`] allows.
    pub fn with_co_running_threads(mut self, threads: usize) -> Result<Cpu, CpuError> {
        if threads == 0 {
            return Err(CpuError::NoThreads);
        }
        self.scratch.grow(threads);
        self.check_cores(threads)?;
        self.co_running = Some(Pool::new(threads, self.cores.as_deref())?);
        Ok(self)
    }

    /// Pins thread `i` to `cores[i]`, in both pools: all threads, and the first few that
    /// [`Cpu::with_co_running_threads`] selects. Two co-running models on two cores are pinned to
    /// `[0, 1]` and `[1, 0]`: alone, each uses both cores; together, each uses its first.
    ///
    /// Thread 0 is the calling thread. It is pinned only when it calls
    /// [`Backend::attach_thread`](fathom_backend::Backend::attach_thread).
    ///
    /// # Errors
    /// There are fewer cores than threads, a core is repeated, or this process may not use a core.
    pub fn pinned(mut self, cores: &[usize]) -> Result<Cpu, CpuError> {
        for &core in cores {
            affinity::check(core).map_err(|source| CpuError::Pin { core, source })?;
        }
        self.cores = Some(cores.to_vec());
        self.check_cores(self.scratch.threads())?;
        self.pool = Pool::new(self.pool.threads(), Some(cores))?;
        if let Some(co_running) = &mut self.co_running {
            *co_running = Pool::new(co_running.threads(), Some(cores))?;
        }
        Ok(self)
    }

    fn check_cores(&self, threads: usize) -> Result<(), CpuError> {
        let Some(cores) = &self.cores else { return Ok(()) };
        let different: HashSet<_> = cores.iter().collect();
        if cores.len() < threads || different.len() < cores.len() {
            return Err(CpuError::Cores { threads, cores: cores.clone() });
        }
        Ok(())
    }

    /// Selects whether the threads for co-running with another model are used from now on.
    pub(crate) fn use_co_running_threads(&self, shared: bool) {
        self.is_shared.store(shared, Ordering::Relaxed);
    }

    /// Pins the calling thread to its core, if threads are pinned.
    pub(crate) fn pin_caller(&self) {
        if let Some(&core) = self.cores.as_ref().and_then(|cores| cores.first()) {
            // Best effort, as for the workers: `pinned` has checked the core.
            drop(affinity::pin_this_thread(core));
        }
    }

    /// The pool in use.
    fn pool(&self) -> &Pool {
        match &self.co_running {
            Some(co_running) if self.is_shared.load(Ordering::Relaxed) => co_running,
            _ => &self.pool,
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// Threads in use, including the calling thread.
    pub fn threads(&self) -> usize {
        self.pool().threads()
    }

    /// Runs `part` on one range per thread; the ranges together are `0..n`.
    pub(crate) fn split(&self, n: usize, part: impl Fn(Range<usize>) + Sync) {
        let pool = self.pool();
        let parts = pool.threads().min(n);
        pool.run(parts, &|_, i| part(n * i / parts..n * (i + 1) / parts));
    }

    /// Divides `0..rows` among threads, unless `work` (elements accessed in total) is below
    /// [`PARALLEL_THRESHOLD`].
    pub(crate) fn split_rows(&self, rows: usize, work: usize, part: impl Fn(Range<usize>) + Sync) {
        if work < PARALLEL_THRESHOLD { part(0..rows) } else { self.split(rows, part) }
    }

    /// Runs `run(thread, task)` once for every task, on whichever thread is free. Uses the calling
    /// thread alone if `work` (multiplications in total) is below [`PARALLEL_THRESHOLD`].
    pub(crate) fn tasks(&self, tasks: usize, work: usize, run: impl Fn(usize, usize) + Sync) {
        if work < PARALLEL_THRESHOLD {
            (0..tasks).for_each(|task| run(0, task));
        } else {
            self.pool().run(tasks, &run);
        }
    }

    /// [`Cpu::tasks`] with the thread's scratch memory: `run(task, scratch)`.
    pub(crate) fn tasks_with_scratch(
        &self,
        tasks: usize,
        work: usize,
        run: impl Fn(usize, &mut AttentionScratch) + Sync,
    ) {
        self.tasks(tasks, work, |thread, task| {
            run(task, &mut lock(&self.scratch.attention[thread]))
        });
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn pinned_threads_stay_on_their_cores() {
        let mut cores = affinity::cores().unwrap();
        cores.truncate(2);
        cores.reverse();
        let threads = cores.len();
        let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
        // On a thread of its own, because the thread is pinned.
        let check = |cpu: &Cpu| {
            cpu.pin_caller();
            let barrier = Barrier::new(threads);
            cpu.pool().run(threads, &|thread, _| {
                barrier.wait();
                assert_eq!(affinity::cores().unwrap(), [cores[thread]]);
            });
        };
        let pinned = || Cpu::new(options).unwrap().pinned(&cores).unwrap();
        let before = Cpu::new(options).unwrap().with_co_running_threads(threads).unwrap();
        let cpus = [
            pinned(),
            pinned().with_co_running_threads(threads).unwrap(),
            before.pinned(&cores).unwrap(),
        ];
        for cpu in &cpus {
            for co_running in [false, true] {
                cpu.use_co_running_threads(co_running);
                std::thread::scope(|scope| scope.spawn(|| check(cpu)).join().unwrap());
            }
        }
    }

    #[test]
    fn cores_are_refused_where_threads_would_share_them() {
        let core = affinity::cores().unwrap()[0];
        let cpu = |threads| {
            Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
        };
        assert!(matches!(cpu(1).pinned(&[]), Err(CpuError::Cores { threads: 1, .. })));
        assert!(matches!(cpu(2).pinned(&[core]), Err(CpuError::Cores { threads: 2, .. })));
        assert!(matches!(cpu(2).pinned(&[core, core]), Err(CpuError::Cores { .. })));
        assert!(matches!(cpu(1).pinned(&[1 << 20]), Err(CpuError::Pin { core: 1048576, .. })));
        let one = cpu(1).pinned(&[core]).unwrap();
        assert!(matches!(one.with_co_running_threads(2), Err(CpuError::Cores { threads: 2, .. })));
    }
}
