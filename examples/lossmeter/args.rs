//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;
use rustix::process::Signal;

use crate::client::Patience;
use crate::modes::{MODES, Mode, Targets};
use crate::net::Way;
use crate::restart::How;
use crate::server::{ServerSpec, signal_named};
use crate::tls::Sessions;
use crate::trial::Event;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) servers: Vec<ServerSpec>,
    pub(crate) modes: Vec<&'static Mode>,
    pub(crate) stops: u32,
    /// `--restart`: so many of each server, and no stops.
    pub(crate) restarts: Option<u32>,
    /// `--no-stop`: so many requests, then a stop of an idle server.
    pub(crate) requests: Option<u64>,
    pub(crate) clients: u32,
    pub(crate) load: Duration,
    pub(crate) think: Duration,
    pub(crate) jobs: usize,
    pub(crate) seed: u64,
    pub(crate) targets: Targets,
    /// `--tls`
    pub(crate) tls: Option<Sessions>,
    pub(crate) any_body: bool,
    pub(crate) patience: Patience,
    pub(crate) stop_limit: Duration,
    /// `--rtt`
    pub(crate) way: Option<Way>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) svg: Option<PathBuf>,
    pub(crate) verbose: bool,
}

impl Options {
    pub(crate) fn event(&self) -> Event {
        match self.restarts {
            None => Event::Stop,
            Some(_) => Event::Restart,
        }
    }

    pub(crate) fn stops_under_load(&self) -> bool {
        self.requests.is_none()
    }
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Task {
    Measure(Box<Options>),
    /// Be a server of the kind that loses requests: a hidden command.
    ServePeer(String),
    Help,
}

/// What `--help` says.
pub(crate) fn help() -> String {
    let mode = |mode: &Mode| format!("  {:<10} {}\n", mode.name, mode.about);
    let modes = MODES.iter().map(mode).collect::<Vec<_>>().concat();
    format!("{BEGIN_OF_HELP}\nMODES\n{modes}{END_OF_HELP}")
}

const BEGIN_OF_HELP: &str = "\
lossmeter: finds requests that an HTTP/1.1 server loses when it is stopped by a signal under load, or restarted.

It starts the server, loads it, sends the signal, lets the clients go on until they are refused, and says of each
request what became of it, as the client saw it at its socket. Again and again, at moments left to chance.

    lossmeter 'build/hello -addr {addr}'
    lossmeter --tls 'build/hello -addr {addr} -tls-cert cert.pem -tls-key key.pem'
    lossmeter --modes new,keepalive --stops 100 'ours=build/hello -addr {addr}' 'nginx:QUIT=nginx.sh {addr}'
    lossmeter --restart 20 'server {addr}' 'nginx:QUIT=nginx.sh {addr}' --restart-by 'restart.sh nginx {pid} {addr}'

USAGE
  lossmeter [OPTIONS] SERVER...

  SERVER is [NAME[:SIGNAL]=]COMMAND, a command line for the shell; the signal goes to what it runs in the end ('cd x &&
  VAR=1 ./server {addr}'). {addr} in it becomes the address to listen on
  (127.3.4.5:10001), {ip} and {port} its parts; with {port} alone the server listens on 127.0.0.1 or on everything.
  {unix} becomes the path of a Unix socket instead ('build/hello -addr unix:{unix}').
  It must not go into the background, and is ready when it accepts connections. Several servers take turns.

OPTIONS
  --modes LIST         which modes, separated by commas (default: all)
  --stops N            stops of each server in each mode (default 20)
  --clients N          connections at a time (default 64)
  --load DURATION      time before the signal; half to one and a half of it, by chance (default 1s)
  --signal NAME        TERM (default), INT, QUIT, ...; a server's own :SIGNAL goes first
  --think DURATION     the longest pause between two requests of mode keepalive (default 2s)
  --jobs N             stops at the same time, on different addresses (default 1)
  --seed N             makes the same choices again
  --rtt DURATION       a way between client and server with such a round trip (root, or user namespaces); a server
                       that takes {port} alone must listen on everything then
  --frame-loss P%      loses so many of the frames on that way
  --tls                the servers are spoken to by TLS; any certificate will do
  --tls-no-resumption  the same, but no client resumes a session: each handshake is a full one

  --restart N          no stops under load, but so many restarts of each server in each mode; see RESTARTS
  --restart-by HOW     how the SERVER before it is restarted; before the first: all of them

  --no-stop            no stop under load: --requests, all to be answered, then a stop without load; once
  --requests N         with --no-stop (default 100000)
  --compare SERVER     the same as SERVER

  --path PATH          what is asked for (default /)
  --post-path PATH     what small bodies are posted to (default /echo)
  --upload-path PATH   what large bodies are posted to (default /echo)
  --upload-size N      how large (default 1000000)
  --big-path PATH      a large answer (default /bytes/8000000)
  --any-body           answers may differ from each other; else each must be as the first after the start

  --connect-limit D    a connection that takes longer counts as refused (default 15s)
  --request-limit D    an answer that takes longer counts as timed out (default 60s)
  --stop-limit D       a server that takes longer to end, or to be restarted, is killed (default 90s)
  --crossing D         see RACE (default 50ms; 1s if frames are lost)

  --json FILE          the results for programs
  --svg FILE           the results as a chart
  --verbose            a line for each stop or restart
  --help
";

const END_OF_HELP: &str = "
  A mode that asks for what the server does not have (the first answer is a 4xx or 5xx) is skipped, and a line says so.

WHAT BECOMES OF A REQUEST
  ok             the answer is whole, with the status and the body that the first answer had
  error_status   the answer is whole, and a 5xx
  race           see RACE
  Lost:
  reset_fresh    connected, sent (all or some of it), and reset, without a byte of an answer
  closed_fresh   the same, but closed (FIN)
  reset_unused   connected, and reset before anything was sent
  closed_unused  the same, but closed (FIN): a request that was sent then would have been lost
  dropped        the same as the first two, on a connection that was used before, and no race
  truncated      the answer is cut
  pipelined      sent together with a request that was answered or cut, and not answered itself: also behind an answer
                 with 'Connection: close', because it was sent before that could be known
  timed_out, bad (no HTTP, or another answer than the first)
  refused_early  refused, or not connected in time, before the signal to stop: in a restart, at any time

  By TLS, a handshake is a part of the first request: see TLS.

  No request, and no loss: connections refused, or not established in time; closed_idle, a used connection that the
  client saw closed before it wrote (it takes a new one).

RACE
  A client looks at its connection immediately before it writes. A request on a used connection that was open by that
  look, and that ends without a byte of an answer, has crossed the server's FIN on the wire: HTTP/1.1 has nothing
  against that. But if the connection is still open when the server's host has acknowledged the request's first byte,
  the server closed it with the request already there: that counts as dropped. The client looks for that every
  --crossing, so quick cases of it are taken for a race. On a new connection there is no such excuse.

TLS
  --tls speaks TLS 1.3 or 1.2 (ALPN http/1.1) to all servers, by TCP and by Unix sockets, and accepts every certificate.
  The clients of a server share its session tickets. The report says how many handshakes were full and how many resumed.

  The server has ended a connection when its close_notify is here, or its FIN. A request that is written before either
  has come is a race, or dropped if the server's host has acknowledged the whole of its first record. A FIN without a
  close_notify cuts an answer that ends with its connection; where clients saw one, the report has their number. A fatal
  alert is a reset, and what is no TLS is bad.

  A client that is connected begins the handshake at once; pauses come behind it. If the handshake ends early, a request
  is lost: reset_unused, closed_unused, timed_out (--request-limit), bad.

RESTARTS
  A server is started once, and restarted N times, one restart after the other. Each restart has clients of its own,
  which begin before it and end after it, each time by about --load. A connection that is refused is lost, too; its
  client tries again 50 ms later. In the end the server gets its :SIGNAL, without load. HOW is one of these:

  a signal's name      goes to the main process (default USR2). Its successor must inherit standard output or error, and
                       print a line with 'pid N'. The restart is done when the old process has ended, and an answer
                       comes.
  a command line       for the shell, with {addr} and its like, and with {pid}: the main process. It ends when the
                       restart is done, and with an error if it has failed. If it prints 'pid N', that process succeeds
                       the old one, whose end is waited for; if not, the main process stays the same (a reload).

  A server that is to be restarted may go into the background, if it prints 'pid N' before.
  A restart that is not done within --stop-limit, or whose successor ends, has failed, and is the last one. What a
  server has started is killed with it, and at the end of lossmeter also what has left the server's process group.

LEDGER
  A server may print a line with a JSON object when it has ended. Its numbers are compared with the clients', to the
  last unit: connections; served (whole answers); requests (whole and truncated answers); raced (connections with a
  race or closed_fresh). The one request that finds the server started is among them. With --restart, each main process
  must print such a line, and the sums are compared.

EXIT STATUS
  0 if nothing was lost, no 5xx was seen, every server ended by itself, every restart was done and every ledger agrees;
  1 if not; 2 if the measurement could not be made.
";

/// What holds if nothing else is said; there is no server yet.
fn defaults() -> Options {
    Options {
        servers: Vec::new(),
        modes: MODES.iter().collect(),
        stops: 1,
        restarts: None,
        requests: None,
        clients: 64,
        load: Duration::from_secs(1),
        think: Duration::from_secs(2),
        jobs: 1,
        seed: fastrand::u64(..1_000_000),
        targets: Targets {
            get: "/".into(),
            post: "/echo".into(),
            upload: "/echo".into(),
            big: "/bytes/8000000".into(),
            upload_size: 1_000_000,
        },
        tls: None,
        any_body: false,
        patience: Patience {
            connect: Duration::from_secs(15),
            request: Duration::from_secs(60),
            crossing: Duration::ZERO,
        },
        stop_limit: Duration::from_secs(90),
        way: None,
        json: None,
        svg: None,
        verbose: false,
    }
}

/// Reads the command line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Task, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(args);
    let (mut servers, mut signal) = (Vec::<(String, Option<How>)>::new(), Signal::TERM);
    let (mut stops, mut how) = (None, None);
    let (mut no_stop, mut requests, mut crossing) = (false, None, None);
    let (mut round_trip, mut loss) = (None, 0.0);
    let mut options = defaults();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("modes") => options.modes = modes(&parser.value()?.string()?)?,
            Long("stops") => stops = Some(parser.value()?.parse()?),
            Long("restart") => options.restarts = Some(parser.value()?.parse()?),
            Long("restart-by") => {
                let its_own = servers.last_mut().map(|(_, how)| how);
                *its_own.unwrap_or(&mut how) = Some(How::new(&parser.value()?.string()?));
            }
            Long("clients") => options.clients = parser.value()?.parse()?,
            Long("load") => options.load = duration(&mut parser)?,
            Long("signal") => signal = named(&parser.value()?.string()?)?,
            Long("think") => options.think = duration(&mut parser)?,
            Long("jobs") => options.jobs = parser.value()?.parse()?,
            Long("seed") => options.seed = parser.value()?.parse()?,
            Long("no-stop") => no_stop = true,
            Long("requests") => requests = Some(parser.value()?.parse()?),
            Long("path") => options.targets.get = parser.value()?.string()?,
            Long("post-path") => options.targets.post = parser.value()?.string()?,
            Long("upload-path") => options.targets.upload = parser.value()?.string()?,
            Long("upload-size") => options.targets.upload_size = parser.value()?.parse()?,
            Long("big-path") => options.targets.big = parser.value()?.string()?,
            Long("any-body") => options.any_body = true,
            Long("connect-limit") => options.patience.connect = duration(&mut parser)?,
            Long("request-limit") => options.patience.request = duration(&mut parser)?,
            Long("stop-limit") => options.stop_limit = duration(&mut parser)?,
            Long("crossing") => crossing = Some(duration(&mut parser)?),
            Long("rtt") => round_trip = Some(duration(&mut parser)?),
            Long("frame-loss") => loss = parser.value()?.parse_with(percent)?,
            Long("tls") => options.tls = options.tls.or(Some(Sessions::Resume)),
            Long("tls-no-resumption") => options.tls = Some(Sessions::Forget),
            Long("json") => options.json = Some(parser.value()?.into()),
            Long("svg") => options.svg = Some(parser.value()?.into()),
            Long("verbose") => options.verbose = true,
            Long("help") | Short('h') => return Ok(Task::Help),
            Long("serve-peer") => return Ok(Task::ServePeer(parser.value()?.string()?)),
            Long("compare") => servers.push((parser.value()?.string()?, None)),
            Value(server) => servers.push((server.string()?, None)),
            other => return Err(other.unexpected()),
        }
    }
    if round_trip.is_none() && loss > 0.0 {
        return Err("--frame-loss is for --rtt".into());
    }
    options.way = round_trip.map(|round_trip| Way {
        round_trip,
        loss,
        seed: options.seed,
    });
    // A FIN that is lost comes again, after a fifth of a second at first: an acknowledgement may overtake it.
    let by_default = Duration::from_millis(if loss > 0.0 { 1000 } else { 50 });
    options.patience.crossing = crossing.unwrap_or(by_default);
    options.requests = no_stop.then(|| requests.unwrap_or(100_000));
    if requests.is_some() && !no_stop {
        return Err("--requests is for --no-stop".into());
    }
    if options.restarts.is_some() && (no_stop || stops.is_some()) {
        return Err("--restart goes with neither --stops nor --no-stop".into());
    }
    if options.restarts.is_none() && (how.is_some() || servers.iter().any(|(_, how)| how.is_some()))
    {
        return Err("--restart-by is for --restart".into());
    }
    options.stops = match options.event() {
        Event::Stop if !no_stop => stops.unwrap_or(20),
        _ => 1,
    };
    if servers.is_empty() {
        return Err("no server; see --help".into());
    }
    let restarts = options.restarts.unwrap_or(1);
    if [options.stops, restarts, options.clients].contains(&0) || options.jobs == 0 {
        return Err("--stops, --restart, --clients and --jobs begin with 1".into());
    }
    let how = how.unwrap_or(How::Signal(Signal::USR2));
    for (server, its_own) in servers {
        let how = its_own.unwrap_or_else(|| how.clone());
        options.servers.push(spec(&server, signal, how)?);
    }
    if options.way.is_some() && options.servers.iter().any(ServerSpec::takes_path) {
        return Err("a Unix socket has no --rtt".into());
    }
    Ok(Task::Measure(Box::new(options)))
}

fn duration(parser: &mut lexopt::Parser) -> Result<Duration, lexopt::Error> {
    parser.value()?.parse_with(humantime::parse_duration)
}

/// A part of a whole, from 0 to 1: `0.1%`.
fn percent(text: &str) -> Result<f64, &'static str> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    match number {
        Ok(number) if (0.0..100.0).contains(&number) => Ok(number / 100.0),
        _ => Err("not a percentage"),
    }
}

fn modes(list: &str) -> Result<Vec<&'static Mode>, lexopt::Error> {
    let named = |name| MODES.iter().find(|mode| mode.name == name);
    let mode = |name| named(name).ok_or_else(|| format!("no mode {name:?}; see --help").into());
    list.split(',').map(mode).collect()
}

fn named(signal: &str) -> Result<Signal, lexopt::Error> {
    signal_named(signal).ok_or_else(|| format!("no signal {signal:?}").into())
}

/// `[NAME[:SIGNAL]=]COMMAND`.
fn spec(text: &str, signal: Signal, restart: How) -> Result<ServerSpec, lexopt::Error> {
    let is_name = |name: &&str| !name.contains(|c: char| c.is_whitespace() || c == '/' || c == '{');
    let (name, command) = match text.split_once('=') {
        Some((name, command)) if is_name(&name) => (name, command),
        _ => (text.split_whitespace().next().unwrap_or_default(), text),
    };
    let places = ["{addr}", "{port}", "{unix}"].map(|place| command.contains(place));
    if let [false, false, false] = places {
        let why =
            format!("{command:?} has no place for an address: {{addr}}, {{port}} or {{unix}}");
        return Err(why.into());
    }
    if let [true, _, true] | [_, true, true] = places {
        return Err(format!("{command:?} has places for two addresses").into());
    }
    let (name, signal) = match name.split_once(':') {
        Some((name, signal)) => (name, named(signal)?),
        None => (name, signal),
    };
    Ok(ServerSpec {
        name: name.rsplit('/').next().unwrap_or(name).into(),
        command: command.into(),
        signal,
        restart,
    })
}
