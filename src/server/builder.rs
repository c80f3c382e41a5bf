//! The settings of a server, and its start.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use http::{Request, Response};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use crate::clock::{Clock, SystemClock};
use crate::conn::{self, Body, BoxError, Conn, Plain, Respond};
use crate::conn_info::ConnInfo;
use crate::contain::contain;
use crate::dispatch::{Backend, Dispatch, Dispatcher, Handler, RequestQueue};
use crate::error::{Error, Result};
use crate::events::{ConnEvent, Events, Interest, LogLevel, Observers};
use crate::net::tuning::Tuning;
use crate::net::{Listener, Listeners};
use crate::options::Options;
use crate::phase::Phase;
use crate::process;
use crate::record::RequestRecord;
use crate::restart::Restart;
use crate::shared::Shared;
use crate::stats::Stats;
use crate::sys::SignalMask;
use crate::threads::{self, Executor, IoThreads, LentRuntime, Role};
#[cfg(feature = "tls")]
use crate::tls::{self, Tls};

use super::Server;
use super::lifecycle::Control;
/// Collects the settings of a server, and starts it.
///
/// ```
/// # use std::convert::Infallible;
/// # use bytes::Bytes;
/// # use http_body_util::Full;
/// # use hyper::{Request, Response, service::service_fn};
/// use httpdown::{Body, Listener, Server};
///
/// # fn main() -> Result<(), httpdown::Error> {
/// let hello = service_fn(|_: Request<Body>| async {
///     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("Hello, World!"))))
/// });
/// let server = Server::builder()
///     .stop_timeout(std::time::Duration::from_secs(10))
///     .serve(Listener::bind("127.0.0.1:0")?, hello)?;
/// let report = server.stop_blocking()?; // in async code: server.stop().await?
/// assert_eq!(report.killed, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    options: Options,
    clock: Option<Arc<dyn Clock>>,
    observers: Observers,
    pulled: Option<Interest>,
    runtime: Option<Arc<LentRuntime>>,
    on_start: OnStart,
    restart: Option<Restart>,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

#[derive(Default)]
#[allow(clippy::type_complexity, reason = "it has no other use")]
struct OnStart(Option<Box<dyn FnOnce(&Server) + Send>>);

impl fmt::Debug for OnStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnStart").field(&self.0.is_some()).finish()
    }
}

impl Builder {
    // options: begin setters (made from src/options.toml by `make options`)
    /// How long a stop waits for open requests to finish before it kills, counted from the end of the lame duck. Once
    /// half of this time has passed, or 30 seconds, responses say `Connection: close` even to a client that has already
    /// sent more requests, because a client that never stops pipelining would otherwise never come to its end. Default:
    /// 1 minute. On the server's [clock](Builder::clock).
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.options.stop_timeout = timeout;
        self
    }

    /// How long a kill waits for the handlers of cut requests to return, before it abandons these handlers. The end of
    /// the server waits as long, but at least a second and in real time, for the program's other code on the server's
    /// threads (destructors, for example). Default: 1 minute. On the server's [clock](Builder::clock).
    pub fn kill_timeout(mut self, timeout: Duration) -> Self {
        self.options.kill_timeout = timeout;
        self
    }

    /// How long a stop still accepts connections. During this time [`Server::is_ready`] is false and responses say
    /// `Connection: close`, so that load balancers and clients go elsewhere. Default: no time. On the server's
    /// [clock](Builder::clock).
    pub fn lame_duck(mut self, duration: Duration) -> Self {
        self.options.lame_duck = duration;
        self
    }

    /// How long a request's head may take, from its first byte to its last. After this time the client gets a 408, and
    /// the connection is closed. Default: 30 seconds. In real time.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.options.header_timeout = timeout;
        self
    }

    /// The number of threads that drive connections. Default: one for each processor that the process may use.
    pub fn io_threads(mut self, count: NonZeroUsize) -> Self {
        self.options.io_threads = Some(count);
        self
    }

    /// How long a stop leaves an idle connection (between two requests) open, so that a request that is already on its
    /// way is served, and answered with `Connection: close`. Set more than the round trip to the clients. The time
    /// starts when the client's kernel has the last answer. A new connection gets 4.5 seconds more for each
    /// retransmission that its handshake needed, because its client would repeat a lost request that late. Default: 1
    /// second. In real time.
    pub fn idle_grace(mut self, grace: Duration) -> Self {
        self.options.idle_grace = grace;
        self
    }

    /// How long a stop still accepts connections whose handshake had begun before. This time ends as soon as there are
    /// no such connections. It is a part of [`stop_timeout`](Builder::stop_timeout). The default gives a handshake that
    /// lost a segment two more chances (retransmissions come after 1 s and 3 s). Default: 4 seconds. In real time.
    pub fn quiesce_timeout(mut self, timeout: Duration) -> Self {
        self.options.quiesce_timeout = timeout;
        self
    }

    /// How long a connection that the server has closed waits for the client to close its side. Without this wait, a
    /// reset could destroy the bytes that were sent last. If a client has not acknowledged everything that was sent to
    /// it, a stop waits longer, up to [`stop_timeout`](Builder::stop_timeout). Default: 2 seconds. In real time.
    pub fn linger_timeout(mut self, timeout: Duration) -> Self {
        self.options.linger_timeout = timeout;
        self
    }

    /// A path, such as "/healthz", that the server answers itself, even when all handlers are busy: with 200 while
    /// [`Server::is_ready`] is true, then with 503. The methods are GET, HEAD and OPTIONS; others get 405. The server
    /// compares this path with the path of a request's target byte for byte, without the query. Such a request counts
    /// like any other in the report. The path begins with "/", the rest is visible ASCII, without a query. Default: no
    /// path.
    pub fn ready_path(mut self, path: impl Into<String>) -> Self {
        self.options.ready_path = Some(path.into());
        self
    }

    /// The minimum duration of the lame duck, even if no requests come ([`lame_duck_quiet`](Builder::lame_duck_quiet)).
    /// Set the time that a load balancer needs to notice: the interval of its checks, times the number of failures that
    /// it waits for. At most [`lame_duck`](Builder::lame_duck). Default: no time. On the server's
    /// [clock](Builder::clock).
    pub fn lame_duck_min(mut self, duration: Duration) -> Self {
        self.options.lame_duck_min = duration;
        self
    }

    /// Ends the lame duck early when no request has come for this time, because then nobody sends requests here any
    /// more. Requests for [`ready_path`](Builder::ready_path) do not count, nor do connections without a request. At
    /// most [`lame_duck`](Builder::lame_duck). Default: never early. On the server's [clock](Builder::clock).
    pub fn lame_duck_quiet(mut self, silence: Duration) -> Self {
        self.options.lame_duck_quiet = silence;
        self
    }

    /// How long a connection may be without a request while the server serves: between two requests, or before the
    /// first. Then the server closes the connection, at most one second later. Not 0. By default there is no limit,
    /// because a request may be on its way while the server closes; then this request is lost (`raced` in the
    /// [`Report`](crate::Report)). To avoid that, set more than the clients' own timeout (for example, a load
    /// balancer's timeout for idle connections), or tell the clients:
    /// [`keep_alive_header`](Builder::keep_alive_header). Default: no limit. In real time.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.options.idle_timeout = timeout;
        self
    }

    /// True: responses announce the idle timeout, `Keep-Alive: timeout=N`, so that clients that know this field close
    /// an idle connection before the server does. N is [`idle_timeout`](Builder::idle_timeout) minus
    /// [`idle_grace`](Builder::idle_grace), so that a request that was sent at the last moment still comes in time. N
    /// is in whole seconds, and at least 1. The field is not added when the connection ends, nor to a response that has
    /// its own Connection or Keep-Alive field. Default: false.
    pub fn keep_alive_header(mut self, announce: bool) -> Self {
        self.options.keep_alive_header = announce;
        self
    }

    /// For [`Server::run`]: how long after the first signal another signal counts as the second, which goes straight to
    /// the kill; and how long after the second, as the third. A signal that comes sooner is taken for a repetition: a
    /// process manager signals the whole group, and a wrapper in the group forwards the signal, too. 0: at once;
    /// [`Duration::MAX`]: never. If several servers run together, the longest of their times counts for all. Default:
    /// 500 milliseconds. In real time.
    pub fn second_signal(mut self, pause: Duration) -> Self {
        self.options.second_signal = pause;
        self
    }

    /// True: the sockets of [`Builder::listen`] have `SO_REUSEPORT`, so that several processes of the same user can
    /// each listen there with their own socket. The kernel spreads new clients over these sockets. A stop makes the
    /// kernel send new clients to the other sockets before it closes its own. So workers can be restarted one by one,
    /// and no client is lost. All processes that listen there must set this option, and none of them is told any more
    /// that the address is in use. It does not apply to listeners that were made elsewhere, nor to inherited sockets:
    /// their creator sets `SO_REUSEPORT`. Default: false.
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.options.reuse_port = reuse;
        self
    }

    /// True: for [`Server::run`]: SIGHUP reads the files of [`tls`](Builder::tls) again (certificates, keys, CAs,
    /// revocation lists), and new connections get what was read. If anything cannot be used, all stays as it was, and
    /// the log says why. By default, SIGHUP does what it did before, so it mostly ends the program. Needs
    /// [`tls`](Builder::tls), with at least one file. Default: false.
    pub fn reload_on_hup(mut self, reload: bool) -> Self {
        self.options.reload_on_hup = reload;
        self
    }

    /// How long a client may keep those waiting who read its request's body. Bytes give it time back, a second for each
    /// [`least_rate`](Builder::least_rate) bytes, but never more than this time in all. So a client that sends nothing
    /// is cut after this time, and one that sends slowly, but at that rate, is not. Only the time counts in which
    /// somebody waits for the body. Then reading fails with [`Error::TooSlow`](crate::Error::TooSlow), the client gets
    /// a 408 if no answer has begun, and the connection is closed. Not 0. Default: 30 seconds. In real time.
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.options.body_timeout = timeout;
        self
    }

    /// How long a client may leave its answer untaken, when the kernel can hold no more of it. Bytes that the client's
    /// kernel acknowledges give it time back, as for [`body_timeout`](Builder::body_timeout). Then the connection is
    /// reset, and writing fails with [`Error::TooSlow`](crate::Error::TooSlow). Not 0. Default: 30 seconds. In real
    /// time.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.options.write_timeout = timeout;
        self
    }

    /// How many bytes a second a client must send of a body, or take of an answer, so that it is not cut by
    /// [`body_timeout`](Builder::body_timeout) or [`write_timeout`](Builder::write_timeout). Default: 240.
    pub fn least_rate(mut self, bytes: NonZeroUsize) -> Self {
        self.options.least_rate = Some(bytes);
        self
    }

    /// A request whose body is known to be shorter than so many bytes reaches its handler when the body is there, so
    /// that a slow client occupies no handler. Longer ones, those in chunks, and those that the client sends only when
    /// it is asked (Expect: 100-continue) reach it at once. At most 16 MiB. Default: 65,536.
    pub fn body_buffer(mut self, bytes: NonZeroUsize) -> Self {
        self.options.body_buffer = Some(bytes);
        self
    }

    /// How many requests a second are told that the server drains, of those that have asked to be told. So the clients
    /// of many endless answers do not all connect elsewhere at once. All are told before half of
    /// [`stop_timeout`](Builder::stop_timeout) has passed. Default: 1,000.
    pub fn drain_rate(mut self, requests: NonZeroUsize) -> Self {
        self.options.drain_rate = Some(requests);
        self
    }

    /// The peers that must begin each connection with a header of the PROXY protocol, version 1 or 2, which says whose
    /// connection it is: IP addresses and networks with commas between them, and "unix:" for all clients of Unix
    /// sockets ("10.0.0.0/8, unix:"). The client's address of such a connection is the one in the header, and so is the
    /// server's. The header comes before TLS, within [`header_timeout`](Builder::header_timeout). Without it the
    /// connection is closed, and the log says so. From other peers, such a header is no more than a malformed request.
    /// Default: nobody.
    pub fn proxy_protocol_from(mut self, peers: impl Into<String>) -> Self {
        self.options.proxy_protocol_from = Some(peers.into());
        self
    }

    /// The proxies whose fields in a request's head are believed, as a list like that of
    /// [`proxy_protocol_from`](Builder::proxy_protocol_from). Such fields say for whom a request was forwarded:
    /// [`Client`](crate::Client). Who asks the server directly could send the same fields, so believe only proxies that
    /// set them, or remove them. Default: nobody.
    pub fn trusted_proxies(mut self, peers: impl Into<String>) -> Self {
        self.options.trusted_proxies = Some(peers.into());
        self
    }

    /// The fields that [`trusted_proxies`](Builder::trusted_proxies) set. "x-forwarded": X-Forwarded-For,
    /// X-Forwarded-Proto and X-Forwarded-Host, which most proxies set; "forwarded": Forwarded (RFC 7239); "x-real-ip":
    /// X-Real-IP. No others are believed, because a proxy passes on what it does not know as the client has sent it.
    /// Default: x-forwarded.
    pub fn forwarded_by(mut self, fields: impl Into<String>) -> Self {
        self.options.forwarded_by = Some(fields.into());
        self
    }

    /// The maximum size of a request's body in bytes. If the head announces more, the client gets a 413 at once, and no
    /// handler sees the request. In chunks, a body is read until there is more of it: then reading fails with
    /// [`Error::TooLarge`](crate::Error::TooLarge), and the client gets a 413 if no answer has begun. Either way, the
    /// connection is closed. By default there is no limit, because what a body costs is decided where it is read:
    /// nothing is kept of it but [`body_buffer`](Builder::body_buffer). Default: no limit.
    pub fn max_body_size(mut self, bytes: u64) -> Self {
        self.options.max_body_size = Some(bytes);
        self
    }

    /// The maximum number of fields in a request's head. A client that sends more gets a 431, and the connection is
    /// closed. Another number than 100, which is the default of the parser, costs each request an allocation. At most
    /// 4,096. The trailers of a body may have as many; a body with more is malformed. Default: 100.
    pub fn max_headers(mut self, count: NonZeroUsize) -> Self {
        self.options.max_headers = Some(count);
        self
    }

    /// The maximum size of a request's head in bytes: its first line, its fields and its empty line. A client that
    /// sends more gets a 431, and the connection is closed. The trailers of a body may be as large; a body with larger
    /// ones is malformed, and so is a body with more than 16 KiB of chunk extensions. The default is twice what nginx
    /// and Kestrel take. At most 16 MiB. Default: 65,536.
    pub fn max_head_size(mut self, bytes: NonZeroUsize) -> Self {
        self.options.max_head_size = Some(bytes);
        self
    }

    /// The maximum length of a request's target in bytes, with its query. A client that sends more gets a 414, and the
    /// connection is closed. A target is a part of a head, so [`max_head_size`](Builder::max_head_size) limits it, too.
    /// RFC 9110 asks for at least 8,000; the default is about what nginx, Apache and Kestrel take. At most 65,534.
    /// Default: 8,192.
    pub fn max_target_size(mut self, bytes: NonZeroUsize) -> Self {
        self.options.max_target_size = Some(bytes);
        self
    }

    /// The number of requests after which a connection ends: the answer to this request says `Connection: close`. A
    /// client that has already sent more requests is answered up to twice this number. A limit spreads clients anew
    /// over the servers behind a balancer, and gives back what a connection has come to hold. Default: no limit.
    pub fn max_conn_requests(mut self, count: NonZeroUsize) -> Self {
        self.options.max_conn_requests = Some(count);
        self
    }

    /// The maximum number of open connections. While so many are open, accepting pauses, and new clients wait in the
    /// kernel's queue; they are accepted when others end. A stop accepts them beyond this number, as always. Set less
    /// than the process has descriptors. With this limit, [`idle_timeout`](Builder::idle_timeout) should be set, too,
    /// or idle clients keep others out. Default: no limit.
    pub fn max_conns(mut self, count: NonZeroUsize) -> Self {
        self.options.max_conns = Some(count);
        self
    }

    /// The maximum number of open connections from one IP address; of IPv6, from one /64, because a client has mostly
    /// all of these. A connection beyond it gets a 503 with Retry-After at once, and is closed; with TLS it is closed
    /// without a word. Clients of Unix sockets are not limited. Many clients may share an address: behind one router,
    /// or one proxy. Default: no limit.
    pub fn max_client_conns(mut self, count: NonZeroUsize) -> Self {
        self.options.max_client_conns = Some(count);
        self
    }

    /// The maximum number of requests that wait for a handler (pool), or to be taken (queue), while no thread is free.
    /// A request beyond it gets a 503 with Retry-After at once, and its connection goes on. By default all wait, and
    /// when more come than can be answered, all wait ever longer. Default: no limit.
    pub fn max_queued(mut self, count: NonZeroUsize) -> Self {
        self.options.max_queued = Some(count);
        self
    }

    /// How many connections may wait to be accepted, on each TCP socket of [`Builder::listen`]. The kernel caps the
    /// number at `net.core.somaxconn`, which is 4,096 since Linux 5.4. At most 65,535. This and the options below do
    /// not apply to listeners that were made elsewhere, nor to inherited sockets: their creator sets them up. Default:
    /// 4,096.
    pub fn tcp_backlog(mut self, count: NonZeroUsize) -> Self {
        self.options.tcp_backlog = Some(count);
        self
    }

    /// True: a socket that listens on all addresses (`:8080`, `[::]:8080`) takes IPv6 only. By default it takes IPv4,
    /// too. Set this if another socket is to take IPv4 on the same port. Default: false.
    pub fn v6_only(mut self, only: bool) -> Self {
        self.options.v6_only = only;
        self
    }

    /// After this silence, the kernel asks a client four times whether it is still there (`SO_KEEPALIVE`), and gives
    /// the connection up after as long again. So a connection whose client is gone without a word does not stay for
    /// ever, whatever is done with it (after an upgrade, say). From 1 second to 32,767 seconds, in whole seconds.
    /// Default: never. In real time.
    pub fn tcp_keepalive(mut self, silence: Duration) -> Self {
        self.options.tcp_keepalive = silence;
        self
    }

    /// How long what was sent may stay without an acknowledgement, before the kernel gives the connection up
    /// (`TCP_USER`_TIMEOUT). The system's own limit is about 15 minutes. [`write_timeout`](Builder::write_timeout) is
    /// mostly the better choice: it also cuts clients that acknowledge, and do not read. From 1 second to 32,767
    /// seconds. Default: the system's. In real time.
    pub fn tcp_user_timeout(mut self, timeout: Duration) -> Self {
        self.options.tcp_user_timeout = timeout;
        self
    }

    /// The size of a TCP connection's receive buffer (`SO_RCVBUF`). The kernel doubles the number, and caps it at
    /// `net.core.rmem_max`. A fixed buffer no longer grows with a fast client, so set it only to save memory. At most 1
    /// GiB. Default: the system's, which grows.
    pub fn receive_buffer(mut self, bytes: NonZeroUsize) -> Self {
        self.options.receive_buffer = Some(bytes);
        self
    }

    /// The size of a TCP connection's send buffer (`SO_SNDBUF`), like [`receive_buffer`](Builder::receive_buffer); its
    /// cap is `net.core.wmem_max`. At most 1 GiB. Default: the system's, which grows.
    pub fn send_buffer(mut self, bytes: NonZeroUsize) -> Self {
        self.options.send_buffer = Some(bytes);
        self
    }

    /// True: a client that has closed its side of the connection (a FIN; with TLS, `close_notify`) while its request is
    /// answered counts as gone. So a handler that waits for something else, as in a long poll, learns at once that its
    /// client has left, and not when it answers. By default such a client still gets its answer, because it may only
    /// have closed its half: `nc -N`, `socat` and some libraries do so after the request, browsers and curl never do.
    /// The option of this name in `haproxy` does the same, and nginx does it always. Default: false.
    pub fn abort_on_close(mut self, aborts: bool) -> Self {
        self.options.abort_on_close = aborts;
        self
    }

    /// Whether each request that a [service](Builder::serve) gets has a [`ConnInfo`](crate::ConnInfo) among its
    /// extensions. By default it has not, because a request's first extension costs three allocations, about a tenth of
    /// what a request costs in user space. Default: false.
    pub fn conn_info(mut self, inserts: bool) -> Self {
        self.options.conn_info = inserts;
        self
    }

    /// How long a request may be with the program before it counts as overdue. Its time begins when it is handed over
    /// (to the pool, the queue, the handler or the service), so it has its wait for a thread in it, but not that for a
    /// short body ([`body_buffer`](Builder::body_buffer)). The time ends when the program has given the whole answer:
    /// an answer without an end is overdue, too. This is advice: nothing is cut, and the answer is as good as before.
    /// An overdue request is counted (`overdue` in the [`Report`](crate::Report), the statistic `handler.overdue`), now
    /// and then logged with its method and target, and told to those who have asked. By default there is no limit,
    /// because none fits both a page and a long poll, and because it costs each request a clock and an allocation. Not
    /// 0. Default: never. In real time.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.options.handler_timeout = timeout;
        self
    }

    /// True: when most of many busy connections have come to rest or gone, the memory that they used goes back to the
    /// system: some seconds later, and at most once a minute, a thread of the server calls `malloc_trim`. By default
    /// this memory stays with the allocator of the process, which uses it for what comes next. The call looks through
    /// the whole heap of the process, and other threads that allocate may wait meanwhile: some 40 ms for 240 MB to give
    /// back, and up to a second in a heap of gigabytes that has many small holes. So set this in a program that mostly
    /// serves HTTP. Only with glibc. Default: false.
    pub fn trim_memory(mut self, trims: bool) -> Self {
        self.options.trim_memory = trims;
        self
    }

    /// The target of a request, such as "/healthz?deep", by which a new process proves at a restart that it works.
    /// Before it says that it is ready, and before any client comes, it sends itself a GET past the sockets, without
    /// TLS. An answer with a status below 400, complete, is a success; anything else makes the restart fail, and an
    /// answer that does not come does so when the time to get ready is over. Handlers see an ordinary request, from an
    /// unnamed Unix socket; the report counts it. Default: no request.
    pub fn canary(mut self, target: impl Into<String>) -> Self {
        self.options.canary = Some(target.into());
        self
    }

    // options: end setters

    /// Speaks TLS on every connection. By default, no connection does. A client that speaks HTTP without TLS gets a
    /// 400, in plain text.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The clock for the timers of the stop, the kill and the lame duck, for
    /// [`Report::stop_duration`](crate::Report::stop_duration), and for the minute between two counts of connections.
    /// All else is in real time. Default: [`SystemClock`]. For tests: a [`MockClock`](crate::MockClock), with an
    /// [idle grace](Builder::idle_grace) of some milliseconds.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// A client for statistics. It is called on the events thread.
    pub fn stats(mut self, stats: impl Stats) -> Self {
        self.observers.stats = Some(Box::new(stats));
        self
    }

    /// Sets a callback, called on the events thread whenever a connection's state changes.
    pub fn on_conn_state(mut self, callback: impl FnMut(ConnEvent) + Send + 'static) -> Self {
        self.observers.conns = Some(Box::new(callback));
        self
    }

    /// Sets a callback, called on the events thread whenever the server enters a phase, from [`Phase::Serving`] to
    /// [`Phase::Stopped`]. In the call for [`Phase::Stopped`], [`Server::outcome`] and [`Server::wait`] say how the
    /// server has ended; the tasks and threads that wait for the end are told afterwards.
    pub fn on_phase(mut self, callback: impl FnMut(Phase) + Send + 'static) -> Self {
        self.observers.phases = Some(Box::new(callback));
        self
    }

    /// Sets a callback, called on the events thread with what a person should know. The library itself prints nothing.
    pub fn on_log(mut self, callback: impl FnMut(LogLevel, &str) + Send + 'static) -> Self {
        self.observers.logs = Some(Box::new(callback));
        self
    }

    /// Sets a callback, called on the events thread for each request that has ended: for an access log. Every request
    /// of the [`Report`](crate::Report) is told exactly once, unless the callback is so slow that events are dropped
    /// ([`Report::events_dropped`](crate::Report::events_dropped)). So a probe of the [ready path](Builder::ready_path)
    /// is told, and bytes that are no request (400, 408) are not. An upgrade ends when the kernel has the answer that
    /// agrees to it.
    ///
    /// While the server serves, a request has ended when the kernel has the whole answer; in a stop, when the client's
    /// kernel has it, or the connection ends. A client that got its answer before a stop, and turns out in the stop not
    /// to have it all, was told as served, though the report counts its request as gone or killed.
    ///
    /// Without this callback, nothing is noted for it, and no clock is read.
    pub fn on_done(mut self, callback: impl FnMut(&RequestRecord) + Send + 'static) -> Self {
        self.observers.done = Some(Box::new(callback));
        self
    }

    /// Makes events of all kinds, to be taken by [`Server::next_event`]. Callbacks that are set here are then not
    /// called, and there is no events thread.
    pub fn pull_events(self) -> Self {
        self.pull(Interest {
            stats: true,
            conns: true,
            phases: true,
            logs: true,
            done: true,
        })
    }

    #[cfg(test)]
    pub(crate) fn pulls(&self) -> bool {
        self.pulled.is_some()
    }

    pub(crate) fn pull(mut self, interest: Interest) -> Self {
        self.pulled = Some(interest);
        self
    }

    /// Sets a callback, called once with the server before it serves, and so before any handler and any other callback:
    /// for those that need the server. It is called on a thread of its own, for which the start waits; so a call that
    /// waits for the server fails there ([`Error::WouldDeadlock`]). If the callback panics, the server does not start
    /// ([`Error::Panicked`]).
    ///
    /// ```
    /// use std::sync::{Arc, OnceLock};
    ///
    /// use httpdown::{Dispatch, Exchange, Listener, Server};
    ///
    /// # fn main() -> httpdown::Result<()> {
    /// let own = Arc::new(OnceLock::new());
    /// let known = Arc::clone(&own);
    /// let handler = move |exchange: Exchange| {
    ///     let server: &Server = known.get().expect("it is set before the first request");
    ///     let _ = exchange.reply(http::Response::new(format!("{server:?}").into()));
    /// };
    /// let server = Server::builder()
    ///     .on_start(move |server| drop(own.set(server.clone())))
    ///     .handle(Listener::bind("127.0.0.1:0")?, Dispatch::default(), handler)?;
    /// server.stop_blocking()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_start(mut self, callback: impl FnOnce(&Server) + Send + 'static) -> Self {
        self.on_start.0 = Some(Box::new(callback));
        self
    }

    /// How a signal restarts the program during a [run](Server::run). Without this, SIGUSR2 restarts it with the
    /// defaults; [`Restart::no_signal`] turns that off. If several servers run together, that of the first one counts.
    ///
    /// ```no_run
    /// # use httpdown::{Dispatch, Exchange, Listener, Restart, Server};
    /// # fn main() -> httpdown::Result<()> {
    /// # let handler = |exchange: Exchange| drop(exchange);
    /// let restart = Restart::default().on_hup(true);
    /// let server = Server::builder()
    ///     .restart(restart)
    ///     .handle(Listener::bind("0.0.0.0:8080")?, Dispatch::default(), handler)?;
    /// server.run()?; // kill -USR2 or -HUP: a new version; kill -TERM: the end
    /// # Ok(())
    /// # }
    /// ```
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = Some(restart);
        self
    }

    /// Accepts and drives connections on this runtime, instead of on the server's own threads. Its I/O and time must be
    /// enabled. The runtime must outlive the server, or the server stops with an error. The runtime that this is called
    /// on is used only if you pass it here: a server on its own threads stops on time whatever happens on the host's
    /// threads.
    ///
    /// Tasks that a service spawns there are the host's, and go on after the stop.
    ///
    /// On the runtime's threads, wait by [`Server::stop`] and [`Server::wait`], which are async. A call that blocks
    /// there, such as [`Server::stop_blocking`] or [`Server::run`], fails with [`Error::WouldDeadlock`] if the runtime
    /// does not get on meanwhile: on the thread of a current-thread runtime, or on the last unblocked worker of another
    /// runtime. In `spawn_blocking`, such a call may wait.
    pub fn runtime(mut self, runtime: tokio::runtime::Handle) -> Self {
        self.runtime = Some(Arc::new(LentRuntime::new(runtime)));
        self
    }

    fn tuning(&self) -> Tuning {
        let options = &self.options;
        let unless_forever = |time: Duration| Some(time).filter(|time| *time != Duration::MAX);
        Tuning {
            reuse_port: options.reuse_port,
            v6_only: options.v6_only,
            backlog: options.tcp_backlog.map(NonZeroUsize::get),
            keepalive: unless_forever(options.tcp_keepalive),
            user_timeout: unless_forever(options.tcp_user_timeout),
            receive_buffer: options.receive_buffer.map(NonZeroUsize::get),
            send_buffer: options.send_buffer.map(NonZeroUsize::get),
        }
    }

    /// Like [`Listener::bind`], but with the options for sockets that were set so far, and also counts a failure: the
    /// [`Stats`] set so far are told `listen.error`, on this thread, because there is no events thread yet.
    ///
    /// # Errors
    /// The errors of [`Listener::bind`]; [`Error::InvalidArgument`] if an option for sockets makes no sense.
    pub fn listen(&mut self, addr: &str) -> Result<Listener> {
        self.options.check_sockets()?;
        let bound = Listener::bind_tuned(addr, &self.tuning());
        bound.inspect_err(|_| {
            if let Some(stats) = &mut self.observers.stats {
                stats.bump_sum("listen.error", 1.0);
            }
        })
    }

    /// Serves a hyper service. Each connection gets a clone of it. Returns at once.
    ///
    /// The service is called on the server's own threads. Each has a tokio current-thread runtime, whose timers and
    /// sockets the service can use. Tasks that it spawns there (`tokio::spawn`) live as long as the server: the end of
    /// the stop drops them, and the [log](Builder::on_log) says so. `block_in_place` panics there. If that is not
    /// enough for a service, give it its own runtime: [`Builder::runtime`].
    ///
    /// If the service fails or panics, the request is answered with a 500.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use bytes::Bytes;
    /// # use http_body_util::Full;
    /// # use hyper::{Request, Response, service::service_fn};
    /// # use httpdown::{Body, Listener, Server};
    /// # fn main() -> httpdown::Result<()> {
    /// let hello = service_fn(|_: Request<Body>| async {
    ///     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("Hello, World!"))))
    /// });
    /// let server = Server::builder().serve(Listener::bind("127.0.0.1:0")?, hello)?;
    /// server.stop_blocking()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a listener, or if a setting makes no sense; [`Error::OutOfResources`] if no
    /// thread or no descriptor is available; [`Error::Forked`].
    pub fn serve<S, B>(self, listeners: impl Into<Listeners>, service: S) -> Result<Server>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        self.start(listeners.into(), |_, _| {
            (conn::clones(Plain(service)), Backend::Direct)
        })
    }

    /// Serves a tower service, for instance an axum `Router`, like [`Builder::serve`]. Each request gets a clone of it.
    ///
    /// axum spawns a task for each upgrade, and applications spawn others: give it their [runtime](Builder::runtime). A
    /// handler gets the client's address by [`Builder::conn_info`] and `Extension<ConnInfo>`. `examples/axum.rs` is a
    /// whole program, with streams of events and web sockets that end when a stop begins.
    ///
    /// ```
    /// # use httpdown::{Listener, Server};
    /// use axum::{Router, routing::get};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> httpdown::Result<()> {
    /// let app = Router::new().route("/", get(async || "Hello, World!"));
    /// let server = Server::builder()
    ///     .runtime(tokio::runtime::Handle::current())
    ///     .serve_tower(Listener::bind("127.0.0.1:0")?, app)?;
    /// server.stop().await?; // or: server.run_async().await? until SIGTERM or SIGINT
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Builder::serve`].
    pub fn serve_tower<S, B>(self, listeners: impl Into<Listeners>, service: S) -> Result<Server>
    where
        S: tower_service::Service<Request<Body>, Response = Response<B>>,
        S: Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        self.serve(listeners, TowerToHyperService::new(service))
    }

    /// Serves each connection by its own service, which `make` makes for it, like [`Builder::serve`]. `make` is called
    /// on the thread that drives the connection, for one connection at a time. A tower service must be wrapped in
    /// [`TowerToHyperService`].
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use bytes::Bytes;
    /// # use http_body_util::Full;
    /// # use hyper::{Request, Response, service::service_fn};
    /// # use httpdown::{Body, Listener, Server};
    /// # fn main() -> httpdown::Result<()> {
    /// let listener = Listener::bind("127.0.0.1:0")?;
    /// let server = Server::builder().serve_connections(listener, |server, conn| {
    ///     let server = server.clone();
    ///     service_fn(move |_: Request<Body>| {
    ///         let text = format!("{}, connection {} of {server:?}", conn.peer, conn.id);
    ///         async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
    ///     })
    /// })?;
    /// server.stop_blocking()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Builder::serve`].
    pub fn serve_connections<S, B>(
        self,
        listeners: impl Into<Listeners>,
        mut make: impl FnMut(&Server, ConnInfo) -> S + Send + 'static,
    ) -> Result<Server>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let make = move |conn: &Arc<Conn>| {
            let server = Server::of(Arc::clone(conn.shared()));
            Plain(make(&server, ConnInfo::clone(conn.info())))
        };
        self.start(listeners.into(), |_, _| (make, Backend::Direct))
    }

    /// Serves a handler, on the threads that `dispatch` says. Returns at once. [`Exchange`](crate::Exchange) says what
    /// a handler does.
    ///
    /// # Errors
    /// The errors of [`Builder::serve`].
    pub fn handle(
        self,
        listeners: impl Into<Listeners>,
        dispatch: Dispatch,
        handler: impl Handler,
    ) -> Result<Server> {
        self.start(listeners.into(), move |id, mask| {
            let dispatcher = Dispatcher::new(dispatch, handler, id, mask);
            let backend = dispatcher.backend();
            (conn::clones(dispatcher), backend)
        })
    }

    /// Puts requests into a queue, from which the host takes them on its own threads. Returns at once.
    ///
    /// # Errors
    /// The errors of [`Builder::serve`].
    pub fn queue(self, listeners: impl Into<Listeners>) -> Result<(Server, RequestQueue)> {
        let queue = self.new_queue();
        let server = self.serve_by(queue.clone(), listeners)?;
        Ok((server, queue))
    }

    /// Makes a queue for [`Builder::serve_by`].
    pub(crate) fn new_queue(&self) -> RequestQueue {
        RequestQueue::new(self.runtime.clone())
    }

    /// Like [`Builder::queue`], with a queue that somebody may know already.
    pub(crate) fn serve_by(
        self,
        queue: RequestQueue,
        listeners: impl Into<Listeners>,
    ) -> Result<Server> {
        self.start(listeners.into(), |_, _| {
            let dispatcher = Dispatcher::Queue(queue);
            let backend = dispatcher.backend();
            (conn::clones(dispatcher), backend)
        })
    }

    fn interest(&self) -> Interest {
        self.pulled.unwrap_or_else(|| self.observers.interest())
    }

    /// Makes what the server's threads will share. Nothing runs yet.
    pub(crate) fn shared(
        &self,
        id: u64,
        listeners: &[Listener],
        runtime: tokio::runtime::Handle,
    ) -> Result<Shared> {
        let clock = self.clock.clone();
        let shared = Shared::new(
            id,
            self.options.clone(),
            clock.unwrap_or_else(|| Arc::new(SystemClock::default())),
            Events::new(self.interest(), self.pulled.is_some()),
            listeners
                .iter()
                .map(Listener::local_addr)
                .cloned()
                .collect(),
            runtime,
            self.runtime.clone(),
        );
        let shared = shared.map(|shared| shared.with_restart(self.restart.clone()));
        if self.options.reload_on_hup && !self.reads_tls_files() {
            let why = "reload_on_hup is set, but nothing of tls is from a file";
            return Err(Error::InvalidArgument(why.into()));
        }
        #[cfg(feature = "tls")]
        let shared = shared.and_then(|shared| {
            let tls = self.tls.as_ref().map(tls::Context::new).transpose()?;
            let made = listeners.iter().find_map(Listener::inherited_tickets);
            if let (Some(tls), Some(made)) = (&tls, made) {
                tls.adopt_keys(made);
            }
            Ok(shared.with_tls(tls))
        });
        shared
    }

    #[cfg_attr(
        not(feature = "tls"),
        allow(clippy::unused_self, reason = "with TLS, it depends")
    )]
    fn reads_tls_files(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.as_ref().is_some_and(Tls::has_files);
        #[cfg(not(feature = "tls"))]
        false
    }

    /// `respond` returns the function that makes, for each connection, what answers its requests.
    fn start<R: Respond + Clone, M: FnMut(&Arc<Conn>) -> R + Send + 'static>(
        self,
        listeners: Listeners,
        respond: impl FnOnce(u64, SignalMask) -> (M, Backend) + Send + 'static,
    ) -> Result<Server> {
        if process::forked() {
            return Err(Error::Forked);
        }
        let Listeners(listeners) = listeners;
        if listeners.is_empty() {
            return Err(Error::InvalidArgument("no address to listen on".into()));
        }
        self.options.check()?;
        if let Some(restart) = &self.restart {
            let checked = restart.check();
            checked.map_err(|error| error.of("restart"))?;
        }
        let mask = SignalMask::here().and_pipe();
        threads::elsewhere(move || self.start_here(listeners, mask, respond))
    }

    /// Starts the server; must run on its own thread. `mask`: the signals that are blocked on threads that run the
    /// host's code.
    fn start_here<R: Respond + Clone, M: FnMut(&Arc<Conn>) -> R + Send + 'static>(
        self,
        listeners: Vec<Listener>,
        mask: SignalMask,
        respond: impl FnOnce(u64, SignalMask) -> (M, Backend),
    ) -> Result<Server> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let control_runtime = threads::new_runtime()?;
        let interest = self.interest();
        let runtime = control_runtime.handle().clone();
        let shared = Arc::new(self.shared(id, &listeners, runtime)?);
        let server = Server { shared };
        let (make, backend) = respond(id, mask);
        let on_start = self.on_start;
        let (threads, executor) = match self.runtime {
            Some(lent) => (IoThreads::default(), Executor::on(lent)),
            None => IoThreads::start(id, self.options.io_threads, backend.hands_over(), mask)?,
        };
        let start = |name: &str, mask: Option<SignalMask>, body: Box<dyn FnOnce() + Send>| {
            threads::spawn_thread(name, id, Role::Other, mask, body)
        };
        let started = if self.pulled.is_none() && interest.any() {
            let shared = Arc::clone(&server.shared);
            let observers = self.observers;
            shared.events.will_deliver();
            start(
                "httpdown-events",
                Some(mask),
                Box::new(move || shared.events.deliver_all(observers)),
            )
            .inspect_err(|_| server.shared.events.none_delivers())
            .map(Some)
        } else {
            Ok(None)
        };
        let started = started.and_then(|events| {
            server.threads().extend(events);
            let helper = server.shared.helper.clone();
            start("httpdown-aux", Some(mask), Box::new(move || helper.live()))
        });
        let started = started.and_then(|helper| {
            let workers = executor.clone();
            // All connections share one `make`. It is called on the threads that serve, because it may run any code of
            // the host.
            let make = Arc::new(Mutex::new(make));
            let control = Control {
                shared: Arc::clone(&server.shared),
                listeners,
                executor,
                threads,
                backend,
                serve: Arc::new(move |accepted| conn::serve(accepted, &make, workers.worker())),
            };
            if let Some(callback) = on_start.0 {
                // As on every thread that runs the host's code: what it starts inherits the host's signals, and it
                // cannot wait for the server, which waits for it.
                let ours = mask.set();
                let called = threads::driving(id, || contain(|| callback(&server)));
                ours.set();
                if called.is_none() {
                    server.threads().push(helper);
                    return Err(Error::Panicked);
                }
            }
            let (hand_over, handed_over) = mpsc::channel();
            let (enrols, enrolled) = mpsc::channel();
            let body = move || {
                if let Ok(helper) = handed_over.recv() {
                    control.run(control_runtime, helper, enrols);
                }
            };
            let started = start("httpdown-ctl", None, Box::new(body));
            // The owner of the helper thread joins it. If there is no control thread, we are the owner.
            let ours = match &started {
                Ok(_) => hand_over.send(helper).err().map(|unsent| unsent.0),
                Err(_) => Some(helper),
            };
            server.threads().extend(ours);
            // A restart that is asked for as soon as the server is there must not overlook it. Nothing is sent: the
            // other end is dropped, whatever happens.
            let _ = enrolled.recv();
            started
        });
        match started {
            Ok(control) => server.threads().push(control),
            Err(error) => {
                server.shared.events.close();
                server.shared.helper.end();
                server.join();
                // Somebody may know it already, and wait.
                server.shared.phases.set(Phase::Stopped);
                server.shared.settle(Err(error.clone()));
                server.shared.events.end();
                server.shared.outcome.tell();
                return Err(error);
            }
        }
        Ok(server)
    }
}
