//! The server's threads: how they are made, who owns them, and what runs on them.

mod helper;
mod lent;
mod readers;
pub(crate) mod turns;
mod watchdog;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use crate::contain::contain;
use crate::error::{Error, Result};
use crate::process::Ours;
use crate::sys::{self, SignalMask};

pub(crate) use helper::Helper;
pub(crate) use lent::LentRuntime;
pub(crate) use readers::Readers;
use turns::Turns;
use watchdog::Watchdog;

/// The stack size that C programs get from `pthread_create` on Linux, in bytes. Handlers run on our threads and may
/// expect as much.
const STACK_SIZE: usize = 8 << 20;

/// How long a runtime may take to show that it has been shut down.
const GONE_GRACE: Duration = Duration::from_millis(100);

/// How often there is a look at all connections while a thread does not get on. It costs something for each of them.
const LOOK: Duration = Duration::from_millis(500);

/// How long our threads, and the host's code on them, may take to end, however short the kill timeout is. They mostly
/// need some milliseconds; on a busy machine, they need more.
pub(crate) const END_GRACE: Duration = Duration::from_secs(1);

/// What a thread of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The thread drives connections. It must not wait for what connections do.
    Io,
    /// Everything else.
    Other,
}

thread_local! {
    static OWNER: Cell<Option<(u64, Role)>> = const { Cell::new(None) };
}

/// Whether the calling thread is one of this server's threads.
pub(crate) fn on_thread_of(server: u64) -> bool {
    OWNER.get().is_some_and(|(owner, _)| owner == server)
}

/// Whether the calling thread drives connections, of any server.
pub(crate) fn on_io_thread() -> bool {
    OWNER.get().is_some_and(|(_, role)| role == Role::Io)
}

/// Drives a connection. Meanwhile the calling thread counts as the server's, even if it is a thread of the host's
/// runtime. So what the host does there, in a handler in place, a service, a body, must not wait for the server.
pub(crate) fn driving<T>(server: u64, drive: impl FnOnce() -> T) -> T {
    /// Puts back the old value, even if the host's code panics.
    struct Before(Option<(u64, Role)>);
    impl Drop for Before {
        fn drop(&mut self) {
            OWNER.set(self.0);
        }
    }
    let _before = Before(OWNER.replace(Some((server, Role::Io))));
    drive()
}

/// A thread of a server.
#[derive(Debug)]
pub(crate) struct Thread {
    handle: JoinHandle<()>,
    /// A second count, next to the thread's own. So a server counts as ours until somebody has joined its threads, and
    /// not until the threads happen to end, which nobody could know.
    ours: Ours,
}

impl Thread {
    pub(crate) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits until the thread has ended; at the deadline, the thread is left to itself. Returns whether it has ended.
    #[must_use]
    pub(crate) fn join(self, deadline: Instant) -> bool {
        let ended = sys::join_until(self.handle, deadline);
        drop(self.ours);
        ended
    }
}

/// Waits until all threads have ended, like [`Thread::join`].
#[must_use]
pub(crate) fn join_all(threads: Vec<Thread>, deadline: Instant) -> bool {
    let mut all = true;
    for thread in threads {
        all &= thread.join(deadline);
    }
    all
}

/// Starts a thread of a server, with a name. `runs_hosts_code`: if the thread runs the host's code, the signals that it
/// blocks, which children that are made there inherit. Other threads block all signals except faults.
pub(crate) fn spawn_thread(
    name: &str,
    server: u64,
    role: Role,
    runs_hosts_code: Option<SignalMask>,
    body: impl FnOnce() + Send + 'static,
) -> Result<Thread> {
    let failed = |error| Error::io(format!("starting thread {name}"), error);
    let builder = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_SIZE);
    let ours = Ours::count().map_err(failed)?;
    let its = Ours::count().map_err(failed)?;
    let spawned = sys::with_signals_blocked(|| {
        builder.spawn(move || {
            // Kept to the end: only the host's thread-local destructors run after it.
            let _its = its;
            sys::never_cancel();
            OWNER.set(Some((server, role)));
            if let Some(mask) = runs_hosts_code {
                mask.set();
            }
            // std drops what a thread returns or panics with, and aborts if that panics.
            contain(body);
        })
    });
    spawned
        .map(|handle| Thread { handle, ours })
        .map_err(failed)
}

/// Makes a runtime that runs on the thread that calls its `block_on`.
pub(crate) fn new_runtime() -> Result<Runtime> {
    build(&mut runtime_builder())
}

fn runtime_builder() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_io().enable_time();
    builder
}

fn build(builder: &mut tokio::runtime::Builder) -> Result<Runtime> {
    builder
        .build()
        .map_err(|error| Error::io("making a runtime", error))
}

/// How a thread waits, and how it is woken. Not `thread::park`: that needs a thread-local, which may be gone where a
/// program stops a server at its exit, or when a thread ends.
#[derive(Default)]
struct Parker {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Parker {
    /// Waits until the thread is woken, if it has not been woken since the last time. Returns false at the deadline.
    fn park(&self, deadline: Option<Instant>) -> bool {
        let mut woken = self.lock();
        while !*woken {
            woken = match deadline {
                None => self.changed.wait(woken),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    let waited = self.changed.wait_timeout(woken, left);
                    waited
                        .map(|(woken, _)| woken)
                        .map_err(|poisoned| PoisonError::new(poisoned.into_inner().0))
                }
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
        *woken = false;
        true
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        *self.lock() = true;
        self.changed.notify_one();
    }
}

/// Waits on the calling thread until `future` is ready, or the deadline has passed.
///
/// Works anywhere. But the future must not need a runtime's timers or sockets (channels need none).
pub(crate) fn block_on<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    let parker = Arc::<Parker>::default();
    let waker = Waker::from(Arc::clone(&parker));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Some(output);
        }
        if !parker.park(deadline) {
            return None;
        }
    }
}

/// Takes the place of a thread that waits for a client.
pub(crate) trait StandIn {
    /// This thread waits from now on.
    fn steps_aside(&self);

    /// This thread goes on.
    fn comes_back(&self);
}

thread_local! {
    static STAND_IN: RefCell<Option<Rc<dyn StandIn>>> = const { RefCell::new(None) };
}

/// From now on, `stand_in` is told when this thread waits for a client.
pub(crate) fn set_stand_in(stand_in: Rc<dyn StandIn>) {
    STAND_IN.set(Some(stand_in));
}

/// Like [`block_on`], for what a client has to do. Meanwhile another thread may do the work of this one.
pub(crate) fn stalled<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    /// Comes back, even if the future panics.
    struct Aside(Rc<dyn StandIn>);
    impl Drop for Aside {
        fn drop(&mut self) {
            self.0.comes_back();
        }
    }
    let mut future = pin!(future);
    let looked = block_on(future.as_mut(), Some(Instant::now()));
    if looked.is_some() || deadline.is_some_and(|at| at <= Instant::now()) {
        return looked;
    }
    // A thread that ends has no locals any more, and works for nobody.
    let stand_in = STAND_IN.try_with(|stand_in| stand_in.borrow().clone());
    let _aside = stand_in.ok().flatten().map(|stand_in| {
        stand_in.steps_aside();
        Aside(stand_in)
    });
    block_on(future, deadline)
}

/// Runs `f` on its own thread, because tokio needs thread-locals to make a runtime. They may be gone on a thread that
/// ends; and on the main thread of a C program, what they keep looks like a leak.
pub(crate) fn elsewhere<T: Send + 'static>(
    f: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let builder = thread::Builder::new().stack_size(STACK_SIZE);
    let spawned = sys::with_signals_blocked(|| builder.spawn(f));
    let joined = spawned
        .map_err(|error| Error::io("starting a thread", error))?
        .join();
    joined.unwrap_or(Err(Error::Panicked))
}

/// Runs `f` on a thread of its own that nobody joins, because `f` may hang. The answer never comes if `f` panics.
pub(crate) fn apart<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>> {
    let (answer, answered) = oneshot::channel();
    let builder = thread::Builder::new().name(name.to_owned());
    let body = move || {
        sys::never_cancel();
        contain(|| drop(answer.send(f())));
    };
    sys::with_signals_blocked(|| builder.spawn(body))
        .map_err(|error| Error::io(format!("starting thread {name}"), error))?;
    Ok(answered)
}

/// The moment that is `patience` from now.
pub(crate) fn deadline(patience: Duration) -> Instant {
    // "For ever" is a year: an Instant cannot hold more on every system.
    let now = Instant::now();
    now.checked_add(patience)
        .unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}

/// Where a connection runs.
pub(crate) trait Spawn: Send + Sync + 'static {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
}

/// A thread that drives connections, or the host's runtime. Each connection holds a reference to its worker, until it
/// is closed or upgraded. The number of references is the worker's load.
#[derive(Debug)]
pub(crate) struct Worker {
    runtime: Handle,
    /// Present if requests are handed over to other threads.
    turns: Option<Arc<Turns>>,
    /// Present if there are other workers.
    watchdog: Option<Arc<Watchdog>>,
}

impl Worker {
    /// Notes when the worker's thread does not get on, and when it gets on again, and notifies `changed` each time.
    /// Meanwhile `looks` is called now and then: what waits for time on that thread waits in vain. Ends only if there is
    /// nothing to watch.
    pub(crate) async fn watch(self: Arc<Self>, changed: Arc<Notify>, looks: impl Fn()) {
        let Some(watchdog) = &self.watchdog else {
            return;
        };
        loop {
            let beat = watchdog
                .gets_stuck(|| {
                    let watchdog = Arc::clone(watchdog);
                    drop(self.runtime.spawn(async move { watchdog.goes_on() }));
                })
                .await;
            changed.notify_one();
            let look = async {
                loop {
                    sleep(LOOK).await;
                    looks();
                }
            };
            tokio::select! {
                () = watchdog.gets_on(beat) => {}
                () = look => {}
            }
            changed.notify_one();
        }
    }

    /// Whether the runtime has been shut down: then it drops every task that it is given, at once. A runtime that
    /// neither runs nor drops a task is blocked by the host, or not driven.
    async fn is_gone(&self) -> bool {
        let ran = timeout(GONE_GRACE, self.runtime.spawn(async {}));
        ran.await.is_ok_and(|ran| ran.is_err())
    }

    /// Like [`Spawn::spawn`], for callers that want to know when the task ends, or to end it.
    pub(crate) fn spawn_into<T: Send + 'static>(
        &self,
        tasks: &mut JoinSet<T>,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        match &self.turns {
            Some(turns) => tasks.spawn_on(Arc::clone(turns).gather(task), &self.runtime),
            None => tasks.spawn_on(task, &self.runtime),
        };
    }

    /// Whether the worker's thread was found not to get on.
    pub(crate) fn is_stuck(&self) -> bool {
        self.watchdog
            .as_ref()
            .is_some_and(|watchdog| watchdog.is_stuck())
    }
}

impl Spawn for Worker {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.turns {
            Some(turns) => drop(self.runtime.spawn(Arc::clone(turns).gather(task))),
            None => drop(self.runtime.spawn(task)),
        }
    }
}

/// Where connections run: one worker or more. All clones share the workers.
#[derive(Clone, Debug)]
pub(crate) struct Executor {
    workers: Arc<[Arc<Worker>]>,
    is_hosts: bool,
}

impl Executor {
    /// An executor on the host's runtime.
    pub(crate) fn on(lent: Arc<LentRuntime>) -> Self {
        let worker = Worker {
            runtime: lent.handle().clone(),
            turns: None,
            watchdog: None,
        };
        // This task shows as soon as possible on which threads the runtime runs.
        drop(worker.runtime.spawn(async move { lent.seen() }));
        Self {
            workers: [Arc::new(worker)].into(),
            is_hosts: true,
        }
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.workers.iter()
    }

    /// Whether the connections ran on the host's runtime, and it has been shut down.
    pub(crate) async fn is_gone(&self) -> bool {
        // Our own threads end after the last connection.
        self.is_hosts && self.workers[0].is_gone().await
    }

    /// The worker that accepts connections, and its number: the first one whose thread gets on.
    pub(crate) fn for_accepting(&self) -> (usize, &Arc<Worker>) {
        let mut numbered = self.workers().enumerate();
        let gets_on = numbered.find(|(_, worker)| !worker.is_stuck());
        gets_on.unwrap_or((0, &self.workers[0]))
    }

    /// The worker for a new connection: of those whose threads get on, the one with the fewest connections.
    pub(crate) fn worker(&self) -> Arc<Worker> {
        let load = |worker: &&Arc<Worker>| (worker.is_stuck(), Arc::strong_count(worker));
        let least = self.workers().min_by_key(load);
        Arc::clone(least.unwrap_or(&self.workers[0]))
    }
}

/// The I/O threads, for the code that ends them. There are none if connections run on the host's runtime.
#[derive(Debug, Default)]
pub(crate) struct IoThreads {
    threads: Vec<IoThread>,
    /// The number of tasks that the threads' runtimes still had at the end.
    left: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct IoThread {
    stop: oneshot::Sender<()>,
    thread: Thread,
}

impl IoThreads {
    /// Starts `count` threads, each with its own runtime; by default one for each processor that this process may use.
    /// `hands_over`: the threads hand requests over to other threads. `mask`: the signal mask for the threads if they
    /// do not, and run the host's code.
    pub(crate) fn start(
        server: u64,
        count: Option<NonZeroUsize>,
        hands_over: bool,
        mask: SignalMask,
    ) -> Result<(Self, Executor)> {
        let count = count
            .or_else(|| thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get);
        let mut threads = Self::default();
        let mut workers = Vec::new();
        for index in 0..count {
            let turns = hands_over.then(Arc::default);
            let watchdog = (count > 1).then(Arc::default);
            let mask = (!hands_over).then_some(mask);
            let left = Arc::clone(&threads.left);
            let (thread, worker) = IoThread::start(server, index, mask, turns, watchdog, left)?;
            threads.threads.push(thread);
            workers.push(worker);
        }
        let executor = Executor {
            workers: workers.into(),
            is_hosts: false,
        };
        Ok((threads, executor))
    }

    /// Ends the threads. A thread that a handler still holds at the deadline is left to itself. Returns whether all
    /// have ended, and how many tasks were left on those that have.
    #[must_use]
    pub(crate) fn stop(mut self, deadline: Instant) -> (bool, usize) {
        let left = Arc::clone(&self.left);
        (self.end(deadline), left.load(Ordering::Acquire))
    }

    fn end(&mut self, deadline: Instant) -> bool {
        let threads = self
            .threads
            .drain(..)
            .map(|thread| {
                let _ = thread.stop.send(());
                thread.thread
            })
            .collect();
        join_all(threads, deadline)
    }
}

/// If the threads have not been stopped, their server could not be started. Nothing runs on them, and they end at once.
impl Drop for IoThreads {
    fn drop(&mut self) {
        let _ = self.end(deadline(END_GRACE));
    }
}

impl IoThread {
    fn start(
        server: u64,
        index: usize,
        mask: Option<SignalMask>,
        turns: Option<Arc<Turns>>,
        watchdog: Option<Arc<Watchdog>>,
        left: Arc<AtomicUsize>,
    ) -> Result<(Self, Arc<Worker>)> {
        let mut builder = runtime_builder();
        if turns.is_some() || watchdog.is_some() {
            let (turns_before, watchdog_before) = (turns.clone(), watchdog.clone());
            builder.on_thread_park(move || {
                if let Some(turns) = &turns_before {
                    turns.before_sleep();
                }
                if let Some(watchdog) = &watchdog_before {
                    watchdog.falls_asleep();
                }
            });
            let (turns_after, watchdog_after) = (turns.clone(), watchdog.clone());
            builder.on_thread_unpark(move || {
                if let Some(watchdog) = &watchdog_after {
                    watchdog.wakes();
                }
                if let Some(turns) = &turns_after {
                    turns.after_sleep();
                }
            });
        }
        let runtime = build(&mut builder)?;
        let worker = Worker {
            runtime: runtime.handle().clone(),
            turns: turns.clone(),
            watchdog,
        };
        let (stop, stopped) = oneshot::channel();
        let name = format!("httpdown-{index}");
        let thread = spawn_thread(&name, server, Role::Io, mask, move || {
            match turns {
                Some(turns) => runtime.block_on(turns.live(stopped)),
                None => runtime.block_on(async {
                    let _ = stopped.await;
                    // Tasks that are ready to end do so now.
                    yield_now().await;
                }),
            }
            left.fetch_add(runtime.metrics().num_alive_tasks(), Ordering::Release);
            // The runtime is dropped here, on its own thread and outside of itself, which is the only safe place to
            // drop a runtime. This does not wait for what a service may have given to spawn_blocking.
            runtime.shutdown_background();
        })?;
        Ok((Self { stop, thread }, Arc::new(worker)))
    }
}
