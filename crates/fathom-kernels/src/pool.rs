//! Persistent worker threads, handed work in a microsecond and asleep when there is none.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How often a worker looks for new work before it goes to sleep: some tens of microseconds, longer than
/// the gaps between the operations of a forward pass.
const SPINS: usize = 2_000;

/// A group of threads that run one closure at a time, the caller being thread 0.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: calls from several threads take turns.
    turn: Mutex<()>,
}

struct Shared {
    /// Counts jobs; a worker that sees it change runs `job`.
    epoch: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished the current job.
    running: AtomicUsize,
    /// Workers waiting on `wake`.
    sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

/// The closure of the current `run`, its lifetime erased: `run` outlives every use.
type Job = *const (dyn Fn(usize) + Sync);

// SAFETY: `job` is written only while no worker reads it: before `epoch` announces it, and with the
// previous one finished (`running` back at 0), under `turn`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer is to a `Sync` closure.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads ≥ 1`, the calling thread among them.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("fathom-{thread}"))
                .spawn(move || shared.work(thread))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(0..threads)`, each on its thread, and returns when all are done. A panic in any of them
    /// is raised here. `job` must not call `run` of the same pool.
    pub(crate) fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes, and this function waits for the last use below.
        let erased = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        // SAFETY: no worker reads `job` now; see `Shared`.
        unsafe { *shared.job.get() = Some(erased) };
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        shared.announce();
        let mine = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let theirs = lock(&shared.panic).take();
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.announce();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs; it has none of its own to report.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn announce(&self) {
        // Sequentially consistent against `sleeping`: either the sleeper sees the new epoch, or this
        // sees the sleeper.
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&self.sleep);
            self.wake.notify_all();
        }
    }

    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_epoch(seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: `epoch` changed, so `job` is set and stays until `running` reaches 0.
            let Some(job) = (unsafe { *self.job.get() }) else { continue };
            // SAFETY: `run` keeps the closure alive until this worker has counted itself out.
            let job = unsafe { &*job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(thread))) {
                *lock(&self.panic) = Some(panic);
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until the epoch is not `seen`: first spinning, then asleep.
    fn next_epoch(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.sleep);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let epoch = loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                break epoch;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        epoch
    }
}

/// What these mutexes guard stays valid through a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_thread_runs_once_per_job_awake_or_asleep() -> std::io::Result<()> {
        let pool = Pool::new(3)?;
        let counts = [const { AtomicUsize::new(0) }; 3];
        for job in 1..=200 {
            if job % 50 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            pool.run(&|thread| {
                counts[thread].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == job));
        }
        Ok(())
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() -> std::io::Result<()> {
        let pool = Pool::new(2)?;
        for culprit in [0, 1] {
            let job = |thread| assert!(thread != culprit, "thread {thread}");
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(&job)));
            assert!(result.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(&|thread| {
            sum.fetch_add(thread + 1, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 3);
        Ok(())
    }
}
