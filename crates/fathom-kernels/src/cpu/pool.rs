//! Persistent worker threads that start a job within a microsecond and sleep when idle.
//!
//! A job is a number of tasks, which free threads take one by one. The calling thread starts at
//! once and never waits for a worker that has not joined by the time all tasks are taken. So if
//! other programs occupy the cores, a job takes as long as it would on one thread, rather than as
//! long as the scheduler delays a worker.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::affinity;

/// How often an idle worker polls for a new job before it sleeps: some tens of microseconds, longer
/// than the gaps between the operations of a forward pass.
const SPINS: usize = 2_000;

/// A group of threads that runs one job at a time. The caller is thread 0.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs, to serialize concurrent calls.
    turn: Mutex<()>,
}

struct Shared {
    /// Number of jobs; a worker that sees it change tries to join the job.
    epoch: AtomicUsize,
    /// Number of workers inside the job, plus [`CLOSED`] while none may join.
    gate: AtomicUsize,
    /// The job. The pointer is valid while the gate is open or a worker is inside.
    job: UnsafeCell<*const Job<'static>>,
    /// Workers waiting on `wake`.
    sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

struct Job<'a> {
    /// `run(thread, task)`
    run: &'a (dyn Fn(usize, usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
}

impl Job<'_> {
    fn work(&self, thread: usize) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                return;
            }
            (self.run)(thread, task);
        }
    }
}

// SAFETY: `job` is written only while the gate is closed with no worker inside, and is read only by
// workers inside the gate. The closure it points to is `Sync`. All other fields are `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as for `Sync`; the pointer in `job` is not tied to a thread.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads ≥ 1`, including the calling thread. With `cores`, worker `i ≥ 1` is
    /// pinned to `cores[i]`, for which [`affinity::check`] has passed.
    pub(super) fn new(threads: usize, cores: Option<&[usize]>) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            gate: AtomicUsize::new(CLOSED),
            job: UnsafeCell::new(std::ptr::null()),
            sleeping: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let core = cores.map(|cores| cores[thread]);
            let worker =
                std::thread::Builder::new().name(format!("fathom-{thread}")).spawn(move || {
                    // Best effort: the core was checked before. If it has become unavailable, the
                    // worker runs unpinned.
                    drop(core.map(affinity::pin_this_thread));
                    shared.work(thread);
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `run(thread, task)` once for every task and returns when all are done. Re-raises a
    /// panic of any task. `run` must not use the same pool.
    pub(super) fn run(&self, tasks: usize, run: &(dyn Fn(usize, usize) + Sync)) {
        let job = Job { run, tasks, next: AtomicUsize::new(0) };
        if self.workers.is_empty() || tasks < 2 {
            return job.work(0);
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: the gate is closed and no worker is inside, initially and after every `run`, and
        // `turn` excludes other callers. So nothing reads `job` during the write.
        unsafe { *shared.job.get() = (&raw const job).cast() };
        shared.gate.store(0, Ordering::Release);
        shared.announce();
        let mine = catch_unwind(AssertUnwindSafe(|| job.work(0)));
        shared.gate.fetch_or(CLOSED, Ordering::Relaxed);
        let mut spins = 0;
        while shared.gate.load(Ordering::Acquire) != CLOSED {
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
            // Workers catch the panics of their jobs, so `join` has nothing to report.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn announce(&self) {
        // The sequentially consistent order with `sleeping` in `next_epoch` prevents a lost
        // wake-up: either the sleeper sees the new epoch, or this thread sees the sleeper.
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
            let open = |gate| (gate & CLOSED == 0).then_some(gate + 1);
            if self.gate.fetch_update(Ordering::Acquire, Ordering::Relaxed, open).is_err() {
                continue; // the job has ended
            }
            // SAFETY: this worker is inside the gate. `run` set `job` before opening the gate, and
            // returns, ending the job's lifetime, only after all workers have left.
            let job = unsafe { &**self.job.get() };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job.work(thread))) {
                *lock(&self.panic) = Some(panic);
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until the epoch differs from `seen`: spins first, then sleeps.
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

/// Locks a mutex and ignores poisoning: the data these mutexes guard stays valid through a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_task_runs_once_whether_workers_are_awake_or_asleep() -> std::io::Result<()> {
        let pool = Pool::new(3, None)?;
        let counts = [const { AtomicUsize::new(0) }; 7];
        for job in 1..=5000 {
            if job % 1000 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            pool.run(counts.len(), &|_, task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == job));
        }
        Ok(())
    }

    #[test]
    fn threads_work_at_the_same_time() -> std::io::Result<()> {
        let pool = Pool::new(2, None)?;
        let barrier = std::sync::Barrier::new(2);
        let threads = Mutex::new(Vec::new());
        // Each task waits for the other, so one thread alone would never finish.
        pool.run(2, &|thread, _| {
            barrier.wait();
            lock(&threads).push(thread);
        });
        let mut threads = threads.into_inner().unwrap_or_else(PoisonError::into_inner);
        threads.sort_unstable();
        assert_eq!(threads, [0, 1]);
        Ok(())
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() -> std::io::Result<()> {
        let pool = Pool::new(2, None)?;
        let barrier = std::sync::Barrier::new(2);
        for culprit in [0, 1] {
            let run = |thread, _| {
                barrier.wait();
                assert!(thread != culprit, "thread {thread}");
            };
            assert!(catch_unwind(AssertUnwindSafe(|| pool.run(2, &run))).is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(4, &|_, task| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 6);
        Ok(())
    }
}
