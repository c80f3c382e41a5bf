//! What the tests share: a small blocking HTTP/1.1 client on a raw socket, and ways to wait for a moment without sleeping.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "every test file uses some of it, and a helper that fails fails its test"
)]

pub(crate) mod deny;
pub(crate) mod tls;

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs;
use std::future::{Future, Ready, ready};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response as HttpResponse, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{Empty, Full};
use httpdown::{
    Addr, Builder, ConnEvent, Dispatch, Event, Exchange, Listener, Listeners, Phase, Report,
    Result, Server, Stats,
};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Nothing that must happen takes longer, on however slow a machine; the deadline of every wait.
pub(crate) const LONG: Duration = Duration::from_secs(50);

/// A server that gives idle connections hardly any time at a stop: most clients here stay idle, and answer no FIN.
/// Where the environment says `HTTPDOWN_TEST_SOCKETS=tls`, it speaks TLS, like every [`Client`].
pub(crate) fn builder() -> Builder {
    let builder = Server::builder()
        .idle_grace(Duration::from_millis(5))
        .linger_timeout(Duration::from_millis(50))
        // Handlers here mostly see a body as it comes.
        .body_buffer(NonZeroUsize::MIN);
    if tls::is_everywhere() {
        builder.tls(tls::settings())
    } else {
        builder
    }
}

/// A listener as [`tcp_listener`], or, where the environment says `HTTPDOWN_TEST_SOCKETS=unix`, of a Unix socket: so the
/// same tests are run once more.
pub(crate) fn listener() -> Listener {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    if std::env::var("HTTPDOWN_TEST_SOCKETS").is_ok_and(|kind| kind == "unix") {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Without a file: what is killed leaves nothing behind.
        return Listener::bind(&format!(
            "unix:@httpdown-test-{}-{count}",
            std::process::id()
        ))
        .unwrap();
    }
    tcp_listener()
}

/// A listener on a free port, and on a loopback address of its own: else a client that comes again after a stop might
/// find the server of another test, to which the kernel has given the same port.
pub(crate) fn tcp_listener() -> Listener {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) % 2_000 + 1;
    let own = (std::process::id() % 8_000) << 11 | count;
    let addr = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 0, 0).to_bits() | own);
    Listener::bind(&format!("{addr}:0")).unwrap()
}

/// Where a client connects to.
pub(crate) trait Place {
    fn sockaddr(&self) -> SockAddr;
}

impl Place for SocketAddr {
    fn sockaddr(&self) -> SockAddr {
        (*self).into()
    }
}

impl Place for Addr {
    fn sockaddr(&self) -> SockAddr {
        if let Some(ip) = self.as_ip() {
            return ip.into();
        }
        let unix = self.as_unix().unwrap();
        let addr = match (unix.path(), unix.abstract_name()) {
            (Some(path), _) => SockAddr::unix(path),
            (_, name) => SockAddr::unix(OsStr::from_bytes(&[b"\0", name.unwrap()].concat())),
        };
        addr.unwrap()
    }
}

impl<P: Place> Place for &P {
    fn sockaddr(&self) -> SockAddr {
        (*self).sockaddr()
    }
}

/// A socket that can connect to that place.
pub(crate) fn unconnected(to: impl Place) -> io::Result<(SockAddr, Socket)> {
    let addr = to.sockaddr();
    let socket = Socket::new(addr.domain(), Type::STREAM, None)?;
    Ok((addr, socket))
}

/// Where a server listens: for ever, so that it can be handed around.
pub(crate) fn addr(server: &Server) -> &'static Addr {
    Box::leak(Box::new(server.local_addrs()[0].clone()))
}

/// As [`addr`], of a server that listens on TCP.
pub(crate) fn ip(server: &Server) -> SocketAddr {
    server.local_addrs()[0].as_ip().unwrap()
}

/// Stops the server and waits for the end: for less than its stop timeout, so that a stop that hangs is seen.
pub(crate) fn stop(server: &Server) -> Result<Report> {
    server.stop_begin();
    wait(server)
}

pub(crate) fn wait(server: &Server) -> Result<Report> {
    server.wait_blocking(Some(Instant::now() + LONG))
}

/// Stops on a thread of its own.
pub(crate) fn stop_elsewhere(server: &Server) -> JoinHandle<Result<Report>> {
    let server = server.clone();
    thread::spawn(move || stop(&server))
}

/// No request was lost or is missing in the report.
pub(crate) fn assert_balanced(report: &Report) {
    assert_eq!(
        report.requests,
        report.served + report.failed + report.gone + report.timed_out + report.killed,
        "{report:?}"
    );
    assert_eq!(
        report.connections,
        report.conns_closed
            + report.closed_idle
            + report.raced
            + report.conns_gone
            + report.conns_timed_out
            + report.conns_tls_failed
            + report.conns_tls_timed_out
            + report.conns_killed,
        "{report:?}"
    );
    assert_eq!(report.conns_open, 0, "{report:?}");
    assert_eq!(report.phase, Phase::Stopped, "{report:?}");
}

/// A server that answers every request at once, without a look at its body.
pub(crate) fn hello(builder: Builder, listeners: impl Into<Listeners>) -> Server {
    let handler = |exchange: Exchange| {
        let _ = reply(exchange, "hello");
    };
    builder
        .handle(listeners, Dispatch::default(), handler)
        .unwrap()
}

/// The same handler by each of the three ways: in place, by the pool, and from the queue.
pub(crate) fn each_way(
    builder: impl Fn() -> Builder,
    handler: impl Fn(Exchange) + Clone + Send + Sync + 'static,
) -> [Server; 3] {
    let handle = |dispatch| {
        let server = builder().handle(listener(), dispatch, handler.clone());
        server.unwrap()
    };
    let (inline, pool) = (handle(Dispatch::Inline), handle(Dispatch::default()));
    let (queued, queue) = builder().queue(listener()).unwrap();
    for _ in 0..3 {
        let (queue, handler) = (queue.clone(), handler.clone());
        thread::spawn(move || {
            while let Ok(taken) = queue.take(1, None) {
                taken.into_iter().for_each(&handler);
            }
        });
    }
    [inline, pool, queued]
}

/// A service that upgrades every connection, and has it run by this.
pub(crate) fn serve_upgrades<F>(
    builder: Builder,
    listener: Listener,
    run: impl Fn(TokioIo<Upgraded>) -> F + Clone + Send + Sync + 'static,
) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let service = service_fn(move |mut request: Request<httpdown::Body>| {
        let upgrade = hyper::upgrade::on(&mut request);
        let run = run.clone();
        tokio::spawn(async move { run(TokioIo::new(upgrade.await.unwrap())).await });
        let response = HttpResponse::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(Empty::<Bytes>::new())
            .unwrap();
        ready(Ok::<_, Infallible>(response)) as Ready<_>
    });
    builder.serve(listener, service).unwrap()
}

/// Answers with 200 and this text.
pub(crate) fn reply(exchange: Exchange, text: impl Into<Bytes>) -> Result<()> {
    exchange.reply(HttpResponse::new(text.into()))
}

/// A body that does not say how long it is.
#[derive(Debug)]
pub(crate) struct Unsized(pub(crate) Full<Bytes>);

impl Body for Unsized {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: Socket,
    tls: Option<Box<rustls::ClientConnection>>,
    /// Read, and not yet part of a response.
    rest: Vec<u8>,
}

/// A response as the client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The header's value, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl From<Socket> for Client {
    fn from(stream: Socket) -> Self {
        Self {
            stream,
            tls: tls::is_everywhere().then(tls::client),
            rest: Vec::new(),
        }
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Self {
        Self::from(Socket::from(stream))
    }
}

impl Client {
    pub(crate) fn connect(to: impl Place) -> Self {
        Self::try_connect(to).unwrap()
    }

    pub(crate) fn try_connect(to: impl Place) -> io::Result<Self> {
        let (addr, stream) = unconnected(to)?;
        // While a server quiesces, its kernel ignores who wants to connect: not worth a second's wait here.
        stream.connect_timeout(&addr, Duration::from_millis(250))?;
        stream.set_read_timeout(Some(LONG))?;
        stream.set_write_timeout(Some(LONG))?;
        if !addr.is_unix() {
            stream.set_tcp_nodelay(true)?;
        }
        let mut client = Self::from(stream);
        client.shake_hands()?;
        Ok(client)
    }

    /// A client that speaks TLS, as `config` says.
    pub(crate) fn secure(to: impl Place, config: &Arc<rustls::ClientConfig>) -> Self {
        Self::try_secure(to, config, "localhost").unwrap()
    }

    pub(crate) fn try_secure(
        to: impl Place,
        config: &Arc<rustls::ClientConfig>,
        name: &'static str,
    ) -> io::Result<Self> {
        let mut client = Self::silent(to, config, name);
        client.shake_hands()?;
        Ok(client)
    }

    /// A client that will speak TLS, and has not said anything yet. [`Client::seal`] of nothing is its first message.
    pub(crate) fn silent(
        to: impl Place,
        config: &Arc<rustls::ClientConfig>,
        name: &'static str,
    ) -> Self {
        Self::plain(to).with_tls(config, name)
    }

    /// The same connection, on which TLS is to begin.
    pub(crate) fn with_tls(
        mut self,
        config: &Arc<rustls::ClientConfig>,
        name: &'static str,
    ) -> Self {
        self.tls = Some(tls::client_by(config, name));
        self
    }

    /// A client that does not speak TLS, or not yet.
    pub(crate) fn plain(to: impl Place) -> Self {
        let (addr, stream) = unconnected(to).unwrap();
        stream.connect(&addr).unwrap();
        if !addr.is_unix() {
            stream.set_tcp_nodelay(true).unwrap();
        }
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Self {
            stream,
            tls: None,
            rest: Vec::new(),
        }
    }

    /// Begins TLS, where every client speaks it.
    pub(crate) fn speak_tls(&mut self) {
        if tls::is_everywhere() {
            self.tls = Some(tls::client());
            self.shake_hands().unwrap();
        }
    }

    /// If it speaks TLS: to the end of the handshake, as far as the client can tell.
    pub(crate) fn shake_hands(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.is_handshaking() {
                tls.complete_io(&mut self.stream)?;
            }
        }
        Ok(())
    }

    pub(crate) fn tls(&mut self) -> &mut rustls::ClientConnection {
        self.tls.as_mut().unwrap()
    }

    /// Writes what waits to be written.
    pub(crate) fn flush_tls(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.stream)?;
            }
        }
        Ok(())
    }

    /// The records of these bytes, behind all that waits to be written. They are not sent.
    pub(crate) fn seal(&mut self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let tls = self.tls();
        tls.writer().write_all(bytes.as_ref()).unwrap();
        let mut records = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut records).unwrap();
        }
        records
    }

    /// Connects and sends a request.
    pub(crate) fn get(to: impl Place, path: &str) -> Self {
        let mut client = Self::connect(to);
        client.ask(path);
        client
    }

    pub(crate) fn ask(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return self.stream.write_all(bytes.as_ref());
        };
        let mut stream = rustls::Stream::new(&mut **tls, &mut self.stream);
        stream.write_all(bytes.as_ref())?;
        stream.flush()
    }

    /// Sends what is not TLS, whether the client speaks it or not.
    pub(crate) fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a FIN; responses can still be read. If the connection is gone already, nothing.
    pub(crate) fn half_close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = self.flush_tls();
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Says its end by TLS, and does not close its side.
    pub(crate) fn say_end(&mut self) {
        self.tls().send_close_notify();
        self.flush_tls().unwrap();
    }

    /// Sends a FIN, and with TLS does not say so before. If the connection is gone already, nothing.
    pub(crate) fn fin(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection, with a reset where there is such a thing: a Unix socket is closed.
    pub(crate) fn reset(self) {
        let linger = Some(Duration::ZERO);
        self.stream.set_linger(linger).unwrap();
    }

    pub(crate) fn set_read_timeout(&self, timeout: Duration) {
        self.stream.set_read_timeout(Some(timeout)).unwrap();
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.stream
    }

    /// Its own address as a server sees it.
    pub(crate) fn name(&self) -> String {
        let own = self.stream.local_addr().unwrap();
        let ip = own.as_socket();
        ip.map_or_else(|| "unix:".to_owned(), |ip| ip.to_string())
    }

    /// Its own address, of TCP.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.stream.local_addr().unwrap().as_socket().unwrap()
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    /// Reads a response; a cut one is an error.
    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.try_head()?;
        answer.body = self.try_body(&answer)?;
        Ok(answer)
    }

    /// The head of a response. A body that follows is not read.
    pub(crate) fn try_head(&mut self) -> io::Result<Answer> {
        let head = self.until(b"\r\n\r\n")?;
        let wrong = || io::Error::new(ErrorKind::InvalidData, head.clone());
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.get(9..12));
        let status = status
            .and_then(|status| status.parse().ok())
            .ok_or_else(wrong)?;
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_lowercase(), value.trim().to_lowercase()))
            })
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        let body = Vec::new();
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    pub(crate) fn try_body(&mut self, head: &Answer) -> io::Result<Vec<u8>> {
        if let Some(length) = head.header("content-length") {
            return self.exactly(length.parse().map_err(io::Error::other)?);
        }
        if head.header("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            while let Some(chunk) = self.try_chunk()? {
                body.extend(chunk);
            }
            return Ok(body);
        }
        if head.status < 200 || head.status == 204 || head.status == 304 {
            return Ok(Vec::new());
        }
        self.until_end()
    }

    /// The next chunk of a chunked body; `None` is its end.
    pub(crate) fn try_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.until(b"\r\n")?;
        let length = usize::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        let chunk = self.exactly(length)?;
        self.exactly(2)?;
        Ok((length > 0).then_some(chunk))
    }

    /// Everything up to the end of the connection, which must not be a reset.
    pub(crate) fn until_end(&mut self) -> io::Result<Vec<u8>> {
        while self.more()? {}
        Ok(std::mem::take(&mut self.rest))
    }

    /// Asserts that the server ends the connection, in whatever way, with nothing more to read.
    pub(crate) fn assert_ended(mut self) {
        match self.until_end() {
            Ok(rest) => assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest)),
            // By TLS, a FIN alone is an error.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && self.tls.is_some() => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }

    /// Asserts that the server ends the connection with a FIN, and with nothing more to read.
    pub(crate) fn assert_closed(mut self) {
        let rest = self.until_end().unwrap();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }

    /// Everything that comes up to the end of the connection, as it comes: TLS is not decrypted.
    pub(crate) fn until_end_raw(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn until(&mut self, end: &[u8]) -> io::Result<String> {
        loop {
            if let Some(at) = self.rest.windows(end.len()).position(|part| part == end) {
                let found = self.rest.drain(..at + end.len()).collect();
                return String::from_utf8(found).map_err(io::Error::other);
            }
            self.some_more()?;
        }
    }

    pub(crate) fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.rest.len() < length {
            self.some_more()?;
        }
        Ok(self.rest.drain(..length).collect())
    }

    fn some_more(&mut self) -> io::Result<()> {
        let cut = || io::Error::new(ErrorKind::UnexpectedEof, "cut");
        self.more()?.then_some(()).ok_or_else(cut)
    }

    fn more(&mut self) -> io::Result<bool> {
        let mut buf = [0; 16 << 10];
        let count = loop {
            let read = match &mut self.tls {
                Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).read(&mut buf),
                None => self.stream.read(&mut buf),
            };
            match read {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.rest.extend(&buf[..count]);
        Ok(count > 0)
    }
}

/// Something that is shut until it is opened, for ever. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn open(&self) {
        *self.lock() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open. After [`LONG`] it panics: what waits for it to be passed must not be seen to come.
    pub(crate) fn pass(&self) {
        let waited = self
            .0
            .1
            .wait_timeout_while(self.lock(), LONG, |open| !*open);
        let (open, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_open = *open;
        drop(open);
        assert!(is_open, "nobody has opened the gate");
    }

    /// Opens when the result is dropped: what waits must not outlive a test that fails.
    pub(crate) fn open_at_end(&self) -> OpenAtEnd {
        OpenAtEnd(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct OpenAtEnd(Gate);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// What has happened, in order; a test waits until it says what it should. Clones are the same journal.
#[derive(Debug)]
pub(crate) struct Journal<T>(Arc<(Mutex<Vec<T>>, Condvar)>);

impl<T> Clone for Journal<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone + std::fmt::Debug> Journal<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new((Mutex::new(Vec::new()), Condvar::new())))
    }

    pub(crate) fn write(&self, entry: T) {
        self.lock().push(entry);
        self.0.1.notify_all();
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.lock().clone()
    }

    /// Waits until an entry is like this.
    pub(crate) fn wait_for(&self, what: impl Fn(&T) -> bool) {
        self.wait_until(|entries| entries.iter().any(&what));
    }

    pub(crate) fn wait_for_count(&self, count: usize) {
        self.wait_until(|entries| entries.len() >= count);
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, enough: impl Fn(&[T]) -> bool) {
        let result = self
            .0
            .1
            .wait_timeout_while(self.lock(), LONG, |entries| !enough(entries));
        let (entries, waited) = result.unwrap_or_else(PoisonError::into_inner);
        let entries = entries.clone();
        assert!(
            !waited.timed_out(),
            "what should happen did not: {entries:?}"
        );
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[track_caller]
pub(crate) fn wait_for_phase(server: &Server, phase: Phase) {
    let deadline = Instant::now() + LONG;
    while server.phase() < phase {
        assert!(Instant::now() < deadline, "{server:?}");
        thread::yield_now();
    }
}

/// Waits until the server's counts are like this. The counts have no event to wait for, so it looks again and again.
#[track_caller]
pub(crate) fn wait_for_report(server: &Server, enough: impl Fn(&Report) -> bool) -> Report {
    let deadline = Instant::now() + LONG;
    loop {
        let report = server.report();
        if enough(&report) {
            return report;
        }
        assert!(Instant::now() < deadline, "{report:?}");
        thread::yield_now();
    }
}

/// How many half-open handshakes there are at that port, in this thread's network namespace.
pub(crate) fn half_open(port: u16) -> usize {
    half_open_of(port, |_| true)
}

/// Of those, the ones whose client's port is as it should be.
fn half_open_of(port: u16, is_client: impl Fn(u16) -> bool) -> usize {
    let port_of = |field: &str| u16::from_str_radix(field.rsplit(':').next().unwrap(), 16).ok();
    // IPv4 clients of a dual-stack listener are in the second.
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .map(|path| fs::read_to_string(path).unwrap_or_default())
        .iter()
        .flat_map(|table| table.lines())
        .map(|line| line.split_whitespace().skip(1))
        .filter_map(|mut fields| Some((fields.next()?, fields.next()?, fields.next()?)))
        .filter(|(local, _, state)| port_of(local) == Some(port) && *state == "03")
        .filter(|(_, remote, _)| port_of(remote).is_some_and(&is_client))
        .count()
}

pub(crate) fn tcp(addr: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)).unwrap()
}

#[allow(unsafe_code, reason = "socket2 does not offer these options")]
pub(crate) fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) {
    // SAFETY: the kernel reads an int.
    let result = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, option, value, 4)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// With 255, a socket hears nobody but neighbours who care; with 0, everybody. A filter would need a privilege.
fn set_min_ttl(socket: &Socket, ttl: i32) {
    match socket.domain().unwrap() {
        Domain::IPV6 => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, ttl),
        _ => set_option(socket, libc::IPPROTO_IP, libc::IP_MINTTL, ttl),
    }
}

/// Waits for this client's. By its own port: the kernel may have given the server's to another test's server, too, on
/// another address.
pub(crate) fn wait_for_half_open(server: SocketAddr, client: SocketAddr) {
    let deadline = Instant::now() + LONG;
    while half_open_of(server.port(), |port| port == client.port()) == 0 {
        assert!(Instant::now() < deadline, "no half-open handshake");
        thread::yield_now();
    }
}

/// A client that hears nothing: its SYN arrives, the answer to it does not.
#[derive(Debug)]
pub(crate) struct Deaf(Socket);

impl Deaf {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let socket = tcp(addr);
        set_min_ttl(&socket, 255);
        socket.set_nonblocking(true).unwrap();
        let connecting = socket.connect(&addr.into()).unwrap_err();
        assert_eq!(connecting.raw_os_error(), Some(libc::EINPROGRESS));
        wait_for_half_open(addr, socket.local_addr().unwrap().as_socket().unwrap());
        Self(socket)
    }

    /// Now it hears: the server's kernel repeats its answer a second after the first, and the handshake goes on.
    pub(crate) fn hear(self) -> Client {
        set_min_ttl(&self.0, 0);
        let deadline = Instant::now() + LONG;
        // Connected or refused, it has an answer.
        while self.0.peer_addr().is_err() {
            assert!(Instant::now() < deadline, "no answer");
            if let Some(error) = self.0.take_error().unwrap() {
                panic!("{error}");
            }
            thread::yield_now();
        }
        self.0.set_nonblocking(false).unwrap();
        self.0.set_read_timeout(Some(LONG)).unwrap();
        Client::from(self.0)
    }
}

/// Says that this test is skipped, which CI takes for a failure.
pub(crate) fn skip(why: &dyn std::fmt::Display) {
    let in_ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    assert!(!in_ci, "{why}");
    // Not by eprintln, which the test harness would keep to itself.
    let name = thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(io::stderr(), "SKIP: {name}: {why}");
}

/// A bump of a statistic: its key, and its value.
pub(crate) type Bump = (String, f64);

/// Writes statistics into a journal; the key is preceded by the method, as in `sum stop`.
#[derive(Debug)]
pub(crate) struct Recorder(pub(crate) Journal<Bump>);

impl Recorder {
    pub(crate) fn new() -> (Self, Journal<Bump>) {
        let journal = Journal::new();
        (Self(journal.clone()), journal)
    }

    fn write(&self, method: &str, key: &str, value: f64) {
        self.0.write((format!("{method} {key}"), value));
    }
}

impl Stats for Recorder {
    fn bump_avg(&mut self, key: &str, value: f64) {
        self.write("avg", key, value);
    }

    fn bump_sum(&mut self, key: &str, value: f64) {
        self.write("sum", key, value);
    }

    fn bump_histogram(&mut self, key: &str, value: f64) {
        self.write("histogram", key, value);
    }

    fn bump_time(&mut self, key: &str, value: f64) {
        self.write("time", key, value);
    }
}

/// A callback that writes into a journal.
pub(crate) fn into_journal<T: Clone + std::fmt::Debug>(
    journal: &Journal<T>,
) -> impl FnMut(T) + use<T> {
    let journal = journal.clone();
    move |entry| journal.write(entry)
}

/// Takes all events of a server that has ended.
pub(crate) fn rest_of_events(server: &Server) -> Vec<Event> {
    std::iter::from_fn(|| server.next_event(Some(Instant::now() + LONG)).ok()).collect()
}

/// The states that a connection went through.
pub(crate) fn states_of(events: &[ConnEvent], id: u64) -> Vec<httpdown::ConnState> {
    let events = events.iter().filter(|event| event.id == id);
    events.map(|event| event.state).collect()
}
