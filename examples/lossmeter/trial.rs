//! One stop: a server is started, loaded, signalled, and watched until it and its clients have ended.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::args::Options;
use crate::client::{self, Expected, Load};
use crate::http::Body;
use crate::modes::{Mode, Requests, Think};
use crate::net::Net;
use crate::server::{Server, ServerSpec, describe};
use crate::stream::Place;
use crate::tally::{Tally, compare};
use crate::tls::Tls;

/// What a stop came to.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) tally: Tally,
    /// From the signal to the end of the process; `None` if it had to be killed.
    pub(crate) time: Option<Duration>,
    /// Where the server's report differs from what the clients saw; `None` if it made no report.
    pub(crate) ledger: Option<Vec<String>>,
    /// How the process ended, if not with success.
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

/// Runs one; `random` decides all that is left to chance.
pub(crate) async fn run(
    options: &Options,
    net: &Net,
    spec: &ServerSpec,
    mode: &'static Mode,
    mut random: Rng,
) -> Result<Stop, Problem> {
    let (mut server, mut load) = start(options, net, spec, mode).await?;
    let duration = options.load.mul_f64(0.5 + random.f64());
    load.deadline = Instant::now()
        + if options.stops_under_load() {
            duration + options.stop_limit + options.patience.request
        } else {
            options.stop_limit * 10
        };
    let load = Arc::new(load);

    let mut clients = JoinSet::new();
    for _ in 0..options.clients {
        clients.spawn(client::run(Arc::clone(&load), random.fork()));
    }
    let mut tally = Tally::default();
    // The first answer.
    tally.connections = 1;
    tally.complete = 1;
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
        None => Stop {
            tally,
            time: None,
            ledger: None,
            status: Some("never ended, and was killed".into()),
        },
        Some((ended, time)) => Stop {
            ledger: ended.report.map(|report| compare(&report, &tally)),
            tally,
            time: Some(time),
            status: describe(ended.status),
        },
    })
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
    let answer = tokio::select! {
        answer = client::ask_once(&load) => answer,
        () = server.gone() => Err(io::ErrorKind::NotConnected.into()),
    };
    let answer = match answer {
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

/// Waits for all clients.
async fn add_up(clients: &mut JoinSet<Tally>, tally: &mut Tally) {
    while let Some(client) = clients.join_next().await {
        match client {
            Ok(client) => tally.merge(&client),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
