//! A client: makes connections, sends requests, and says of each what became of it, by what it saw at its socket.

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until};

use crate::http::{Answer, Body, Parser};
use crate::modes::{Mode, Requests, Script};
use crate::stream::{Look, Place, Stream};
use crate::tally::{Outcome, Tally};
use crate::tls::Tls;

/// How long clients wait for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// A connection that takes longer is given up: refused.
    pub(crate) connect: Duration,
    /// From a request's first byte to its answer's last.
    pub(crate) request: Duration,
    /// How long after a request's first byte, and how often from then on, to look whether it reached a server that had
    /// not closed.
    pub(crate) crossing: Duration,
}

/// What all clients of a server share.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) place: Place,
    /// `--tls`
    pub(crate) tls: Option<Tls>,
    pub(crate) mode: &'static Mode,
    pub(crate) think: Duration,
    pub(crate) requests: Requests,
    /// What the server answered before the load began.
    pub(crate) expected: Expected,
    pub(crate) patience: Patience,
    /// From now on a refused connection is what is to be expected, and a client's end.
    pub(crate) stopping: AtomicBool,
    /// Clients end at their next request.
    pub(crate) enough: AtomicBool,
    /// So many requests may still be begun; after that clients end.
    pub(crate) budget: AtomicU64,
    /// When clients end at the latest, whatever the server does.
    pub(crate) deadline: Instant,
}

/// What a right answer looks like.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) status: u16,
    pub(crate) body: Body,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.enough.load(Ordering::Relaxed)
            && self.budget.load(Ordering::Relaxed) > 0
            && Instant::now() < self.deadline
    }

    /// Whether so many requests may begin.
    fn take(&self, count: usize) -> bool {
        let take = |left: u64| left.checked_sub(count as u64).or((left > 0).then_some(0));
        self.goes_on()
            && self
                .budget
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
    }
}

/// Whether the server had not closed the connection when a request reached it, of which so many bytes were `sent`.
fn arrived_before_fin(stream: &mut Stream, sent: usize) -> bool {
    // In this order: a FIN that came before the acknowledgement is seen.
    stream.has_arrived(sent) && stream.look() == Look::Open
}

/// How a connection ended before all answers had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
    /// Not at all: time is up.
    TimedOut,
    /// The server sent what is no answer.
    Malformed,
}

/// What became of one script.
#[derive(Debug)]
struct Exchange {
    answers: Vec<Answer>,
    /// `None`: all answers are here.
    end: Option<End>,
    /// Bytes of an answer have come that is not among the `answers`.
    begun: bool,
    /// How much was written.
    sent: usize,
    /// All of it was.
    sent_all: bool,
    /// The request has not crossed a FIN.
    arrived: bool,
}

/// What trying to connect comes to.
enum Connected {
    Yes(Stream),
    Refused,
    /// Established, and reset before the client came to it.
    Reset,
    /// No port, no descriptor: not the server's doing.
    Local(io::Error),
}

async fn connect(load: &Load) -> Connected {
    let connecting = Stream::connect(&load.place, load.mode.reads_slowly);
    match tokio::time::timeout(load.patience.connect, connecting).await {
        Ok(Ok(stream)) => Connected::Yes(stream),
        Err(_) => Connected::Refused,
        Ok(Err(error)) => match error.kind() {
            // Not found: the file of a Unix socket is gone, or not there yet.
            ErrorKind::ConnectionRefused | ErrorKind::TimedOut | ErrorKind::NotFound => {
                Connected::Refused
            }
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Connected::Reset,
            _ => Connected::Local(error),
        },
    }
}

/// Runs a client to its end.
pub(crate) async fn run(load: Arc<Load>, mut random: Rng) -> Tally {
    let mut tally = Tally::default();
    let think = load.think.as_micros().try_into().unwrap_or(u64::MAX);
    // Not all at once.
    sleep(Duration::from_micros(random.u64(0..=think.min(1_000_000)))).await;
    while load.goes_on() {
        match connect(&load).await {
            Connected::Yes(mut stream) => {
                tally.connections += 1;
                if is_secure(&load, &mut stream, &mut tally).await {
                    use_connection(&load, &mut stream, &mut random, &mut tally).await;
                }
            }
            Connected::Reset => tally.add(Outcome::ResetUnused, 1),
            Connected::Refused if load.stopping.load(Ordering::Acquire) => {
                tally.refused += 1;
                return tally;
            }
            Connected::Refused => {
                tally.add(Outcome::RefusedEarly, 1);
                sleep(Duration::from_millis(50)).await;
            }
            Connected::Local(error) => {
                tally.local_errors += 1;
                tally.local_error = Some(error.to_string());
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    tally
}

/// Begins TLS on a new connection, if that is what is to be spoken.
///
/// A client whose handshake fails has a request to send, and has not been told that the server takes no more. So the
/// request is lost, in the same way as on a connection that ends before anything was sent. An alert is no excuse: it
/// does not say that the server stops, and clients do not try again after it.
async fn is_secure(load: &Load, stream: &mut Stream, tally: &mut Tally) -> bool {
    match secure(load, stream).await.map_err(|error| error.kind()) {
        Ok(()) => return true,
        Err(ErrorKind::TimedOut) => tally.add(Outcome::TimedOut, 1),
        Err(ErrorKind::UnexpectedEof) => unused(Look::Fin, true, tally),
        Err(ErrorKind::InvalidData) => unused(Look::Bytes, true, tally),
        Err(_) => unused(Look::Reset, true, tally),
    }
    false
}

async fn secure(load: &Load, stream: &mut Stream) -> io::Result<()> {
    let Some(tls) = &load.tls else { return Ok(()) };
    // Not `patience.connect`: the connection is there, and a server that leaves it waiting refuses nobody.
    tokio::time::timeout(load.patience.request, stream.secure(tls)).await?
}

/// Sends requests on a connection for as long as it may be used.
async fn use_connection(load: &Load, stream: &mut Stream, random: &mut Rng, tally: &mut Tally) {
    let think = load.think.as_micros().try_into().unwrap_or(u64::MAX);
    let mut fresh = true;
    loop {
        let pause = if fresh {
            Duration::from_millis(random.u64(load.mode.silence.clone()))
        } else {
            Duration::from_micros(random.u64(0..=think))
        };
        let seen = watch(stream, pause).await;
        if seen != Look::Open {
            unused(seen, fresh, tally);
            return;
        }
        let script = load.requests.any(random);
        if !load.take(script.count) {
            return;
        }
        let exchange = exchange(load, stream, &script, load.expected.body.clone(), random).await;
        if exchange.sent == 0 {
            // Not begun, after all.
            load.budget
                .fetch_add(script.count as u64, Ordering::Relaxed);
        }
        let usable = judge(load, &exchange, script.count, fresh, tally);
        if !usable || random.u8(0..100) >= load.mode.reuse {
            return;
        }
        fresh = false;
    }
}

/// Waits, and notices when the server ends the connection, as a pool of connections does.
async fn watch(stream: &mut Stream, pause: Duration) -> Look {
    let alarm = sleep(pause);
    let mut alarm = pin!(alarm);
    loop {
        tokio::select! {
            () = &mut alarm => return Look::Open,
            _ = stream.readable() => {}
        }
        if let Ok(seen) = stream.try_look() {
            return seen;
        }
    }
}

/// The server has ended a connection before a request was written to it.
fn unused(seen: Look, fresh: bool, tally: &mut Tally) {
    match (seen, fresh) {
        (Look::Reset, true) => tally.add(Outcome::ResetUnused, 1),
        (Look::Fin, true) => tally.add(Outcome::ClosedUnused, 1),
        (Look::Fin | Look::Reset, false) => tally.closed_idle += 1,
        (Look::Bytes | Look::Open, _) => tally.add(Outcome::Bad, 1),
    }
}

/// Enters an exchange into the tally. Whether the connection may be used again.
fn judge(load: &Load, exchange: &Exchange, asked: usize, fresh: bool, tally: &mut Tally) -> bool {
    let mut closes = false;
    for answer in &exchange.answers {
        closes |= answer.closes;
        tally.complete += 1;
        if answer.status >= 500 {
            tally.add(Outcome::ErrorStatus, 1);
        } else if answer.status == load.expected.status && answer.same {
            tally.add(Outcome::Ok, 1);
        } else {
            tally.add(Outcome::Bad, 1);
        }
    }
    let answered = exchange.answers.len();
    let missing = (asked - answered) as u64;
    if missing == 0 {
        // More came than was asked for.
        tally.add(Outcome::Bad, u64::from(exchange.begun));
        return !exchange.begun && !closes && exchange.sent_all;
    }
    match exchange.end {
        None | Some(End::TimedOut) => tally.add(Outcome::TimedOut, missing),
        Some(End::Malformed) => {
            tally.add(Outcome::Bad, 1);
            tally.add(Outcome::Pipelined, missing - 1);
        }
        Some(_) if exchange.begun => {
            tally.add(Outcome::Truncated, 1);
            tally.add(Outcome::Pipelined, missing - 1);
        }
        // Written together with one that was answered.
        _ if answered > 0 => tally.add(Outcome::Pipelined, missing),
        Some(End::Fin) if exchange.sent == 0 => unused(Look::Fin, fresh, tally),
        Some(End::Reset) if exchange.sent == 0 => unused(Look::Reset, fresh, tally),
        Some(End::Reset) if fresh => tally.add(Outcome::ResetFresh, missing),
        Some(End::Fin) if fresh => {
            tally.crossed += u64::from(!exchange.arrived);
            tally.add(Outcome::ClosedFresh, missing);
        }
        Some(_) if exchange.arrived => tally.add(Outcome::Dropped, missing),
        Some(_) => {
            tally.crossed += 1;
            tally.add(Outcome::Race, missing);
        }
    }
    false
}

/// Writes a script and reads its answers, at the same time: a server may answer before it has read everything.
async fn exchange(
    load: &Load,
    stream: &mut Stream,
    script: &Script,
    body: Body,
    random: &mut Rng,
) -> Exchange {
    let mut parser = Parser::new(body);
    let mut result = Exchange {
        answers: Vec::new(),
        end: None,
        begun: false,
        sent: 0,
        sent_all: false,
        arrived: false,
    };
    let mut pauses = script.pauses.iter();
    let mut pause = pauses.next();
    let mut buf = vec![0; 64 << 10];
    let begin = Instant::now();
    let deadline = begin + load.patience.request;
    // When writing, reading and looking go on.
    let (mut write_at, mut read_at, mut look_at) = (begin, begin, None::<Instant>);
    // Nothing more can be written, but an answer may be there to be read.
    let mut broken = false;
    stream.begin();

    while result.answers.len() < script.count && result.end.is_none() {
        let now = Instant::now();
        if now >= deadline {
            result.end = Some(End::TimedOut);
            break;
        }
        let writes = result.sent < script.bytes.len() && !broken;
        let alarms = [
            (writes && write_at > now).then_some(write_at),
            (read_at > now).then_some(read_at),
            look_at,
            Some(deadline),
        ];
        let alarm = alarms.into_iter().flatten().min().unwrap_or(deadline);
        tokio::select! {
            biased;
            _ = stream.readable(), if result.sent > 0 && read_at <= now => {
                match stream.try_read(&mut buf) {
                    Ok(0) => {
                        parser.fin();
                        // After a failed write, Linux tells no more of a reset.
                        result.end = Some(if broken { End::Reset } else { End::Fin });
                    }
                    Ok(count) => {
                        parser.feed(&buf[..count]);
                        if load.mode.reads_slowly {
                            read_at = Instant::now() + Duration::from_millis(random.u64(0..=10));
                        }
                    }
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock => {}
                        // Not announced by TLS: it may be anywhere in an answer.
                        ErrorKind::UnexpectedEof => result.end = Some(End::Fin),
                        ErrorKind::InvalidData => result.end = Some(End::Malformed),
                        _ => result.end = Some(End::Reset),
                    },
                }
                take_answers(&mut parser, script.count, &mut result);
            }
            _ = stream.writable(), if writes && write_at <= now => {
                if result.sent == 0 {
                    match stream.look() {
                        Look::Open => {}
                        Look::Fin => result.end = Some(End::Fin),
                        Look::Reset => result.end = Some(End::Reset),
                        Look::Bytes => result.end = Some(End::Malformed),
                    }
                    if result.end.is_some() {
                        break;
                    }
                }
                let until = pause.map_or(script.bytes.len(), |&(at, _)| at);
                match stream.try_write(&script.bytes[result.sent..until]) {
                    Ok(count) => {
                        let is_first = result.sent == 0;
                        result.sent += count;
                        result.arrived |= stream.is_local() && arrived_before_fin(stream, count);
                        if is_first && !result.arrived {
                            look_at = Some(Instant::now() + load.patience.crossing);
                        }
                        if let Some(&(at, length)) = pause && result.sent == at {
                            write_at = Instant::now() + length;
                            pause = pauses.next();
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) if result.sent == 0 => result.end = Some(End::Reset),
                    Err(_) => broken = true,
                }
            }
            () = sleep_until(alarm) => {
                if look_at.is_some_and(|at| at <= Instant::now()) {
                    result.arrived = arrived_before_fin(stream, result.sent);
                    look_at = (!result.arrived).then(|| Instant::now() + load.patience.crossing);
                }
            }
        }
    }
    result.begun = parser.has_begun();
    result.sent_all = result.sent == script.bytes.len();
    result
}

/// Moves what is whole from the parser to the result, but not more than was asked for.
fn take_answers(parser: &mut Parser, asked: usize, result: &mut Exchange) {
    while result.answers.len() < asked {
        match parser.next() {
            Ok(Some(answer)) => result.answers.push(answer),
            Ok(None) => return,
            Err(_) => {
                result.end = Some(End::Malformed);
                return;
            }
        }
    }
}

/// Connects until the server accepts, asks once, and keeps the answer as the measure of all others.
pub(crate) async fn ask_once(load: &Load) -> io::Result<Answer> {
    let mut stream = loop {
        match connect(load).await {
            Connected::Yes(stream) => break stream,
            Connected::Refused | Connected::Reset => {}
            Connected::Local(error) => return Err(error),
        }
        if Instant::now() > load.deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        sleep(Duration::from_millis(10)).await;
    };
    let secured = secure(load, &mut stream).await;
    secured.map_err(|error| io::Error::new(error.kind(), format!("TLS handshake: {error}")))?;
    let script = load.requests.first();
    let mut random = Rng::with_seed(0);
    let exchange = exchange(load, &mut stream, &script, Body::Keep, &mut random).await;
    let end = exchange.end;
    let answer = exchange.answers.into_iter().next();
    answer.ok_or_else(|| io::Error::other(format!("no answer: {end:?}")))
}
