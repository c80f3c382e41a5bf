//! A slow server that stops without losing a request: `GET /?duration=20s` answers at once, sleeps, and answers again.
//!
//! ```text
//! cargo run --example demo & curl 'http://127.0.0.1:8080/?duration=3s' & sleep 1; kill %1; wait
//! ```

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use httpdown::{
    Addr, Dispatch, Exchange, Identity, Listener, LogLevel, Result, Server, Signals, Tls,
};

fn answer(mut exchange: Exchange) -> Result<()> {
    let text = exchange.query().get("duration");
    let text = text.unwrap_or("0".into()).into_owned();
    let pid = std::process::id();
    let Some(duration) = parse_duration(&text) else {
        let mut response = Response::new("bad duration; write 300ms, 1.5s or 1m\n".into());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return exchange.reply(response);
    };
    let cancellation = exchange.cancellation();
    exchange.start(Response::new(()))?;
    exchange.write(format!("going to sleep {text} with pid {pid}\n").as_bytes())?;
    // As a sleep, but that it ends when nobody waits for the answer any more.
    if let Some(why) = cancellation.wait_until(Instant::now().checked_add(duration)) {
        return Err(why);
    }
    exchange.write(format!("slept {text} with pid {pid}\n").as_bytes())?;
    exchange.finish()
}

fn serve() -> Result<(), Box<dyn Error>> {
    let mut addr = "127.0.0.1:8080".to_owned();
    let (mut stop_timeout, mut kill_timeout) = (Duration::from_secs(10), Duration::from_secs(1));
    let (mut cert, mut key) = (None, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let (flag, value) = match arg.split_once('=') {
            Some((flag, value)) => (flag, value.to_owned()),
            None => (&*arg, args.next().ok_or(format!("{arg} needs a value"))?),
        };
        let duration = || parse_duration(&value).ok_or(format!("{value:?} is no duration"));
        match flag.strip_prefix("--").or(flag.strip_prefix('-')) {
            Some("addr") => addr = value,
            Some("stop-timeout") => stop_timeout = duration()?,
            Some("kill-timeout") => kill_timeout = duration()?,
            Some("tls-cert") => cert = Some(value),
            Some("tls-key") => key = Some(value),
            _ => {
                let flags =
                    "[-addr A] [-stop-timeout D] [-kill-timeout D] [-tls-cert F -tls-key F]";
                return Err(format!("usage: demo {flags}").into());
            }
        }
    }
    let handler = |exchange: Exchange| {
        if let Err(error) = answer(exchange) {
            eprintln!("a request was not answered: {error}");
        }
    };
    let signals = Signals::catch()?;
    let mut builder = Server::builder()
        .stop_timeout(stop_timeout)
        .kill_timeout(kill_timeout)
        .on_log(|level, text| match level {
            LogLevel::Error => eprintln!("error: {text}"),
            LogLevel::Warning => eprintln!("warning: {text}"),
            _ => {}
        });
    let scheme = if cert.is_some() { "https" } else { "http" };
    if let Some(cert) = cert {
        let key = key.ok_or("-tls-cert needs a -tls-key")?;
        let tls = Tls::new(Identity::from_pem_files(cert, key)?);
        builder = builder.tls(tls).reload_on_hup(true);
    }
    let server = builder.handle(Listener::bind(&addr)?, Dispatch::default(), handler)?;
    let (addr, pid) = (&server.local_addrs()[0], std::process::id());
    match addr {
        Addr::Unix(_) => println!("serving on {addr} with pid {pid}"),
        _ => println!("serving on {scheme}://{addr}/ with pid {pid}"),
    }
    let result = signals.run(&server);
    let report = server.report();
    println!(
        "stopped after {} ms: {} requests, {} served, {} killed",
        report.stop_duration.as_millis(),
        report.requests,
        report.served,
        report.killed
    );
    result?;
    Ok(())
}

fn main() -> ExitCode {
    let Err(error) = serve() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("demo: {error:#}");
    ExitCode::FAILURE
}

/// Reads a duration as Go writes them: `300ms`, `1.5s`, `1m30s`.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = None;
    let mut rest = text;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, tail) = tail.split_at(unit_end.unwrap_or(tail.len()));
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = Some(total.unwrap_or(0.0) + number.parse::<f64>().ok()? * seconds);
        rest = tail;
    }
    // Go counts nanoseconds in 63 bits.
    let most = Duration::from_nanos(i64::MAX.unsigned_abs());
    let duration = Duration::try_from_secs_f64(total?).ok()?;
    (duration <= most).then_some(duration)
}
