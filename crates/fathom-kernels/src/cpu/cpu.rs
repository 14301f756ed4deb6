//! The CPU this runs on: its threads, their places, their memory.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use fathom_backend::Precision;

use super::affinity;
use super::isa::{Isa, Supported};
use super::options::{CpuError, CpuOptions};
use super::pool::{Pool, lock};
use super::scratch::{AttentionScratch, Scratch};

/// The forward pass on this machine's CPU.
///
/// Owns its threads. Calls from several threads at once take turns.
pub struct Cpu {
    pub(crate) precision: Precision,
    pub(crate) isa: Supported,
    pool: Pool,
    /// Works instead of `pool` while another model is at work too.
    beside: Option<Pool>,
    is_shared: AtomicBool,
    /// Where threads stay, if asked: thread `i`, of either pool, on the `i`-th.
    cores: Option<Vec<usize>>,
    pub(crate) scratch: Scratch,
}

/// Elements touched, or multiplications, below which waking a second thread takes longer than the
/// work.
pub(crate) const WORTH_A_HAND_OFF: usize = 1 << 16;

impl Cpu {
    /// Starts the threads.
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
            beside: None,
            is_shared: AtomicBool::new(false),
            cores: None,
            scratch,
        })
    }

    /// Multiplies bfloat16 pairs on a software model of AMX's tile registers, whatever this CPU
    /// has: slowly. What tests examine the tile kernels with on any machine.
    pub fn with_modelled_tiles(self) -> Cpu {
        Cpu { isa: self.isa.with_modelled_tiles(), ..self }
    }

    /// Keeps to `threads` threads while another model works at the same time; see
    /// [`Backend::set_shared`](fathom_backend::Backend::set_shared).
    ///
    /// # Errors
    /// No threads, or more than the operating system allows.
    pub fn with_threads_beside(mut self, threads: usize) -> Result<Cpu, CpuError> {
        if threads == 0 {
            return Err(CpuError::NoThreads);
        }
        self.scratch.grow(threads);
        self.check_cores(threads)?;
        self.beside = Some(Pool::new(threads, self.cores.as_deref())?);
        Ok(self)
    }

    /// Keeps each thread on a core of its own: thread `i` on `cores[i]`, whether all threads work
    /// or, with [`Cpu::with_threads_beside`], the first few. Two models that work side by side on
    /// two cores are pinned to `[0, 1]` and `[1, 0]`: alone each has both, beside each other each
    /// has its first.
    ///
    /// Thread 0 is whichever calls: it is moved only where it says that it is here to stay, by
    /// [`Backend::attach_thread`](fathom_backend::Backend::attach_thread).
    ///
    /// # Errors
    /// Fewer cores than threads, the same core twice, or a core this process may not use.
    pub fn pinned(mut self, cores: &[usize]) -> Result<Cpu, CpuError> {
        for &core in cores {
            affinity::check(core).map_err(|source| CpuError::Pin { core, source })?;
        }
        self.cores = Some(cores.to_vec());
        self.check_cores(self.scratch.threads())?;
        self.pool = Pool::new(self.pool.threads(), Some(cores))?;
        if let Some(beside) = &mut self.beside {
            *beside = Pool::new(beside.threads(), Some(cores))?;
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

    /// Whether the threads for work beside another model work from now on.
    pub(crate) fn work_beside(&self, shared: bool) {
        self.is_shared.store(shared, Ordering::Relaxed);
    }

    /// Moves the calling thread to its core, if threads have cores of their own.
    pub(crate) fn pin_caller(&self) {
        if let Some(&core) = self.cores.as_ref().and_then(|cores| cores.first()) {
            // As for the workers: the core was tried when it was asked for.
            drop(affinity::pin_this_thread(core));
        }
    }

    /// The threads that work now.
    fn pool(&self) -> &Pool {
        match &self.beside {
            Some(beside) if self.is_shared.load(Ordering::Relaxed) => beside,
            _ => &self.pool,
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// Threads in use, the calling one included.
    pub fn threads(&self) -> usize {
        self.pool().threads()
    }

    /// Runs `part` on ranges that together are `0..n`, one for each thread.
    pub(crate) fn split(&self, n: usize, part: impl Fn(Range<usize>) + Sync) {
        let pool = self.pool();
        let parts = pool.threads().min(n);
        pool.run(parts, &|_, i| part(n * i / parts..n * (i + 1) / parts));
    }

    /// Cuts `0..rows` among threads, unless the `work` in all (elements touched) is not worth a
    /// hand-off.
    pub(crate) fn split_rows(&self, rows: usize, work: usize, part: impl Fn(Range<usize>) + Sync) {
        if work < WORTH_A_HAND_OFF { part(0..rows) } else { self.split(rows, part) }
    }

    /// Runs `run(thread, task)` once for every task, on whichever thread is free; on the calling
    /// thread alone if the `work` in all (multiplications) is not worth a hand-off.
    pub(crate) fn tasks(&self, tasks: usize, work: usize, run: impl Fn(usize, usize) + Sync) {
        if work < WORTH_A_HAND_OFF {
            (0..tasks).for_each(|task| run(0, task));
        } else {
            self.pool().run(tasks, &run);
        }
    }

    /// [`Cpu::tasks`] with each thread's scratch memory: `run(task, scratch)`.
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
        // From a thread of its own, for it is moved.
        let check = |cpu: &Cpu| {
            cpu.pin_caller();
            let barrier = Barrier::new(threads);
            cpu.pool().run(threads, &|thread, _| {
                barrier.wait();
                assert_eq!(affinity::cores().unwrap(), [cores[thread]]);
            });
        };
        let pinned = || Cpu::new(options).unwrap().pinned(&cores).unwrap();
        let before = Cpu::new(options).unwrap().with_threads_beside(threads).unwrap();
        let cpus = [
            pinned(),
            pinned().with_threads_beside(threads).unwrap(),
            before.pinned(&cores).unwrap(),
        ];
        for cpu in &cpus {
            for beside in [false, true] {
                cpu.work_beside(beside);
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
        assert!(matches!(one.with_threads_beside(2), Err(CpuError::Cores { threads: 2, .. })));
    }
}
