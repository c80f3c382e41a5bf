//! Random lives of a connection: what a stop promises, and that the books balance.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Sleep, sleep, timeout};

use super::{Bench, GRACE, HEADER, IDLE, LINGER, PARK, Run, TICK, config};
use crate::conn::{Body, BoxError, Plain};
use crate::phase::Phase;
use crate::server::Server;

/// Longer than anything takes that ends by itself.
const LONG: u32 = 100;

/// What stands in the client's bytes. Times are in ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Item {
    /// Answered after a while.
    Get {
        after: u32,
    },
    /// Answered in pieces, each after a while.
    Stream {
        pieces: u8,
        pause: u32,
    },
    /// Answered with so much, which may be more than the sockets hold.
    Big {
        len: usize,
    },
    /// Answered with its body.
    Echo {
        len: usize,
        chunked: bool,
    },
    /// Answered after a while, its body not read.
    Early {
        len: usize,
        chunked: bool,
        after: u32,
    },
    /// Answered at once, its body kept for a while, and then dropped, or read slowly.
    Kept {
        len: usize,
        chunked: bool,
        after: u32,
        reads: bool,
    },
    /// Not answered.
    Never,
    Panic,
    Upgrade,
    Http10,
    /// The client says `Connection: close`.
    Last,
    BadHead,
    BadChunk,
    EmptyLine {
        bare: bool,
    },
}

impl Item {
    fn bytes(self, index: usize) -> Vec<u8> {
        let head = |method: &str, version: &str, fields: &str| {
            format!("{method} /{index} HTTP/1.{version}\r\nhost: a\r\n{fields}\r\n").into_bytes()
        };
        match self {
            Self::Echo { len, chunked }
            | Self::Early { len, chunked, .. }
            | Self::Kept { len, chunked, .. }
                if chunked =>
            {
                let mut bytes = head("POST", "1", "transfer-encoding: chunked\r\n");
                for chunk in content(index, len).chunks(97) {
                    bytes.extend(format!("{:x};x=y\r\n", chunk.len()).into_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\na: b\r\n\r\n");
                bytes
            }
            Self::Echo { len, .. } | Self::Early { len, .. } | Self::Kept { len, .. } => {
                let mut bytes = head("POST", "1", &format!("content-length: {len}\r\n"));
                bytes.extend(content(index, len));
                bytes
            }
            Self::BadChunk => {
                let mut bytes = head("POST", "1", "transfer-encoding: chunked\r\n");
                bytes.extend(b"1\r\naX\r\n");
                bytes
            }
            Self::Upgrade => head("GET", "1", "connection: upgrade\r\nupgrade: x\r\n"),
            Self::Http10 => head("GET", "0", ""),
            Self::Last => head("GET", "1", "connection: close\r\n"),
            Self::BadHead => head("GET", "1", "no field\r\n"),
            Self::EmptyLine { bare: true } => b"\n".into(),
            Self::EmptyLine { bare: false } => b"\r\n".into(),
            _ => head("GET", "1", ""),
        }
    }

    /// The answer's status and body.
    fn answer(self, index: usize) -> (u16, Vec<u8>) {
        match self {
            Self::Stream { pieces, .. } => (200, content(index, 10).repeat(pieces.into())),
            Self::Big { len } | Self::Echo { len, .. } => (200, content(index, len)),
            Self::Panic => (500, Vec::new()),
            Self::Upgrade => (101, Vec::new()),
            Self::BadHead | Self::BadChunk => (400, Vec::new()),
            _ => (200, content(index, 10)),
        }
    }

    /// What comes behind it is not answered, or need not be.
    fn is_last(self) -> bool {
        match self {
            Self::Upgrade | Self::Http10 | Self::Last | Self::BadHead | Self::BadChunk => true,
            // Where it ends is known only to who reads it.
            Self::Early { chunked, .. } | Self::Kept { chunked, .. } => chunked,
            _ => false,
        }
    }
}

fn content(index: usize, len: usize) -> Vec<u8> {
    let unit = format!("{index};");
    unit.bytes().cycle().take(len).collect()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The next bytes.
    Send(usize),
    /// The rest of the item, and so many bytes more.
    SendItem(usize),
    /// The next bytes, just before the server's task next runs.
    Ambush(usize),
    Wait(u32),
    Read(bool),
    Phase,
    Kill,
    HalfClose,
    Close {
        reset: bool,
    },
}

#[derive(Clone, Debug)]
struct Case {
    items: Vec<Item>,
    steps: Vec<Step>,
    /// Whether in the end all is sent.
    finish: bool,
    /// Whether there is an idle timeout.
    idle: bool,
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        6 => Just(Item::Get { after: 0 }),
        4 => (1..6u32).prop_map(|after| Item::Get { after }),
        2 => (0..4u8, 0..3u32).prop_map(|(pieces, pause)| Item::Stream { pieces, pause }),
        2 => (10_000..80_000usize).prop_map(|len| Item::Big { len }),
        3 => (0..400usize, any::<bool>()).prop_map(|(len, chunked)| Item::Echo { len, chunked }),
        2 => (prop_oneof![0..400usize, 0..40_000usize], any::<bool>(), 0..4u32)
            .prop_map(|(len, chunked, after)| Item::Early { len, chunked, after }),
        2 => (prop_oneof![0..400usize, 0..40_000usize], any::<bool>(), 0..12u32, any::<bool>())
            .prop_map(|(len, chunked, after, reads)| Item::Kept { len, chunked, after, reads }),
        1 => Just(Item::Never),
        1 => Just(Item::Panic),
        1 => Just(Item::Upgrade),
        1 => Just(Item::Http10),
        1 => Just(Item::Last),
        1 => Just(Item::BadHead),
        1 => Just(Item::BadChunk),
        3 => any::<bool>().prop_map(|bare| Item::EmptyLine { bare }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..4usize).prop_map(Step::Send),
        2 => (1..100usize).prop_map(Step::Send),
        6 => prop_oneof![Just(0), 1..40usize].prop_map(Step::SendItem),
        2 => (1..60usize).prop_map(Step::Ambush),
        6 => (0..3u32).prop_map(Step::Wait),
        4 => (1..LINGER + 2).prop_map(Step::Wait),
        1 => (HEADER - 1..HEADER + 2).prop_map(Step::Wait),
        2 => (IDLE - 1..IDLE + PARK + 2).prop_map(Step::Wait),
        2 => any::<bool>().prop_map(Step::Read),
        4 => Just(Step::Phase),
        1 => prop_oneof![
            Just(Step::Kill),
            Just(Step::HalfClose),
            any::<bool>().prop_map(|reset| Step::Close { reset }),
        ],
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let items = prop::collection::vec(item(), 0..6);
    let steps = prop::collection::vec(step(), 0..16);
    let case = (items, steps, any::<bool>(), any::<bool>());
    case.prop_map(|(items, steps, finish, idle)| Case {
        items,
        steps,
        finish,
        idle,
    })
}

/// What the service knows.
#[derive(Debug, Default)]
struct World {
    items: Vec<Item>,
    /// How many bytes the client has sent.
    sent: AtomicUsize,
    is_stopping: AtomicBool,
    calls: AtomicUsize,
    /// Of each response that was ready: its request, what had been sent, and whether the server stopped.
    ready: Mutex<Vec<(usize, usize, bool)>>,
}

#[derive(Clone, Debug)]
struct Script(Arc<World>);

impl Service<Request<Body>> for Script {
    type Response = Response<Pieces>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn call(&self, request: Request<Body>) -> Self::Future {
        let world = Arc::clone(&self.0);
        world.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let index = request.uri().path()[1..].parse().unwrap();
            let item: Item = world.items[index];
            let response = respond(item, index, request).await;
            let sent = world.sent.load(Ordering::Relaxed);
            let is_stopping = world.is_stopping.load(Ordering::Relaxed);
            world.ready.lock().unwrap().push((index, sent, is_stopping));
            if item == Item::Panic {
                // Tells no panic hook.
                std::panic::resume_unwind(Box::new(()));
            }
            Ok(response)
        })
    }
}

async fn respond(item: Item, index: usize, request: Request<Body>) -> Response<Pieces> {
    let (status, mut body) = item.answer(index);
    match item {
        Item::Get { after } | Item::Early { after, .. } => sleep(after * TICK).await,
        Item::Kept { after, reads, .. } => {
            tokio::spawn(async move {
                sleep(after * TICK).await;
                let mut body = request.into_body();
                let mut pieces = 0_u32;
                while reads && let Some(Ok(_)) = body.frame().await {
                    pieces += 1;
                    if pieces.is_multiple_of(16) {
                        sleep(TICK).await;
                    }
                }
            });
        }
        Item::Never => std::future::pending().await,
        Item::Stream { pieces, pause } => {
            let piece = Bytes::from(content(index, 10));
            return Response::new(Pieces {
                rest: std::iter::repeat_n(piece, pieces.into()).collect(),
                exact: false,
                pause,
                paused: None,
            });
        }
        Item::Upgrade => {
            tokio::spawn(async move {
                if let Ok(upgraded) = hyper::upgrade::on(request).await {
                    let mut io = TokioIo::new(upgraded);
                    let _ = io.write_all(b"hello").await;
                    let _ = timeout(3 * TICK, io.read_to_end(&mut Vec::new())).await;
                }
            });
        }
        Item::Echo { .. } | Item::BadChunk => match request.into_body().collect().await {
            Ok(whole) => body = whole.to_bytes().into(),
            Err(_) => return answer(400, Vec::new()),
        },
        _ => {}
    }
    answer(status, body)
}

fn answer(status: u16, body: Vec<u8>) -> Response<Pieces> {
    let mut response = Response::new(Pieces {
        rest: [Bytes::from(body)].into(),
        exact: true,
        pause: 0,
        paused: None,
    });
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A body in pieces, each after a pause.
#[derive(Debug)]
struct Pieces {
    rest: VecDeque<Bytes>,
    exact: bool,
    pause: u32,
    paused: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.pause > 0 {
            let time = self.pause * TICK;
            let paused = self.paused.get_or_insert_with(|| Box::pin(sleep(time)));
            ready!(paused.as_mut().poll(cx));
            self.paused = None;
        }
        Poll::Ready(self.rest.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.exact {
            SizeHint::with_exact(self.rest.iter().map(|piece| piece.len() as u64).sum())
        } else {
            SizeHint::default()
        }
    }
}

/// A response as the client sees it.
#[derive(Debug)]
struct Answer {
    status: u16,
    closes: bool,
    body: Vec<u8>,
    is_whole: bool,
}

/// The responses in the bytes; `end`: there will be no more.
fn answers(mut bytes: &[u8], end: bool) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
        let head = std::str::from_utf8(&bytes[..at]).unwrap().to_lowercase();
        bytes = &bytes[at + 4..];
        let status = head["http/1.1 ".len()..][..3].parse().unwrap();
        let field = |name| head.lines().find_map(|line| line.strip_prefix(name));
        let mut body = Vec::new();
        let mut is_whole = status == 101;
        if let Some(length) = field("content-length: ") {
            let length: usize = length.parse().unwrap();
            let (now, rest) = bytes.split_at(length.min(bytes.len()));
            body.extend(now);
            is_whole = now.len() == length;
            bytes = rest;
        } else if field("transfer-encoding: chunked").is_some() {
            while let Some(at) = bytes.windows(2).position(|two| two == b"\r\n") {
                let size = std::str::from_utf8(&bytes[..at]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                let Some(chunk) = bytes.get(at + 2..at + 4 + size) else {
                    break;
                };
                body.extend(&chunk[..size]);
                bytes = &bytes[at + 4 + size..];
                is_whole = size == 0;
                if is_whole {
                    break;
                }
            }
        } else if status != 101 {
            body.extend(bytes);
            is_whole = end;
        }
        answers.push(Answer {
            status,
            closes: field("connection: close").is_some(),
            body,
            is_whole,
        });
        if !is_whole || status == 101 {
            break;
        }
    }
    answers
}

/// A case as it went.
#[allow(clippy::struct_excessive_bools, reason = "each says another thing")]
struct Outcome {
    run: Run,
    world: Arc<World>,
    bytes: Vec<u8>,
    /// Where each item ends in the bytes.
    ends: Vec<usize>,
    /// After each sending: when, and how much in all.
    sent: Vec<(u32, usize)>,
    /// What lies in ambush: up to where, whether in time, and whether it has come out.
    ambush: Option<(usize, bool, Arc<AtomicBool>)>,
    /// When one last came out.
    ambushed_at: Option<u32>,
    /// How much was sent when nothing said yet that it was too late.
    in_time: usize,
    /// How much was sent while the server had the socket.
    received: usize,
    stop: Option<u32>,
    kill: Option<u32>,
    /// The client has left.
    left: bool,
    half_closed: bool,
    /// It did not always read.
    deaf: bool,
    /// Only a kill ended it.
    hung: bool,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let got = &self.run.peer.got;
        f.debug_struct("Outcome")
            .field("sent", &self.sent)
            .field("in_time", &self.in_time)
            .field("stop", &self.stop)
            .field("kill", &self.kill)
            .field("ended", &(self.run.ended, self.run.peer.end))
            .field("gone", &self.run.gone)
            .field("got", &String::from_utf8_lossy(&got[..got.len().min(600)]))
            .finish_non_exhaustive()
    }
}

impl Outcome {
    fn is_over(&self) -> bool {
        let peer = &self.run.peer;
        let last = answers(&peer.got, peer.end.is_some());
        let last = last.last();
        peer.end.is_some() || last.is_some_and(|last| last.closes || last.status == 101)
    }

    /// Writes down that the ambush has come out, or calls it off.
    fn note(&mut self, call_off: bool) {
        if let Some((upto, in_time, is_out)) = &self.ambush {
            if is_out.load(Ordering::Relaxed) {
                self.sent.push((self.run.tick, *upto));
                self.ambushed_at = Some(self.run.tick);
                self.received = *upto;
                if *in_time {
                    self.in_time = *upto;
                }
            } else if !call_off {
                return;
            }
            self.ambush = None;
            *self.run.worker.ambush.lock().unwrap() = None;
        }
    }

    async fn ambush(&mut self, count: usize) {
        self.run.catch_up().await;
        self.note(true);
        let from = self.sent.last().map_or(0, |&(_, upto)| upto);
        let upto = (from + count).min(self.bytes.len());
        let stream = self.run.peer.stream.as_ref();
        let Some(stream) = stream.filter(|_| upto > from && !self.half_closed) else {
            return;
        };
        let mut stream = stream.try_clone().unwrap();
        let bytes = self.bytes[from..upto].to_vec();
        let is_out = Arc::new(AtomicBool::new(false));
        // Nothing that the server does is between this and the ambush.
        self.ambush = Some((upto, !self.is_over(), Arc::clone(&is_out)));
        let world = Arc::clone(&self.world);
        *self.run.worker.ambush.lock().unwrap() = Some(Box::new(move || {
            if stream.write(&bytes).is_ok() {
                world.sent.store(upto, Ordering::Relaxed);
                is_out.store(true, Ordering::Relaxed);
            }
        }));
    }

    async fn tick(&mut self) {
        self.run.tick().await;
        self.note(false);
    }

    async fn send(&mut self, upto: usize) {
        self.run.catch_up().await;
        self.note(true);
        let from = self.sent.last().map_or(0, |&(_, upto)| upto);
        let upto = upto.min(self.bytes.len());
        if upto <= from || self.left || self.half_closed {
            return;
        }
        let is_over = self.is_over();
        // The service may look before the call returns.
        self.world.sent.store(upto, Ordering::Relaxed);
        let gone = self.run.gone.is_some();
        if !self.run.send(&self.bytes[from..upto]).await {
            return;
        }
        self.sent.push((self.run.tick, upto));
        if !is_over {
            self.in_time = upto;
        }
        if !gone {
            self.received = upto;
        }
    }

    async fn enter(&mut self, phase: Phase) {
        if self.run.shared.phases.get() >= phase {
            return;
        }
        self.world.is_stopping.store(true, Ordering::Relaxed);
        self.stop.get_or_insert(self.run.tick);
        if phase == Phase::Killing {
            self.kill = Some(self.run.tick);
            self.run.kill().await;
        } else {
            self.run.enter(phase).await;
        }
        self.note(false);
    }

    async fn step(&mut self, step: Step) {
        self.note(false);
        let at = self.sent.last().map_or(0, |&(_, upto)| upto);
        match step {
            Step::Ambush(count) => self.ambush(count).await,
            Step::Send(count) => self.send(at + count).await,
            Step::SendItem(more) => {
                let end = self.ends.iter().find(|end| **end > at);
                if let Some(end) = end {
                    self.send(end + more).await;
                }
            }
            Step::Wait(ticks) => {
                for _ in 0..ticks {
                    self.tick().await;
                }
            }
            Step::Read(reads) => {
                self.deaf |= !reads;
                self.run.peer.is_reading = reads;
                self.run.settle().await;
            }
            Step::Phase => match self.run.shared.phases.get() {
                Phase::Serving => self.enter(Phase::Quiescing).await,
                _ => self.enter(Phase::Draining).await,
            },
            Step::Kill => self.enter(Phase::Killing).await,
            Step::HalfClose => {
                self.note(true);
                self.half_closed = true;
                self.run.half_close().await;
            }
            Step::Close { reset } => {
                self.note(true);
                self.left = true;
                self.run.close(reset).await;
            }
        }
    }
}

async fn run(case: &Case, bench: &Bench) -> Outcome {
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    for (index, item) in case.items.iter().enumerate() {
        bytes.extend(item.bytes(index));
        ends.push(bytes.len());
    }
    let world = Arc::new(World {
        items: case.items.clone(),
        ..World::default()
    });
    let mut builder = Server::builder();
    if case.idle {
        builder = builder.idle_timeout(IDLE * TICK);
    }
    let mut outcome = Outcome {
        run: Run::start_with(bench, &Plain(Script(Arc::clone(&world))), builder),
        world,
        bytes,
        ends,
        sent: Vec::new(),
        ambush: None,
        ambushed_at: None,
        in_time: 0,
        received: 0,
        stop: None,
        kill: None,
        left: false,
        half_closed: false,
        deaf: false,
        hung: false,
    };
    outcome.run.settle().await;
    for step in &case.steps {
        outcome.step(*step).await;
    }
    if case.finish {
        outcome.send(usize::MAX).await;
    }
    outcome.enter(Phase::Quiescing).await;
    for _ in 0..LONG {
        if outcome.run.gone.is_some() {
            break;
        }
        outcome.tick().await;
    }
    if outcome.run.gone.is_none() {
        outcome.hung = true;
        outcome.enter(Phase::Killing).await;
    }
    outcome.run.catch_up().await;
    outcome
}

/// Whether there is more than empty lines.
fn begins_request(mut bytes: &[u8]) -> bool {
    while let [b'\n', rest @ ..] | [b'\r', b'\n', rest @ ..] = bytes {
        bytes = rest;
    }
    !matches!(bytes, [] | b"\r")
}

#[allow(clippy::too_many_lines, reason = "one list of all that must hold")]
fn check(case: &Case, outcome: &Outcome) -> Result<(), TestCaseError> {
    let Outcome { run, bytes, .. } = outcome;
    let peer = &run.peer;
    let answers = answers(&peer.got, peer.end.is_some());
    let whole = answers.iter().filter(|answer| answer.is_whole).count();
    let sent = outcome.sent.last().map_or(0, |&(_, upto)| upto);
    let when = |at: usize| {
        let sending = outcome.sent.iter().find(|(_, upto)| *upto > at);
        sending.map(|(tick, _)| *tick)
    };
    // Index, item, beginning, and end of each request.
    let requests: Vec<_> = (0..case.items.len())
        .filter(|index| !matches!(case.items[*index], Item::EmptyLine { .. }))
        .map(|index| {
            let end = outcome.ends[index];
            let item = case.items[index];
            (index, item, end - item.bytes(index).len(), end)
        })
        .collect();
    let undisturbed = outcome.kill.is_none() && !outcome.left;
    let report = run.shared.report();

    // Responses are the right ones, in order.
    prop_assert!(answers.len() <= requests.len(), "an answer to nothing");
    for (answer, (index, item, _, end)) in answers.iter().zip(&requests) {
        let (status, body) = item.answer(*index);
        if answer.status == 408 {
            prop_assert!(report.conns_timed_out == 1, "of {}: too late?", index);
        } else if *end <= sent && *item != Item::BadChunk {
            prop_assert_eq!(answer.status, status, "to {}", index);
            prop_assert!(body.starts_with(&answer.body), "of {}", index);
            prop_assert!(!answer.is_whole || answer.body == body, "cut, to {}", index);
        }
    }

    let ready = outcome.world.ready.lock().unwrap();
    // hyper reads of a body that is not wanted what is there at once, and else closes, and says so.
    let is_last = |index, item: Item| {
        let position = requests.iter().position(|request| request.0 == index);
        let closes = position
            .and_then(|at| answers.get(at))
            .is_none_or(|answer| answer.closes);
        item.is_last() || matches!(item, Item::Early { .. } | Item::Kept { .. }) && closes
    };

    // What has come in time is answered.
    let mut due = 0;
    for (index, item, begin, end) in &requests {
        let head = bytes[*begin..]
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + begin
            + 3;
        let is_slow = match (when(*begin), when(head)) {
            (Some(begin), Some(head)) => head - begin >= HEADER,
            _ => true,
        };
        if *begin >= outcome.in_time || *end > sent || is_slow || *item == Item::Never {
            break;
        }
        if *item != Item::BadChunk {
            due = due.max(requests.iter().position(|r| r.0 == *index).unwrap() + 1);
        }
        if is_last(*index, *item) {
            break;
        }
    }
    if undisturbed {
        prop_assert!(whole >= due, "lost: {} of {} answered", whole, due);
    }

    // Responses say so when, and only when, the connection ends behind them.
    for (position, answer) in answers.iter().enumerate() {
        let (index, item, _, end) = requests[position];
        prop_assert!(
            !answer.closes || position + 1 == answers.len(),
            "more behind the end"
        );
        let Some((_, sent, is_stopping)) = ready.iter().find(|ready| ready.0 == index) else {
            continue;
        };
        let behind = begins_request(&bytes[end.min(*sent)..*sent]);
        match item {
            Item::Early { len: 1.., .. }
            | Item::Early { chunked: true, .. }
            | Item::Kept { .. } => {
                let says_enough = answer.closes || *sent > end || !is_stopping;
                prop_assert!(says_enough, "{} closes", index);
            }
            Item::Upgrade | Item::Http10 | Item::Last | Item::BadHead | Item::BadChunk => {}
            _ if end > *sent && !matches!(item, Item::Early { .. }) => {}
            _ => prop_assert_eq!(answer.closes, *is_stopping && !behind, "closes, {}", index),
        }
    }

    // It ends in time, not too early, and at once at a kill.
    let stop = outcome.stop.unwrap();
    let is_reading = peer.is_reading;
    // An ambush may wait until the kill, because nothing else makes the task run.
    let upto = |tick: u32| {
        let before = outcome.sent.iter().filter(|(when, _)| *when < tick);
        before.map(|(_, upto)| *upto).max().unwrap_or(0)
    };
    let sent_to_hung = outcome.kill.map_or(sent, |kill| upto(kill).min(sent));
    let may_hang = !is_reading
        || requests.iter().any(|(_, item, begin, end)| {
            *begin < sent_to_hung && (*end > sent_to_hung || *item == Item::Never)
        });
    prop_assert!(!outcome.hung || may_hang, "it hangs");
    prop_assert!(run.gone.is_some(), "not even a kill has ended it");
    if let Some(kill) = outcome.kill {
        prop_assert!(run.gone.unwrap() <= kill, "alive after the kill");
    }
    let ends_by_stop = !answers
        .iter()
        .zip(&requests)
        .any(|(_, (index, item, ..))| is_last(*index, *item));
    let by_client =
        outcome.left || outcome.half_closed || !ends_by_stop || report.conns_timed_out > 0;
    let announced = answers.last().is_some_and(|answer| answer.closes);
    if !outcome.deaf
        && outcome.kill.is_none()
        && let (Some(ended), false) = (run.ended, by_client)
    {
        prop_assert_eq!(peer.end, Some(true), "reset");
        let is_idle_timeout = case.idle && !announced && ended <= stop;
        if is_idle_timeout {
            let is_early = |(tick, upto): &(u32, usize)| {
                let begin = outcome.sent.iter().filter(|(_, until)| until < upto);
                let begin = begin.map(|(_, until)| *until).max().unwrap_or(0);
                *upto <= outcome.in_time
                    && begins_request(&bytes[begin..*upto])
                    && ended < tick + IDLE
            };
            prop_assert!(!outcome.sent.iter().any(is_early), "no patience");
        } else if !announced {
            prop_assert!(ended >= stop + GRACE, "no grace");
        }
        prop_assert!(run.gone.unwrap() <= ended + LINGER, "lingers too long");
        if outcome.sent.iter().all(|(tick, _)| *tick + 20 < stop)
            && sent == outcome.ends.last().copied().unwrap_or(0)
        {
            let has_idled = case.idle && stop > 20;
            let in_time = is_idle_timeout || !has_idled && ended == stop + GRACE;
            prop_assert!(in_time, "idle for too long");
        }
    }

    // The books balance.
    prop_assert_eq!(
        report.requests,
        report.served + report.failed + report.gone + report.killed,
        "{:?}",
        report
    );
    let ways = report.conns_closed
        + report.closed_idle
        + report.raced
        + report.conns_gone
        + report.conns_timed_out
        + report.conns_killed;
    prop_assert_eq!(
        (1, 1, 0),
        (report.connections, ways, report.conns_open),
        "{:?}",
        report
    );
    let calls = outcome.world.calls.load(Ordering::Relaxed) as u64;
    let is_cut = outcome.kill.is_some() && report.requests == calls + 1;
    prop_assert!(
        report.requests == calls || is_cut,
        "{} calls: {:?}",
        calls,
        report
    );
    if outcome.kill.is_none() {
        prop_assert_eq!(report.killed + report.conns_killed, 0, "{:?}", report);
    }
    // Refusals, hyper's and ours, are no requests.
    let refused = answers
        .iter()
        .zip(&requests)
        .filter(|(answer, r)| r.1 == Item::BadHead || answer.status == 408)
        .count();
    let answered = (whole - refused) as u64;
    // What was upgraded does not wait until the client has acknowledged it.
    let upgraded = answers.last().is_some_and(|answer| answer.status == 101);
    if undisturbed && upgraded {
        prop_assert!(report.served <= answered, "{:?}", report);
    } else if undisturbed {
        prop_assert_eq!(report.served, answered, "{:?}", report);
    }
    if let Some(kill) = outcome.kill
        && !outcome.left
    {
        // What counts as served has arrived; only of those before the stop it is not known of all.
        if ready.iter().filter(|ready| !ready.2).count() <= 1 {
            prop_assert!(report.served <= (whole - refused) as u64, "{:?}", report);
        }
        // A head of which a byte has come is a request.
        if whole == answers.len()
            && !announced
            && let Some((_, _, begin, _)) = requests.get(whole)
            && *begin < outcome.in_time
            && bytes[*begin..sent]
                .windows(4)
                .all(|four| four != b"\r\n\r\n")
            && (kill.saturating_sub(HEADER) + 1..kill).contains(&when(*begin).unwrap())
            && !by_client
        {
            prop_assert!(is_cut && report.conns_killed == 1, "{:?}", report);
        }
    }
    if undisturbed && !by_client {
        let answered = whole.checked_sub(1).map_or(0, |last| requests[last].3);
        // As the socket is closed, one may come unseen.
        let in_vain = outcome.ambushed_at.is_some() && outcome.ambushed_at == run.gone;
        let raced = begins_request(&bytes[answered.min(outcome.received)..outcome.received]);
        prop_assert!(
            in_vain || report.raced == u64::from(raced),
            "raced: {:?}",
            report
        );
    }
    Ok(())
}

#[test]
fn whatever_happens_the_promise_holds_and_the_books_balance() {
    let bench = Bench::new();
    let result = TestRunner::new(config(3_000)).run(&case(), |case| {
        bench.runtime.block_on(async {
            let outcome = run(&case, &bench).await;
            check(&case, &outcome)
                .map_err(|error| TestCaseError::fail(format!("{error}\n{outcome:?}")))
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// As the test above, with what it has found once.
fn holds(items: &[Item], steps: &[Step]) {
    holds_with(items, steps, false);
}

fn holds_with(items: &[Item], steps: &[Step], idle: bool) {
    let case = Case {
        items: items.to_vec(),
        steps: steps.to_vec(),
        finish: false,
        idle,
    };
    let bench = Bench::new();
    bench.runtime.block_on(async {
        let outcome = run(&case, &bench).await;
        if let Err(error) = check(&case, &outcome) {
            panic!("{error}\n{outcome:?}");
        }
    });
}

#[test]
fn a_failed_handlers_response_says_that_it_is_the_last() {
    holds(&[Item::Panic], &[Step::Phase, Step::SendItem(0)]);
}

#[test]
fn nothing_is_answered_behind_a_response_that_was_the_last() {
    // hyper still holds the end of the body, for a handler that has not asked for it.
    let early = Item::Early {
        len: 1,
        chunked: true,
        after: 1,
    };
    let steps = [
        Step::SendItem(0),
        Step::Phase,
        Step::Wait(1),
        Step::SendItem(0),
    ];
    holds(&[early, Item::Get { after: 0 }], &steps);
}

#[test]
fn a_response_before_a_long_unread_body_says_that_it_is_the_last() {
    let early = Item::Early {
        len: 30_000,
        chunked: false,
        after: 1,
    };
    holds(
        &[early, Item::Get { after: 0 }],
        &[Step::Phase, Step::SendItem(100)],
    );
}

#[test]
fn a_client_that_still_sends_what_nobody_reads_is_not_idle() {
    let early = Item::Early {
        len: 9,
        chunked: false,
        after: 0,
    };
    // All but the body, and then a byte of it.
    let steps = [
        Step::SendItem(0),
        Step::Wait(IDLE),
        Step::Send(48),
        Step::Wait(1),
        Step::Send(1),
        Step::Wait(IDLE + PARK),
    ];
    holds_with(&[early, early], &steps, true);
    holds_with(&[early], &steps[2..], true);
}

#[test]
fn each_head_has_its_own_time() {
    let get = Item::Get { after: 0 };
    let steps = [
        Step::Send(1),
        Step::Wait(HEADER - 1),
        Step::SendItem(1),
        Step::Wait(HEADER - 1),
        Step::SendItem(0),
    ];
    holds(&[get, get], &steps);
}

#[test]
fn a_connection_lingers_whose_head_does_not_come() {
    let case = Case {
        items: vec![Item::Get { after: 0 }],
        steps: vec![Step::Send(1), Step::Wait(HEADER), Step::Send(1)],
        finish: false,
        idle: false,
    };
    let bench = Bench::new();
    let outcome = bench.runtime.block_on(run(&case, &bench));
    // Without the lingering, the last byte would have met a reset.
    assert_eq!(outcome.run.peer.end, Some(true), "{outcome:?}");
    assert_eq!(outcome.run.ended, Some(HEADER), "{outcome:?}");
    assert_eq!(outcome.run.gone, Some(HEADER + LINGER), "{outcome:?}");
}

#[test]
fn a_request_behind_the_end_is_seen_for_as_long_as_the_client_has_not_got_all() {
    let items = [Item::Big { len: 36_000 }, Item::Get { after: 0 }];
    let steps = [
        Step::Phase,
        Step::Read(false),
        Step::SendItem(0),
        Step::Wait(LINGER + 3),
        Step::Send(1),
    ];
    holds(&items, &steps);
}
