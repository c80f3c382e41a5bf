//! New connections. A task next to the others takes them from the kernel, until the stop lets the helper do it.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use crate::addr::Addr;
use crate::conn::{Accepted, Conn};
use crate::error::{Error, Result};
use crate::events::LogLevel;
use crate::holdings;
use crate::limits::Limit;
use crate::net::census::{self, Census, Spot, View};
use crate::net::group::{self, Leaving};
use crate::net::{Connected, Listener, NotAccepted, tcp};
use crate::shared::Shared;
use crate::sys;
use crate::threads::Executor;

use super::door::{Door, Quiet};

/// How long accepting pauses when there are no descriptors or no memory for a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// The time from one look to the next.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How long to wait for handshakes that the kernel does not list: a round trip to anywhere, or a round trip to most
/// places with one lost segment.
const ROUND_TRIP: Duration = Duration::from_secs(1);
/// How long the task may take to let go of the sockets, and the helper to close them. They take so long only if the
/// host blocks their threads.
const RELEASE_GRACE: Duration = Duration::from_millis(100);
/// How many connections are taken from one socket before the next socket has its turn, and before the time limit is
/// checked. A batch takes about 100 us.
const BATCH: usize = 32;
/// At the end, as many batches are taken as a queue can hold, and one more. (4,096 is the backlog that we ask for.)
const LAST_BATCHES: usize = 4096 / BATCH + 1;

/// Starts to drive a connection.
pub(crate) type Serve = Arc<dyn Fn(Accepted) + Send + Sync>;

/// What the task and the stop share.
pub(super) struct Entrance {
    listeners: Vec<Listener>,
    door: Door,
    serve: Serve,
    shared: Arc<Shared>,
    /// Clients wait for the end of other connections, and that was said.
    is_paused: AtomicBool,
    /// Raised when there is no more time for [`Entrance::quiesce`].
    time_over: Flag,
    /// The state of leaving each group in which others stay, from the quiescing until the sockets are closed.
    leaving: Mutex<BTreeMap<Spot, Leaving>>,
}

impl Entrance {
    pub(super) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Serves a connection.
    pub(super) fn serve(&self, connected: Connected) {
        (self.serve)(self.enter(connected));
    }

    fn enter(&self, connected: Connected) -> Accepted {
        Conn::accept(&self.shared, connected)
    }

    /// Takes a connection from the kernel's queue, and enters it into the registry, unless the door is closed.
    fn accept_if_open(&self, listener: &Listener) -> std::result::Result<Accepted, NotAccepted> {
        let accept = || {
            let _expected = holdings::expect();
            Ok(self.enter(listener.accept()?))
        };
        let accepted = self.door.pass(accept);
        accepted.unwrap_or(Err(NotAccepted::Empty))
    }

    /// Whether there are as many connections as there may be.
    fn is_full(&self) -> bool {
        let most = self.shared.options.max_conns;
        most.is_some_and(|most| self.shared.limits.conns.is_full(most.get()))
    }

    /// Waits until a connection ends, while there are as many as there may be, and says so once.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(most) = self.shared.options.max_conns else {
            return Poll::Ready(());
        };
        let polled = self.shared.limits.conns.poll_room(most.get(), cx);
        if !self.is_paused.swap(polled.is_pending(), Ordering::Relaxed) && polled.is_pending() {
            let why = format_args!("{most} connections are open");
            self.shared.limit_bites(Limit::Conns, &why);
        }
        polled
    }

    /// The sockets that listen, and from which nobody else accepts. Clients that wait in a shared socket are left to
    /// the others that accept from it.
    fn owned(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(|listener| is_owned(listener))
    }

    /// Takes over the clients that are connected from their own point of view, and lets no others in: refuses new
    /// handshakes, and accepts until no old handshake is left, or until the timeout. If descriptors are short, it waits
    /// for connections to end, as long as the stop itself waits.
    fn quiesce(&self, census: &Census) {
        self.door.close();
        self.shut_where_none_is_lost();
        let began = Instant::now();
        let mut counted = true;
        let mut leaving = BTreeMap::new();
        let mut quiet = Quiet::default();
        while self.owned().next().is_some() && !self.time_over.is_up() {
            let looked = Instant::now();
            let left = self.empty();
            // Measured in real time, like the kernel's retransmissions.
            if left != Left::Exhausted && began.elapsed() >= self.shared.options.quiesce_timeout {
                break;
            }
            let in_handshake = || match census.look(self.owned_tcp()) {
                Ok(view) => self.keep_new_out(Some(&view)) | self.leave_groups(&view, &mut leaving),
                Err(error) => {
                    if std::mem::take(&mut counted) {
                        self.warn(format!("half-open handshakes cannot be counted: {error}"));
                    }
                    self.keep_new_out(None)
                }
            };
            let waits = || {
                let listeners = self.owned().filter(|listener| !is_grouped(listener));
                listeners.map(Listener::queued).any(|count| count > 0)
            };
            quiet.look(in_handshake, waits);
            let all_seen = || self.alone().next().is_none() || (counted && !census.any_cookies());
            if quiet.is_certain() && (began.elapsed() >= ROUND_TRIP || all_seen()) {
                break;
            }
            // The more sockets the machine has, the longer a look takes. Half of our time is enough for looking.
            self.time_over.wait(match left {
                Left::Nothing => LOOK_INTERVAL.max(looked.elapsed()),
                Left::More => Duration::ZERO,
                Left::Refused | Left::Exhausted => PAUSE,
            });
        }
        *self.leaving() = leaving;
    }

    /// Refuses new clients of Unix sockets. They have no handshake that may be under way.
    fn shut_where_none_is_lost(&self) {
        for listener in self.owned() {
            if let Some(unix) = listener.as_unix()
                && let Err(error) = unix.refuse_new()
            {
                self.may_lose(listener.local_addr(), "a client that connects now", &error);
            }
        }
    }

    fn may_lose(&self, addr: &Addr, who: &str, error: &io::Error) {
        self.warn(format!("{addr}: {who} may be lost: {error}"));
    }

    /// Makes sockets refuse new handshakes, except those in a group with others: their clients would not be heard (ADR
    /// 0015). If it is not known who is in a group, all refuse: a handshake that is repeated is better than one that is
    /// lost. Returns whether a handshake has begun at a socket that refuses.
    fn keep_new_out(&self, view: Option<&View>) -> bool {
        // All sockets refuse before any is looked at: in a group of sockets on one port, each is sent some of the
        // clients.
        for listener in self.owned_tcp() {
            let group = view.and_then(|view| view.group_of(listener));
            if let Err(error) = listener.found_grouped(group.is_some()) {
                let addr = listener.addr().into();
                self.may_lose(&addr, "a handshake that begins now", &error);
            }
        }
        view.is_some_and(|view| {
            self.alone()
                .any(|listener| view.half_open(listener).next().is_some())
        })
    }

    /// Continues to leave the groups in which others stay. Returns whether that needs more time.
    fn leave_groups(&self, view: &View, leaving: &mut BTreeMap<Spot, Leaving>) -> bool {
        let empty: &group::Empty<'_> = &|listener, take| {
            self.take_batch(|| listener.accept(), take);
        };
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for listener in self.owned_tcp() {
            if let Some(group) = view.group_of(listener) {
                groups.entry(group).or_default().push(listener);
            }
        }
        let mut pending = false;
        for (group, ours) in groups {
            let addr = ours[0].addr();
            let warn = |why: &str| self.warn(format!("{addr}: {why}"));
            let leaving = leaving.entry(group.at).or_default();
            pending |= leaving.go_on(&group, view, &ours, empty, &warn);
        }
        pending
    }

    fn leaving(&self) -> MutexGuard<'_, BTreeMap<Spot, Leaving>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports that accepting has failed and pauses. This may happen many times a second, for as long as somebody
    /// waits.
    fn fails(&self, why: &NotAccepted) {
        let Shared {
            events,
            clock,
            accept_failures,
            ..
        } = &*self.shared;
        events.sum("accept.error", 1.0);
        let level = LogLevel::Warning;
        events.log_rarely(accept_failures, clock.now(), level, "accepting pauses", why);
    }

    fn works(&self) {
        if let Some(times) = self.shared.accept_failures.works() {
            let text = format!("accepting goes on (it has failed {times} more times)");
            self.shared.events.log(LogLevel::Info, text);
        }
    }

    fn warn(&self, why: String) {
        self.shared.events.log(LogLevel::Warning, why);
    }

    fn owned_tcp(&self) -> impl Iterator<Item = &tcp::Listener> {
        self.owned().filter_map(Listener::as_tcp)
    }

    /// The TCP sockets that are in no group with others' sockets.
    fn alone(&self) -> impl Iterator<Item = &tcp::Listener> {
        self.owned_tcp().filter(|listener| !listener.is_grouped())
    }

    /// Accepts the connections that wait, socket by socket, until none waits or a socket has had [`BATCH`] of them.
    fn empty(&self) -> Left {
        let left = self
            .owned()
            .map(|listener| self.take_batch(|| listener.accept(), &mut |_| false));
        left.max().unwrap_or(Left::Nothing)
    }

    /// `take` gets each client's address, and returns whether that connection is its own, and not to be served.
    fn take_batch(
        &self,
        accept: impl Fn() -> std::result::Result<Connected, NotAccepted>,
        take: &mut dyn FnMut(&Addr) -> bool,
    ) -> Left {
        for _ in 0..BATCH {
            // This does not go by tokio, whose budget may make a full queue look empty.
            match accept() {
                Ok(connected) if take(&connected.peer) => {}
                Ok(connected) => self.serve(connected),
                Err(NotAccepted::Gone) => {}
                Err(NotAccepted::Exhausted(_)) => return Left::Exhausted,
                Err(NotAccepted::Refused(_)) => return Left::Refused,
                Err(NotAccepted::Empty | NotAccepted::Failed(_)) => return Left::Nothing,
            }
        }
        Left::More
    }

    /// A last look into a queue, for sockets where nothing can keep new clients out. It ends, however fast clients
    /// come. Counts the connections that are lost when the socket is closed now. From our point of view, handshakes
    /// that are not done are no connections yet.
    fn sweep(&self, listener: &Listener) {
        if !is_owned(listener) {
            return;
        }
        for _ in 0..LAST_BATCHES {
            if self.take_batch(|| listener.accept(), &mut |_| false) != Left::More {
                break;
            }
        }
        let waiting = listener.queued();
        // In a group, the kernel may give the waiting clients to the others.
        if waiting > 0 && !(is_grouped(listener) && census::migrates()) {
            self.shared.unaccepted.add(waiting.into());
        }
    }

    /// Before the first socket of a group is closed.
    fn hear_nobody(&self) {
        let grouped = self.owned_tcp().filter(|listener| listener.is_grouped());
        grouped.for_each(tcp::Listener::hear_nobody);
    }

    /// Makes the sockets refuse all new clients, even if somebody has copies of them. Returns the first error.
    fn shut(&self) -> Option<io::Error> {
        self.hear_nobody();
        let shut = self.listeners.iter().map(Listener::shut);
        shut.filter_map(io::Result::err).reduce(|first, _| first)
    }

    /// Closes the sockets. Returns the first error.
    fn close(self: Arc<Self>) -> Option<io::Error> {
        match Arc::try_unwrap(self) {
            Ok(mut entrance) => {
                entrance.hear_nobody();
                let mut listeners = std::mem::take(&mut entrance.listeners);
                // Those with a file come last: to remove it may take long.
                listeners.sort_by_key(|listener| listener.as_unix().is_some());
                let closed = listeners.into_iter().map(|listener| {
                    // The close follows directly: in a group with others, clients still come.
                    entrance.sweep(&listener);
                    listener.close()
                });
                closed.filter_map(io::Result::err).reduce(|first, _| first)
            }
            Err(entrance) => {
                entrance.hear_nobody();
                for listener in &entrance.listeners {
                    entrance.sweep(listener);
                }
                let error = entrance.shut();
                entrance.leaving().clear();
                // The task closes the sockets when the host lets its thread go. But they must not be closed by a number
                // that is no longer ours.
                if error.is_some() {
                    let _ = Arc::into_raw(entrance);
                }
                error
            }
        }
    }
}

/// Whether the socket is in a group with others' sockets.
fn is_grouped(listener: &Listener) -> bool {
    listener.as_tcp().is_some_and(tcp::Listener::is_grouped)
}

fn is_owned(listener: &Listener) -> bool {
    !listener.is_shared() && listener.listens()
}

/// What a look into the queues has left in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nothing,
    More,
    /// The kernel does not let us accept.
    Refused,
    /// There are no descriptors, or no memory, for a connection.
    Exhausted,
}

/// A flag that goes up once. Any thread may wait for it.
#[derive(Debug, Default)]
struct Flag(Mutex<bool>, Condvar);

impl Flag {
    fn raise(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.1.notify_all();
    }

    fn is_up(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the flag, at most for `time`.
    fn wait(&self, time: Duration) {
        let is_up = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !time.is_zero() {
            drop(self.1.wait_timeout_while(is_up, time, |is_up| !*is_up));
        }
    }
}

/// Takes connections in, until the stop closes the entrance.
struct Acceptor<'a> {
    entrance: &'a Entrance,
    listeners: Vec<(&'a Listener, AsyncFd<BorrowedFd<'a>>)>,
    /// The socket whose turn it is. If one socket always has clients, the others still have their turns.
    next: usize,
    paused: Option<Pin<Box<Sleep>>>,
}

impl<'a> Acceptor<'a> {
    /// Must be called on the runtime on which the acceptor will run.
    fn new(entrance: &'a Entrance) -> Result<Self> {
        let watch = |listener: &'a Listener| Ok((listener, sys::watch(listener.as_fd())?));
        let watched = entrance.listeners.iter().map(watch);
        Ok(Self {
            entrance,
            listeners: watched
                .collect::<io::Result<_>>()
                .map_err(|error| Error::io("watching a listening socket", error))?,
            next: 0,
            paused: None,
        })
    }

    /// Accepts until something fails for good.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if let Some(pause) = &mut self.paused {
            ready!(pause.as_mut().poll(cx));
            self.paused = None;
        }
        // No socket has a connection after as many turns without one as there are sockets.
        let mut empty = 0;
        while empty < self.listeners.len() {
            let turn = self.next;
            self.next = (turn + 1) % self.listeners.len();
            match self.poll_turn(turn, cx) {
                Poll::Pending => empty += 1,
                Poll::Ready(Ok(())) => empty = 0,
                Poll::Ready(Err(NotAccepted::Failed(error))) => {
                    return Poll::Ready(Error::io("accepting a connection", error));
                }
                Poll::Ready(Err(why)) => {
                    self.entrance.fails(&why);
                    let mut pause = Box::pin(sleep(PAUSE));
                    let _ = pause.as_mut().poll(cx);
                    self.paused = Some(pause);
                    return Poll::Pending;
                }
            }
        }
        Poll::Pending
    }

    /// One socket's turn. Pending if nobody waits there.
    fn poll_turn(
        &self,
        turn: usize,
        cx: &mut Context<'_>,
    ) -> Poll<std::result::Result<(), NotAccepted>> {
        let (listener, watched) = &self.listeners[turn];
        for _ in 0..BATCH {
            let mut ready = ready!(watched.poll_read_ready(cx)).map_err(NotAccepted::Failed)?;
            if self.entrance.is_full() {
                if !sys::may_be_readable(listener.as_fd()) {
                    ready.clear_ready(); // Nobody waits there.
                    continue;
                }
                ready!(self.entrance.poll_room(cx));
            }
            match self.entrance.accept_if_open(listener) {
                Ok(accepted) => {
                    self.entrance.is_paused.store(false, Ordering::Relaxed);
                    self.entrance.works();
                    (self.entrance.serve)(accepted);
                }
                Err(NotAccepted::Gone) => {}
                Err(NotAccepted::Empty) => ready.clear_ready(),
                // The kernel looks for a free descriptor before it looks whether anybody waits.
                Err(NotAccepted::Exhausted(_)) if !sys::may_be_readable(listener.as_fd()) => {
                    ready.clear_ready();
                }
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The control thread's side of accepting.
pub(crate) struct Accepting {
    entrance: Arc<Entrance>,
    executor: Executor,
    /// The number of the worker that has the accepting task now. (A reference to the worker itself would count as its
    /// load.)
    at: usize,
    /// Notified when a thread is found that does not get on, or gets on again.
    changed: Arc<Notify>,
    /// The accepting task, and earlier ones that were given up because their threads did not get on.
    tasks: JoinSet<Error>,
}

impl Accepting {
    /// Makes all ready. `serve` starts to drive a connection; it is not dropped here, if the caller keeps a copy.
    pub(crate) fn new(
        listeners: Vec<Listener>,
        shared: &Arc<Shared>,
        executor: &Executor,
        serve: &Serve,
    ) -> Self {
        let entrance = Arc::new(Entrance {
            listeners,
            door: Door::default(),
            serve: Arc::clone(serve),
            shared: Arc::clone(shared),
            is_paused: AtomicBool::new(false),
            time_over: Flag::default(),
            leaving: Mutex::default(),
        });
        let changed = Arc::new(Notify::new());
        for worker in executor.workers() {
            let shared = Arc::downgrade(shared);
            let look = move || {
                if let Some(shared) = shared.upgrade() {
                    shared.look_at_handlers();
                }
            };
            tokio::spawn(Arc::clone(worker).watch(Arc::clone(&changed), look));
        }
        Self {
            entrance,
            executor: executor.clone(),
            at: 0,
            changed,
            tasks: JoinSet::new(),
        }
    }

    pub(super) fn entrance(&self) -> Weak<Entrance> {
        Arc::downgrade(&self.entrance)
    }

    /// Starts the task. There is none before, because it would take note of clients that it may not accept yet, and is
    /// told of each only once.
    pub(crate) fn start(&mut self) {
        let (at, worker) = self.executor.for_accepting();
        self.at = at;
        worker.spawn_into(&mut self.tasks, accept(Arc::clone(&self.entrance)));
    }

    /// Waits until accepting fails for good. If the host blocks the thread that accepts, another thread goes on with
    /// it.
    pub(crate) async fn failed(&mut self) -> Error {
        loop {
            tokio::select! {
                biased;
                ended = self.tasks.join_next() => match ended {
                    Some(Ok(error)) => return error,
                    Some(Err(error)) if error.is_panic() => return Error::Panicked,
                    // A task that was given up has ended.
                    _ if !self.tasks.is_empty() => {}
                    _ => return runtime_gone(),
                },
                () = self.changed.notified() => self.move_on(),
            }
        }
    }

    fn move_on(&mut self) {
        // If no thread gets on, connections would have to wait on any other, too.
        let (at, worker) = self.executor.for_accepting();
        if at != self.at && !worker.is_stuck() {
            self.tasks.abort_all();
            worker.spawn_into(&mut self.tasks, accept(Arc::clone(&self.entrance)));
            self.at = at;
        }
    }

    /// Ends when all clients that are connected from their own point of view have been taken over:
    /// [`Entrance::quiesce`].
    pub(crate) async fn quiesce(&mut self, census: Census) {
        self.tasks.abort_all();
        let entrance = Arc::clone(&self.entrance);
        let helper = &self.entrance.shared.helper;
        let _ = helper.run(move || entrance.quiesce(&census)).await;
    }

    /// Waits until the tasks have let go of the sockets, if they can. The tasks have the sockets in epoll sets, where a
    /// socket would stay if another process had a copy.
    pub(crate) async fn released(&mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(RELEASE_GRACE, all).await;
    }

    /// Closes the sockets, and counts the connections that this loses. Returns the first error.
    pub(crate) async fn close(self) -> Option<Error> {
        let helper = self.entrance.shared.helper.clone();
        self.entrance.time_over.raise();
        let left = Arc::downgrade(&self.entrance);
        let entrance = self.entrance;
        let closing = helper.run(move || entrance.close());
        let error = match timeout(RELEASE_GRACE, closing).await {
            Ok(Ok(error)) => error,
            // The helper is held up. It will close the sockets later; until then, nobody is let in.
            _ => left.upgrade().and_then(|entrance| {
                let waiting = entrance
                    .owned()
                    .map(|listener| u64::from(listener.queued()));
                entrance.shared.unaccepted.add(waiting.sum());
                entrance.shut()
            }),
        }?;
        Some(Error::io("closing a listening socket", error))
    }
}

/// The error of a server whose connections have lost their runtime.
pub(crate) fn runtime_gone() -> Error {
    let gone = io::Error::other("its runtime has been shut down");
    Error::io("driving connections", gone)
}

/// The task: accepts until something fails for good.
async fn accept(entrance: Arc<Entrance>) -> Error {
    loop {
        match Acceptor::new(&entrance) {
            Ok(mut acceptor) => return poll_fn(|cx| acceptor.poll_accept(cx)).await,
            // A task that was given up on this thread still watches the sockets, and is about to end.
            Err(Error::Io(_, why)) if why.kind() == io::ErrorKind::AlreadyExists => {
                sleep(Duration::from_millis(1)).await;
            }
            Err(error) => return error,
        }
    }
}
