//! New connections: a task beside the others takes them from the kernel, until the stop does it itself.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use crate::census::Census;
use crate::conn::{Accepted, Registry};
use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::listener::{Listener, NotAccepted};
use crate::pulse::Pulse;
use crate::runtime::Executor;
use crate::server::Shared;
use crate::sys;

/// How long accepting pauses when there are no descriptors or no memory for a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// How often the listening sockets must be found quiet, one time after the other, before they are closed: a SYN that
/// has just passed, on another processor, is not to be seen for a moment.
const QUIET_LOOKS: u32 = 2;
/// How long it is from one look to the next.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How long handshakes that the kernel does not list are waited for: a round trip to anywhere, or to most places with
/// a segment lost.
const ROUND_TRIP: Duration = Duration::from_secs(1);
/// How long the task may take to let go of the sockets. Only a host that blocks its thread makes it take so long.
const RELEASE_GRACE: Duration = Duration::from_millis(100);

/// Has a connection driven.
pub(crate) type Serve = Box<dyn Fn(Accepted) + Send>;

/// What the task and the control thread share.
struct Entrance {
    listeners: Vec<Listener>,
    /// Whether an [`Acceptor`] may accept. It holds this while it takes a connection from the kernel and enters it into the
    /// registry: once the stop has closed the entrance, a connection is in one of the two.
    is_open: Mutex<bool>,
    shared: Arc<Shared>,
}

impl Entrance {
    fn is_open(&self) -> MutexGuard<'_, bool> {
        self.is_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection from the kernel's queue, and enters it into the registry.
    fn accept(&self, listener: &Listener) -> std::result::Result<Accepted, NotAccepted> {
        let (stream, peer, local) = listener.accept()?;
        Ok(Registry::accept(&self.shared, stream, peer, local))
    }

    /// As [`Entrance::accept`], unless it is closed.
    fn accept_if_open(&self, listener: &Listener) -> std::result::Result<Accepted, NotAccepted> {
        let is_open = self.is_open();
        if *is_open {
            self.accept(listener)
        } else {
            Err(NotAccepted::Empty)
        }
    }
}

/// Takes connections in, until the stop closes the entrance.
struct Acceptor<'a> {
    entrance: &'a Entrance,
    listeners: Vec<(&'a Listener, AsyncFd<BorrowedFd<'a>>)>,
    paused: Option<Pin<Box<Sleep>>>,
}

impl<'a> Acceptor<'a> {
    /// Needs the runtime on which it will run.
    fn new(entrance: &'a Entrance) -> Result<Self> {
        let watch = |listener: &'a Listener| Ok((listener, sys::watch(listener.as_fd())?));
        let watched = entrance.listeners.iter().map(watch);
        Ok(Self {
            entrance,
            listeners: watched
                .collect::<io::Result<_>>()
                .map_err(|error| Error::io("watching a listening socket", error))?,
            paused: None,
        })
    }

    /// Accepts until something fails for good.
    fn poll_accept(&mut self, cx: &mut Context<'_>, serve: &Serve) -> Poll<Error> {
        if let Some(pause) = &mut self.paused {
            ready!(pause.as_mut().poll(cx));
            self.paused = None;
        }
        let events = &self.entrance.shared.events;
        for (listener, watched) in &self.listeners {
            loop {
                let mut ready = match watched.poll_read_ready(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(ready)) => ready,
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Error::io("watching a listening socket", error));
                    }
                };
                match self.entrance.accept_if_open(listener) {
                    Ok(accepted) => serve(accepted),
                    Err(NotAccepted::Gone) => {}
                    Err(NotAccepted::Empty) => ready.clear_ready(),
                    Err(NotAccepted::Exhausted(error)) => {
                        events.sum("accept.error", 1.0);
                        events.log(LogLevel::Warning, format!("accepting pauses: {error}"));
                        let mut pause = Box::pin(sleep(PAUSE));
                        let _ = pause.as_mut().poll(cx);
                        self.paused = Some(pause);
                        return Poll::Pending;
                    }
                    Err(NotAccepted::Failed(error)) => {
                        return Poll::Ready(Error::io("accepting a connection", error));
                    }
                }
            }
        }
        Poll::Pending
    }
}

/// The control thread's side.
pub(crate) struct Accepting {
    entrance: Arc<Entrance>,
    serve: Serve,
    pulse: Option<Arc<Pulse>>,
    /// At most the one, which ends with this.
    task: JoinSet<Error>,
}

impl Accepting {
    /// Starts the task. `serve` makes what has a connection driven: for the task, and for here.
    pub(crate) fn start(
        listeners: Vec<Listener>,
        shared: &Arc<Shared>,
        executor: &Executor,
        serve: &dyn Fn() -> Serve,
    ) -> Self {
        let entrance = Arc::new(Entrance {
            listeners,
            is_open: Mutex::new(true),
            shared: Arc::clone(shared),
        });
        let worker = executor.for_accepting();
        let pulse = worker.pulse().cloned();
        let mut task = JoinSet::new();
        worker.spawn_into(
            &mut task,
            run(Arc::clone(&entrance), serve(), pulse.clone()),
        );
        Self {
            entrance,
            serve: serve(),
            pulse,
            task,
        }
    }

    /// Waits until accepting fails for good. While the host blocks the thread of the task, it accepts here.
    pub(crate) async fn failed(&mut self) -> Error {
        tokio::select! {
            biased;
            ended = self.task.join_next() => match ended {
                Some(Ok(error)) => error,
                Some(Err(error)) if error.is_panic() => Error::Panicked,
                _ => {
                    let gone = io::Error::other("its runtime has been shut down");
                    Error::io("accepting connections", gone)
                }
            },
            error = stand_in(&self.entrance, &self.serve, self.pulse.as_deref()) => error,
        }
    }

    /// Those that listen, and that nobody else accepts from: what waits in a shared one is for whoever does.
    fn owned(&self) -> impl Iterator<Item = &Listener> {
        let all = self.entrance.listeners.iter();
        all.filter(|listener| !listener.is_shared() && listener.listens())
    }

    /// Takes over who is connected from its own point of view, and lets nobody else in: refuses new handshakes, and
    /// accepts until no old one is left. Where descriptors are short, it waits for connections to end.
    pub(crate) async fn quiesce(&mut self, mut census: Census) {
        *self.entrance.is_open() = false;
        self.task.abort_all();
        let warn = |why| self.entrance.shared.events.log(LogLevel::Warning, why);
        // All of them first: in a group of sockets on one port, each is sent some of the clients.
        for listener in self.owned() {
            if let Err(error) = listener.refuse_new() {
                let addr = listener.local_addr();
                warn(format!(
                    "{addr}: a handshake that begins now may be lost: {error}"
                ));
            }
        }
        let began = Instant::now();
        let mut counted = true;
        let mut quiet = 0;
        while self.owned().next().is_some() {
            let looked = Instant::now();
            let emptied = self.try_empty();
            // Before the queues are looked at: whoever is through with the handshake meanwhile waits in one of them.
            let half_open = census.any_half_open(self.owned()).unwrap_or_else(|error| {
                if std::mem::take(&mut counted) {
                    warn(format!("half-open handshakes cannot be counted: {error}"));
                }
                false
            });
            let pending = half_open || self.owned().any(|listener| listener.queued() > 0);
            quiet = if pending { 0 } else { quiet + 1 };
            let all_seen = || counted && !census.any_cookies();
            if quiet >= QUIET_LOOKS && (began.elapsed() >= ROUND_TRIP || all_seen()) {
                return;
            }
            let pause = if emptied {
                // A look takes as long as the machine has sockets: half of our time is enough.
                LOOK_INTERVAL.max(looked.elapsed())
            } else {
                PAUSE
            };
            sleep(pause).await;
        }
    }

    /// Accepts until the queues are empty. False if descriptors are short.
    fn try_empty(&self) -> bool {
        self.owned().all(|listener| {
            loop {
                // Not by way of tokio, whose budget may call a full queue empty.
                match self.entrance.accept(listener) {
                    Ok(accepted) => (self.serve)(accepted),
                    Err(NotAccepted::Gone) => {}
                    Err(NotAccepted::Exhausted(_)) => return false,
                    Err(NotAccepted::Empty | NotAccepted::Failed(_)) => return true,
                }
            }
        })
    }

    /// Waits until the task has let go of the sockets, if it may: it has them in an epoll set, where they would stay if
    /// another process had a copy.
    pub(crate) async fn released(&mut self) {
        let _ = timeout(RELEASE_GRACE, self.task.join_next()).await;
    }

    /// Closes the sockets, and counts the connections that are lost by it. Returns the first error.
    pub(crate) fn close(self) -> Option<Error> {
        let emptied = self.try_empty();
        for listener in &self.entrance.listeners {
            if !listener.is_shared() {
                // Handshakes that are not done by now are no connections yet, from our point of view.
                let waiting = if emptied { 0 } else { listener.queued() };
                self.entrance.shared.unaccepted.add(waiting.into());
            }
        }
        let error = match Arc::try_unwrap(self.entrance) {
            Ok(entrance) => {
                let closed = entrance.listeners.into_iter().map(Listener::close);
                closed.filter_map(io::Result::err).reduce(|first, _| first)
            }
            Err(entrance) => {
                let shut = entrance.listeners.iter().map(Listener::shut);
                let error = shut.filter_map(io::Result::err).reduce(|first, _| first);
                // The task closes them, when the host lets its thread go; but not by a number that is no longer ours.
                if error.is_some() {
                    let _ = Arc::into_raw(entrance);
                }
                error
            }
        }?;
        Some(Error::io("closing a listening socket", error))
    }
}

/// The task: accepts until something fails for good. That it gets to this shows in the pulse.
async fn run(entrance: Arc<Entrance>, serve: Serve, pulse: Option<Arc<Pulse>>) -> Error {
    let mut acceptor = match Acceptor::new(&entrance) {
        Ok(acceptor) => acceptor,
        Err(error) => return error,
    };
    poll_fn(move |cx| {
        if let Some(pulse) = &pulse {
            pulse.goes_on();
        }
        acceptor.poll_accept(cx, &serve)
    })
    .await
}

/// Accepts whenever the thread with that pulse is stuck.
async fn stand_in(entrance: &Entrance, serve: &Serve, pulse: Option<&Pulse>) -> Error {
    let Some(pulse) = pulse else {
        return std::future::pending().await;
    };
    loop {
        let beat = pulse.gets_stuck().await;
        let Ok(mut acceptor) = Acceptor::new(entrance) else {
            pulse.gets_on(beat).await;
            continue;
        };
        tokio::select! {
            () = pulse.gets_on(beat) => {}
            error = poll_fn(|cx| acceptor.poll_accept(cx, serve)) => return error,
        }
    }
}
