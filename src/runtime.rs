//! The server's threads: how they are made, whose they are, and what runs on them.

use std::cell::Cell;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::home::Home;
use crate::pulse::Pulse;
use crate::sys;

/// What C programs get from `pthread_create` on Linux: handlers run on our threads and may expect as much.
const STACK_SIZE: usize = 8 << 20;

/// What a thread of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Drives connections: must not wait for what connections do.
    Io,
    /// Everything else.
    Other,
}

thread_local! {
    static OWNER: Cell<Option<(u64, Role)>> = const { Cell::new(None) };
}

/// Whether the calling thread is one of that server's.
pub(crate) fn on_thread_of(server: u64) -> bool {
    OWNER.get().is_some_and(|(owner, _)| owner == server)
}

/// Whether the calling thread drives connections, of any server.
pub(crate) fn on_io_thread() -> bool {
    OWNER.get().is_some_and(|(_, role)| role == Role::Io)
}

/// A thread of a server.
#[derive(Debug)]
pub(crate) struct Thread {
    handle: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl Thread {
    pub(crate) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits until it has ended; at the deadline it is left to itself.
    pub(crate) fn join(self, deadline: Instant) {
        if block_on(self.ended, Some(deadline)).is_some() {
            let _ = self.handle.join();
        }
    }
}

/// Starts a thread of a server: named, with all signals blocked but faults.
pub(crate) fn spawn_thread(
    name: &str,
    server: u64,
    role: Role,
    body: impl FnOnce() + Send + 'static,
) -> Result<Thread> {
    let (running, ended) = oneshot::channel();
    let builder = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_SIZE);
    sys::with_signals_blocked(|| {
        builder.spawn(move || {
            OWNER.set(Some((server, role)));
            body();
            drop::<oneshot::Sender<()>>(running);
        })
    })
    .map(|handle| Thread { handle, ended })
    .map_err(|error| Error::io(format!("starting thread {name}"), error))
}

/// A runtime that runs on the thread that calls its `block_on`.
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

/// Waits on the calling thread until `future` is ready, or the deadline has passed.
///
/// Works anywhere: the future may be tied to no runtime's timers or sockets (channels are not).
pub(crate) fn block_on<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Some(output);
        }
        match deadline {
            None => thread::park(),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left == Duration::ZERO {
                    return None;
                }
                thread::park_timeout(left);
            }
        }
    }
}

/// So long from now.
pub(crate) fn deadline(patience: Duration) -> Instant {
    // For ever is a year: an Instant cannot say more on every system.
    let now = Instant::now();
    now.checked_add(patience)
        .unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}

/// Where connections run. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) enum Executor {
    /// On threads of our own, each with a runtime of its own.
    Own(Arc<[IoThread]>),
    /// On a runtime of the host's.
    Host(Handle),
}

#[derive(Debug)]
pub(crate) struct IoThread {
    runtime: Handle,
    home: Arc<Home>,
    pulse: Arc<Pulse>,
    /// Connections that it drives.
    load: Arc<AtomicUsize>,
}

impl Executor {
    /// Where connections are accepted: on the first thread.
    pub(crate) fn for_accepting(&self) -> &Handle {
        match self {
            Self::Own(threads) => &threads[0].runtime,
            Self::Host(runtime) => runtime,
        }
    }

    /// Of the thread that accepts, if there are others.
    pub(crate) fn pulse(&self) -> Option<Arc<Pulse>> {
        match self {
            Self::Own(threads) if threads.len() > 1 => Some(Arc::clone(&threads[0].pulse)),
            _ => None,
        }
    }

    /// Runs a connection, on the thread that has the fewest; if its requests are handed over to other threads, at home
    /// there.
    pub(crate) fn spawn(
        &self,
        connection: impl Future<Output = ()> + Send + 'static,
        hands_over: bool,
    ) {
        match self {
            Self::Host(runtime) => drop(runtime.spawn(connection)),
            Self::Own(threads) => {
                let least = threads.iter().min_by_key(|thread| {
                    (thread.pulse.is_stuck(), thread.load.load(Ordering::Relaxed))
                });
                if let Some(thread) = least {
                    let load = Load::add(&thread.load);
                    let connection = Loading { connection, load };
                    if hands_over {
                        let home = Arc::clone(&thread.home);
                        thread.runtime.spawn(home.house(connection));
                    } else {
                        thread.runtime.spawn(connection);
                    }
                }
            }
        }
    }
}

/// The threads of an executor, for whoever ends them.
#[derive(Debug)]
pub(crate) struct IoThreads(Vec<(oneshot::Sender<()>, Thread)>);

impl IoThreads {
    /// None: the executor is a runtime of the host's.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    /// Starts `count` threads; by default one for each processor that this process may use.
    pub(crate) fn start(server: u64, count: Option<NonZeroUsize>) -> Result<(Self, Executor)> {
        let count = count
            .or_else(|| thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get);
        let (handles, threads) = (0..count)
            .map(|index| IoThread::start(server, index))
            .collect::<Result<(Vec<_>, Vec<_>)>>()?;
        Ok((Self(handles), Executor::Own(threads.into())))
    }

    /// Ends them; those that a handler still holds at the deadline are left to themselves.
    pub(crate) fn stop(self, deadline: Instant) {
        let threads: Vec<_> = self
            .0
            .into_iter()
            .map(|(stop, thread)| {
                let _ = stop.send(());
                thread
            })
            .collect();
        for thread in threads {
            thread.join(deadline);
        }
    }
}

impl IoThread {
    fn start(server: u64, index: usize) -> Result<((oneshot::Sender<()>, Thread), Self)> {
        let home = Arc::new(Home::default());
        let pulse = Arc::new(Pulse::default());
        let runtime = {
            let (before, after) = (Arc::clone(&home), Arc::clone(&home));
            let (sleeps, wakes) = (Arc::clone(&pulse), Arc::clone(&pulse));
            build(
                runtime_builder()
                    .on_thread_park(move || {
                        before.before_sleep();
                        sleeps.falls_asleep();
                    })
                    .on_thread_unpark(move || {
                        wakes.wakes();
                        after.after_sleep();
                    }),
            )?
        };
        let here = Arc::clone(&home);
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = spawn_thread(&format!("httpdown-{index}"), server, Role::Io, move || {
            runtime.block_on(here.live(stopped));
            // Here, on a thread of its own and outside of it, which is the only safe place to drop a runtime; and
            // without waiting for what a service may have given to spawn_blocking.
            runtime.shutdown_background();
        })?;
        let this = Self {
            runtime: handle,
            home,
            pulse,
            load: Arc::default(),
        };
        Ok(((stop, thread), this))
    }
}

pin_project! {
    // A connection, and the load that it is. As an async block it would keep the connection twice: where it was caught,
    // and where it is awaited.
    struct Loading<F> {
        #[pin]
        connection: F,
        load: Load,
    }
}

impl<F: Future> Future for Loading<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().connection.poll(cx)
    }
}

struct Load(Arc<AtomicUsize>);

impl Load {
    fn add(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
