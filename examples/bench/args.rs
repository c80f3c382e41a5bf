//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::*;

use crate::measure::{MEASUREMENTS, Measurement};
use crate::servers::{SERVERS, Spec};

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) measurements: Vec<&'static Measurement>,
    pub(crate) servers: Vec<&'static Spec>,
    pub(crate) rounds: usize,
    pub(crate) scale: f64,
    pub(crate) cpu: Option<usize>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) svg: Option<PathBuf>,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Task {
    Measure(Box<Options>),
    /// Compare instructions with those in the file, or write it.
    Gate {
        path: PathBuf,
        update: bool,
    },
    Help,
}

/// What `--help` says.
pub(crate) fn help() -> String {
    let line = |name: &str, about: &str| format!("  {name:<14} {about}\n");
    let measurements: String = MEASUREMENTS.iter().map(|m| line(m.name, m.about)).collect();
    let servers: String = SERVERS.iter().map(|s| line(s.name, s.about)).collect();
    format!("{HELP}\nMEASUREMENTS\n{measurements}\nSERVERS\n{servers}")
}

const HELP: &str = "\
bench: what a request costs, in httpdown, in hyper, and in others.

Every server answers every request with 13 bytes. Servers take turns; figures are medians, and those in parentheses say
how many times hyper's, measured in the same rounds. Server and clients share one core where CPU time is measured.
A server or a tool that is not there is named and skipped. To be run in the root of the source tree.

With TLS, all servers have the same certificate, with an ECDSA key on P-256 (`make certs`). The client offers only
TLS 1.3, TLS_AES_128_GCM_SHA256 and X25519, so that all servers do the same work, whatever they prefer. It checks no
signature. Each handshake brings one ticket. In tls-ka64, server and clients share one core, too. In the others, the
server has that core, and the client has the rest: then a rate says what the server can do, unless the client takes more
CPU time than the server. CPU time is the steadier figure. tls-up: nginx discards the body, which decrypts it; the
others read it.

    bench --only instructions --servers ours-inline,ours-rust,hyper

OPTIONS
  --only LIST      which measurements, separated by commas (default: all)
  --servers LIST   which servers (default: all that are there)
  --rounds N       how often the noisy ones are repeated (default 5)
  --scale F        that many times the usual number of requests (default 1: about a second for each load)
  --quick          --rounds 1 --scale 0.1
  --cpu N          the core that client and server share (default: the last)
  --json FILE      the results for programs
  --svg FILE       the results as a chart
  --gate FILE      nothing of that: whether instructions have grown since FILE was written; the exit status is 1 then
  --update         with --gate: writes FILE
  --help
";

/// Reads the command line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Task, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut options = Options {
        measurements: MEASUREMENTS.iter().collect(),
        servers: SERVERS.iter().collect(),
        rounds: 5,
        scale: 1.0,
        cpu: None,
        json: None,
        svg: None,
    };
    let (mut gate, mut update) = (None, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("only") => {
                let list = parser.value()?.string()?;
                options.measurements = chosen("measurement", &list, MEASUREMENTS, |m| m.name)?;
            }
            Long("servers") => {
                let list = parser.value()?.string()?;
                options.servers = chosen("server", &list, SERVERS, |server| server.name)?;
            }
            Long("rounds") => options.rounds = parser.value()?.parse()?,
            Long("scale") => options.scale = parser.value()?.parse()?,
            Long("quick") => (options.rounds, options.scale) = (1, 0.1),
            Long("cpu") => options.cpu = Some(parser.value()?.parse()?),
            Long("json") => options.json = Some(parser.value()?.into()),
            Long("svg") => options.svg = Some(parser.value()?.into()),
            Long("gate") => gate = Some(parser.value()?.into()),
            Long("update") => update = true,
            Long("help") | Short('h') => return Ok(Task::Help),
            other => return Err(other.unexpected()),
        }
    }
    if let Some(path) = gate {
        return Ok(Task::Gate { path, update });
    }
    if update {
        return Err("--update is for --gate".into());
    }
    if options.rounds == 0 {
        return Err("--rounds begins with 1".into());
    }
    if !(0.001..=1000.0).contains(&options.scale) {
        return Err("--scale is from 0.001 to 1000".into());
    }
    Ok(Task::Measure(Box::new(options)))
}

/// Those whose names are in the list, in their own order.
fn chosen<T>(
    what: &str,
    list: &str,
    all: &'static [T],
    name: fn(&T) -> &'static str,
) -> Result<Vec<&'static T>, lexopt::Error> {
    let names: Vec<_> = list.split(',').collect();
    for wanted in &names {
        if !all.iter().any(|one| name(one) == *wanted) {
            return Err(format!("no {what} {wanted:?}; see --help").into());
        }
    }
    Ok(all
        .iter()
        .filter(|one| names.contains(&name(one)))
        .collect())
}
