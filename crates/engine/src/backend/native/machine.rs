//! Threads that share memory, and vector instructions (`instructions`): the only unsafe code of the engine
//! beside the bridge to CUDA.
//!
//! A [`Team`] splits one operation at a time into tasks, each done by one of its threads. An operation of the
//! network takes microseconds, so the threads wait for the next one spinning for a moment, and only then
//! sleep. A thread that the system has put aside holds up nobody: it takes no task until it runs again.
//!
//! Safe code gets at shared memory only in parts that belong to one task: [`Team::blocks`] and
//! [`Team::units`].

mod instructions;

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

pub(crate) use instructions::{Kernel, Level, PairProducts, fetch, run, widen_pairs};

/// Turns of the waiting loop before a thread sleeps: some tens of microseconds, more than there is between
/// two operations of a step, less than what would hurt other processes.
const SPIN_COUNT: u32 = 2_000;

/// Most tasks of one operation.
const MAX_TASKS: usize = 1 << 20;

/// Bits of a number of tasks in [`Shared::state`]: one more than the most tasks need.
const COUNT_BITS: u32 = 21;

/// An operation: called with the number of a task.
type Operation = *const (dyn Fn(usize) + Sync);

/// What the threads share.
struct Shared {
    /// `number of the operation << 2 COUNT_BITS | tasks << COUNT_BITS | next task`, so that taking a task is
    /// one addition and its answer says which operation it belongs to.
    state: AtomicU64,
    /// The current operation. Written before `state` announces its tasks; read by whoever took one of them.
    operation: UnsafeCell<Option<Operation>>,
    /// Tasks of the current operation that are done.
    done: AtomicUsize,
    /// Threads that sleep or are about to.
    asleep: AtomicUsize,
    /// Held between looking for work and sleeping, so that nobody is woken in between for nothing.
    sleepers: Mutex<()>,
    /// There is a task, or the end.
    changed: Condvar,
    quit: AtomicBool,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `operation` is the only field that is not already safe to share. It is written by the thread that
// owns the team while no task of an operation is open (see `Team::run`), and read by a thread only between
// taking a task and reporting it done; the atomic `state` orders the write before the reads, `done` the reads
// before the next write.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is to a `Sync` function.
unsafe impl Send for Shared {}

/// The number of tasks and the next one, of a state.
fn tasks_and_next(state: u64) -> (usize, usize) {
    let mask = (1 << COUNT_BITS) - 1;
    ((state >> COUNT_BITS & mask) as usize, (state & mask) as usize)
}

impl Shared {
    /// Takes a task of the current operation, if one is left.
    fn take(&self) -> Option<usize> {
        let (tasks, next) = tasks_and_next(self.state.load(Ordering::Acquire));
        if next >= tasks {
            return None;
        }
        // The operation may have changed since; the old value of this addition says what was really taken.
        // Each thread overshoots an operation at most once, so `next` stays far from its limit.
        let (tasks, next) = tasks_and_next(self.state.fetch_add(1, Ordering::AcqRel));
        (next < tasks).then_some(next)
    }

    /// Does one task that was taken.
    fn perform(&self, task: usize) {
        // SAFETY: a taken task keeps its operation alive and in place until it is reported done: `Team::run`
        // returns only then.
        let operation = unsafe { (*self.operation.get()).map(|operation| &*operation) };
        let result = catch_unwind(AssertUnwindSafe(|| operation.map(|operation| operation(task))));
        if let Err(payload) = result {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        }
        self.done.fetch_add(1, Ordering::Release);
    }

    fn work(&self) {
        let mut spins = 0;
        loop {
            if let Some(task) = self.take() {
                self.perform(task);
                spins = 0;
            } else if spins < SPIN_COUNT {
                std::hint::spin_loop();
                spins += 1;
            } else {
                self.sleep();
                spins = 0;
            }
            if self.quit.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Sleeps until there is a task or the end.
    fn sleep(&self) {
        let mut guard = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while self.is_idle() {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether there is neither a task nor the end.
    fn is_idle(&self) -> bool {
        let (tasks, next) = tasks_and_next(self.state.load(Ordering::Acquire));
        next >= tasks && !self.quit.load(Ordering::Acquire)
    }

    /// Wakes those who sleep, after something they wait for has changed.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) > 0 {
            drop(self.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }
}

/// Threads that work on one operation at a time, together with the one that owns the team.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Team {
    /// A team of `threads` threads, the caller's own included.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            operation: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            sleepers: Mutex::new(()),
            changed: Condvar::new(),
            quit: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut team = Self { shared, workers: Vec::new() };
        for number in 1..threads {
            let shared = Arc::clone(&team.shared);
            let name = format!("engine-{number}");
            team.workers.push(std::thread::Builder::new().name(name).spawn(move || shared.work())?);
        }
        Ok(team)
    }

    /// Threads, the owner's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `operation` with each number below `tasks`, on whichever thread is free, and returns when all
    /// are done.
    ///
    /// # Panics
    /// When a task panicked.
    pub(crate) fn run(&mut self, tasks: usize, operation: &(dyn Fn(usize) + Sync)) {
        assert!(tasks <= MAX_TASKS, "{tasks} tasks, at most {MAX_TASKS} are possible");
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(operation);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used between here and the end of the loop below,
        // which waits until every task that was taken is done; `operation` is borrowed longer than that.
        let erased: Operation = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                operation,
            )
        };
        // SAFETY: no task is open: the previous operation's are all done, and the exclusive borrow of the
        // team keeps another call out. Nobody reads the cell without a task.
        unsafe { *shared.operation.get() = Some(erased) };
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) >> 42).wrapping_add(1);
        shared.state.store(number << (2 * COUNT_BITS) | (tasks as u64) << COUNT_BITS, Ordering::Release);
        shared.wake();
        while let Some(task) = shared.take() {
            shared.perform(task);
        }
        let mut spins = 0;
        while shared.done.load(Ordering::Acquire) < tasks {
            spins += 1;
            if spins < SPIN_COUNT {
                std::hint::spin_loop();
            } else {
                // The thread with the last task was put aside: let it run.
                std::thread::yield_now();
            }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Splits `matrix`, rows of `stride` elements of which the first `columns` count, into blocks of the
    /// given size (smaller at the edges) and calls `task` once with each.
    pub(crate) fn blocks<T, F>(&mut self, matrix: MatrixMut<'_, T>, size: BlockSize, task: F)
    where
        T: Send,
        F: Fn(Block<'_, T>) + Sync,
    {
        let MatrixMut { data, rows, columns, stride } = matrix;
        assert!(columns <= stride && data.len() >= rows * stride, "a matrix is larger than its memory");
        let (down, across) = (rows.div_ceil(size.rows), columns.div_ceil(size.columns));
        let start = Pointer(data.as_mut_ptr());
        self.run(down * across, &move |number| {
            let start = &start;
            let (first_row, first_column) = (number % down * size.rows, number / down * size.columns);
            task(Block {
                // Stays inside `data`, as first_row < rows and first_column < columns.
                data: start.0.wrapping_add(first_row * stride + first_column),
                stride,
                first_row,
                rows: size.rows.min(rows - first_row),
                first_column,
                columns: size.columns.min(columns - first_column),
                matrix: std::marker::PhantomData,
            });
        });
    }

    /// Calls `task` with each of the `targets` and the part of `buffer` it names: a unit of `length`
    /// elements.
    pub(crate) fn units<T, F>(&mut self, buffer: &mut [T], length: usize, targets: &DistinctUnits, task: F)
    where
        T: Send,
        F: Fn(usize, &mut [T]) + Sync,
    {
        assert!(targets.bound * length <= buffer.len(), "a unit is outside the buffer");
        let start = Pointer(buffer.as_mut_ptr());
        self.run(targets.units.len(), &move |index| {
            let start = &start;
            let offset = targets.units[index] as usize * length;
            // SAFETY: units are below the bound, so the part lies inside the buffer; they are distinct, so no
            // two tasks have overlapping parts; the buffer is borrowed for the whole call.
            let unit = unsafe { std::slice::from_raw_parts_mut(start.0.add(offset), length) };
            task(index, unit);
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::Release);
        self.shared.wake();
        for worker in self.workers.drain(..) {
            // A worker catches what its tasks panic with, so that it ends normally.
            drop(worker.join());
        }
    }
}

/// An address that several threads may know.
struct Pointer<T>(*mut T);

// SAFETY: the address is used under the conditions stated where it is turned into a reference.
unsafe impl<T: Send> Send for Pointer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Pointer<T> {}

/// A row-major matrix to write.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a, T = f32> {
    pub(crate) data: &'a mut [T],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

/// Rows and columns of a task's block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSize {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// A task's part of a matrix.
#[derive(Debug)]
pub(crate) struct Block<'a, T = f32> {
    data: *mut T,
    stride: usize,
    first_row: usize,
    rows: usize,
    first_column: usize,
    columns: usize,
    matrix: std::marker::PhantomData<&'a mut [T]>,
}

impl<T> Block<'_, T> {
    /// Its rows in the matrix.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.first_row..self.first_row + self.rows
    }

    /// Its columns in the matrix.
    pub(crate) fn columns(&self) -> Range<usize> {
        self.first_column..self.first_column + self.columns
    }

    /// The block's part of its row `row`, counted from the block's first.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of a block of {}", self.rows);
        // SAFETY: `Team::blocks` made this block inside a matrix that is borrowed for `'_`, and no other
        // block has these rows and columns; the exclusive borrow of the block keeps a second slice of it
        // away.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride), self.columns) }
    }
}

/// Numbers of units, each once, below a bound.
#[derive(Debug, Default)]
pub(crate) struct DistinctUnits {
    units: Vec<u32>,
    bound: usize,
    /// The call of `set` in which a unit was last named.
    named: Vec<u64>,
    call: u64,
}

impl DistinctUnits {
    /// Replaces the units.
    ///
    /// # Panics
    /// When a unit is not below `bound`, or named twice.
    pub(crate) fn set(&mut self, units: impl IntoIterator<Item = u32>, bound: usize) {
        self.call += 1;
        self.bound = bound;
        self.named.resize(bound, 0);
        self.units.clear();
        for unit in units {
            let last = std::mem::replace(&mut self.named[unit as usize], self.call);
            assert!(last != self.call, "unit {unit} is named twice");
            self.units.push(unit);
        }
    }
}
