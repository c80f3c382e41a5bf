//! A server is started, loaded, and stopped or restarted, and watched until it and its clients have ended.

use std::fmt::Display;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::args::Options;
use crate::client::{self, Expected, Load};
use crate::http::{Answer, Body};
use crate::modes::{Mode, Requests, Think};
use crate::net::Net;
use crate::restart;
use crate::server::{Server, ServerSpec, describe};
use crate::stream::Place;
use crate::tally::{Tally, audit};
use crate::tls::Tls;

/// What is done to a server under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Stop,
    Restart,
}

impl Event {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// What a stop or a restart came to.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) tally: Tally,
    /// From the signal to the end of the process, or to the successor's answer; `None` if it had to be killed.
    pub(crate) time: Option<Duration>,
    /// Where the server's report differs from what the clients saw; `None` if it made no report.
    pub(crate) ledger: Option<Vec<String>>,
    /// How the process ended, if not with success, or why the restart failed.
    pub(crate) status: Option<String>,
}

/// Why there was none.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The server does not know what this mode asks for.
    Unsupported(String),
    Broken(String),
}

impl Problem {
    fn broken<E: Display>(what: &str) -> impl Fn(E) -> Self {
        move |error| Self::Broken(format!("{what}: {error}"))
    }
}

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Runs one stop, or several restarts of one server; `random` decides all that is left to chance.
pub(crate) async fn run(
    options: &Options,
    net: &Net,
    spec: &ServerSpec,
    mode: &'static Mode,
    random: Rng,
) -> Result<Vec<Trial>, Problem> {
    let (server, load) = start(options, net, spec, mode).await?;
    match options.restarts {
        None => Ok(vec![stop(options, spec, server, load, random).await?]),
        Some(count) => restarts(options, net, spec, count, server, load, random).await,
    }
}

async fn stop(
    options: &Options,
    spec: &ServerSpec,
    mut server: Server,
    mut load: Load,
    mut random: Rng,
) -> Result<Trial, Problem> {
    let duration = options.load.mul_f64(0.5 + random.f64());
    load.deadline = Instant::now()
        + if options.stops_under_load() {
            duration + options.stop_limit + options.patience.request
        } else {
            options.stop_limit * 10
        };
    let load = Arc::new(load);

    let mut clients = clients(options, &load, &mut random);
    let mut tally = Tally::default();
    // The first answer.
    tally.add_probe();
    if options.stops_under_load() {
        sleep(duration).await;
    } else {
        add_up(&mut clients, &mut tally).await;
    }
    if server.has_ended() {
        let why = format!("ended under load: {}", server.complaint().await);
        return Err(Problem::Broken(why));
    }
    load.stopping.store(true, Ordering::Release);
    let begin = Instant::now();
    server
        .signal(spec.signal)
        .map_err(Problem::broken("cannot be signalled"))?;
    let ((), ended) = tokio::join!(add_up(&mut clients, &mut tally), async {
        let ended = server.end(options.stop_limit).await;
        let time = begin.elapsed();
        if ended.is_none() {
            load.enough.store(true, Ordering::Relaxed);
            drop(server);
        }
        ended.map(|ended| (ended, time))
    });
    tally.handshakes = load.tls.as_ref().map(Tls::handshakes).unwrap_or_default();
    Ok(match ended {
        None => Trial {
            tally,
            time: None,
            ledger: None,
            status: Some(NEVER_ENDED.into()),
        },
        Some((ended, time)) => Trial {
            ledger: audit(&ended.ledgers, 1, &tally),
            tally,
            time: Some(time),
            status: ended.status.and_then(describe),
        },
    })
}

const NEVER_ENDED: &str = "never ended, and was killed";

/// Restarts a server again and again, and stops it in the end, without load. Each restart has its own clients, so that
/// what is lost is its own, too. A restart that fails is the last one.
async fn restarts(
    options: &Options,
    net: &Net,
    spec: &ServerSpec,
    count: u32,
    mut server: Server,
    mut load: Load,
    mut random: Rng,
) -> Result<Vec<Trial>, Problem> {
    load.deadline =
        Instant::now() + (options.load * 3 + options.stop_limit + options.patience.request) * count;
    let load = Arc::new(load);
    let mut trials = Vec::new();
    let mut all = Tally::default();
    all.add_probe();
    for _ in 0..count {
        load.enough.store(false, Ordering::Relaxed);
        let mut duration = || options.load.mul_f64(0.5 + random.f64());
        let (before, behind) = (duration(), duration());
        let mut clients = clients(options, &load, &mut random);
        sleep(before).await;
        let begin = Instant::now();
        let restarted = restart(options, net, spec, &mut server, &load).await;
        let time = begin.elapsed();
        let mut tally = Tally::default();
        if restarted.is_ok() {
            tally.add_probe();
            sleep(behind).await;
        }
        load.enough.store(true, Ordering::Relaxed);
        add_up(&mut clients, &mut tally).await;
        all.merge(&tally);
        let failed = restarted.is_err();
        trials.push(Trial {
            tally,
            time: (!failed).then_some(time),
            ledger: None,
            status: restarted.err().map(|why| format!("restart failed: {why}")),
        });
        if failed {
            return Ok(trials);
        }
    }
    // What clients have begun on a long way is there when this is answered: a stop without load has nothing to refuse.
    if client::ask_once(&load).await.is_ok() {
        all.add_probe();
    }
    server
        .signal(spec.signal)
        .map_err(Problem::broken("cannot be signalled"))?;
    let ended = server.end(options.stop_limit).await;
    if let Some(last) = trials.last_mut() {
        last.tally.handshakes = load.tls.as_ref().map(Tls::handshakes).unwrap_or_default();
        match ended {
            None => {
                last.time = None;
                last.status = Some(NEVER_ENDED.into());
            }
            Some(ended) => {
                last.ledger = audit(&ended.ledgers, server.processes, &all);
                last.status = ended.status.and_then(describe);
            }
        }
    }
    Ok(trials)
}

/// Restarts a server, and waits until it answers. The error says why it is not restarted.
async fn restart(
    options: &Options,
    net: &Net,
    spec: &ServerSpec,
    server: &mut Server,
    load: &Load,
) -> Result<(), String> {
    let deadline = Instant::now() + options.stop_limit;
    if !server.lives().await {
        return Err("ended under load".into());
    }
    restart::restart(server, &spec.restart, &load.place, net, deadline).await?;
    let answer = async {
        while client::ask_once(load).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        answered = timeout_at(deadline, answer) => answered.map_err(|_| "does not answer".into()),
        _ = server.gone() => Err("ended, and no successor told its PID".into()),
    }
}

fn clients(options: &Options, load: &Arc<Load>, random: &mut Rng) -> JoinSet<Tally> {
    let run = |_| client::run(Arc::clone(load), random.fork());
    (0..options.clients).map(run).collect()
}

/// Starts a server, and asks it once: it is ready then, and the answer is the measure of all others.
async fn start(
    options: &Options,
    net: &Net,
    spec: &ServerSpec,
    mode: &'static Mode,
) -> Result<(Server, Load), Problem> {
    let place = if spec.takes_path() {
        Place::Unix(net.server_path())
    } else {
        let addr = net.server_addr(spec.takes_ip());
        Place::Ip(addr.map_err(Problem::broken("no address"))?)
    };
    let started = net.at_server(|| Server::start(spec.command(&place)));
    let mut server = started
        .and_then(|server| server)
        .map_err(Problem::broken("cannot be started"))?;
    let tls = options.tls.map(|sessions| Tls::new(&place, sessions));
    let mut load = Load {
        mode,
        tls: tls.transpose().map_err(Problem::broken("no TLS"))?,
        think: match mode.think {
            Think::Not => Duration::ZERO,
            Think::AsAsked => options.think,
            Think::AtMost(think) => think,
        },
        requests: Requests::new(mode, &options.targets, &place.to_string()),
        place,
        expected: Expected {
            status: 0,
            body: Body::Any,
        },
        patience: options.patience,
        stopping: AtomicBool::new(false),
        enough: AtomicBool::new(false),
        budget: AtomicU64::new(options.requests.unwrap_or(u64::MAX)),
        deadline: Instant::now() + START_LIMIT,
    };
    let answer = match first_answer(&mut server, &load).await {
        Ok(answer) => answer,
        Err(error) => {
            let complaint = server.complaint().await;
            return Err(Problem::broken("does not serve")(format!(
                "{error}; {complaint}"
            )));
        }
    };
    if answer.status >= 400 {
        let line = &load.requests.line;
        return Err(Problem::Unsupported(format!(
            "{line} is answered with {}",
            answer.status
        )));
    }
    load.expected.status = answer.status;
    if !options.any_body {
        load.expected.body = Body::Same(answer.kept.into());
    }
    Ok((server, load))
}

/// Asks a server that starts, unless it ends.
async fn first_answer(server: &mut Server, load: &Load) -> io::Result<Answer> {
    let mut asking = pin!(client::ask_once(load));
    loop {
        tokio::select! {
            answer = &mut asking => return answer,
            _ = server.gone() => if !server.lives().await {
                return Err(io::ErrorKind::NotConnected.into());
            }
        }
    }
}

/// Waits for all clients.
async fn add_up(clients: &mut JoinSet<Tally>, tally: &mut Tally) {
    while let Some(client) = clients.join_next().await {
        match client {
            Ok(client) => tally.merge(&client),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
