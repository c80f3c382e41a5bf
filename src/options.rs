//! The settings of a server, with their defaults and bounds.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;

use crate::error::{Error, Result};
use crate::forwarded::Forwarding;
use crate::trust::Networks;

/// The settings of a server. The setters of the [`Builder`](crate::Builder) say what they mean. For an idle timeout, a
/// duration that no clock can count to ([`Duration::MAX`]) means that there is none; for the quiet time of a lame duck,
/// zero means that it takes its whole time.
#[derive(Clone, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "none of them says anything of another"
)]
pub(crate) struct Options {
    // options: begin fields (made from src/options.toml by `make options`)
    pub(crate) stop_timeout: Duration,
    pub(crate) kill_timeout: Duration,
    pub(crate) lame_duck: Duration,
    pub(crate) header_timeout: Duration,
    pub(crate) io_threads: Option<NonZeroUsize>,
    pub(crate) idle_grace: Duration,
    pub(crate) quiesce_timeout: Duration,
    pub(crate) linger_timeout: Duration,
    pub(crate) ready_path: Option<String>,
    pub(crate) lame_duck_min: Duration,
    pub(crate) lame_duck_quiet: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) keep_alive_header: bool,
    pub(crate) second_signal: Duration,
    pub(crate) reuse_port: bool,
    pub(crate) reload_on_hup: bool,
    pub(crate) body_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) least_rate: Option<NonZeroUsize>,
    pub(crate) body_buffer: Option<NonZeroUsize>,
    pub(crate) drain_rate: Option<NonZeroUsize>,
    pub(crate) proxy_protocol_from: Option<String>,
    pub(crate) trusted_proxies: Option<String>,
    pub(crate) forwarded_by: Option<String>,
    pub(crate) max_body_size: Option<u64>,
    pub(crate) max_headers: Option<NonZeroUsize>,
    pub(crate) max_head_size: Option<NonZeroUsize>,
    pub(crate) max_target_size: Option<NonZeroUsize>,
    pub(crate) max_conn_requests: Option<NonZeroUsize>,
    pub(crate) max_conns: Option<NonZeroUsize>,
    pub(crate) max_client_conns: Option<NonZeroUsize>,
    pub(crate) max_queued: Option<NonZeroUsize>,
    pub(crate) tcp_backlog: Option<NonZeroUsize>,
    pub(crate) v6_only: bool,
    pub(crate) tcp_keepalive: Duration,
    pub(crate) tcp_user_timeout: Duration,
    pub(crate) receive_buffer: Option<NonZeroUsize>,
    pub(crate) send_buffer: Option<NonZeroUsize>,
    pub(crate) abort_on_close: bool,
    pub(crate) conn_info: bool,
    pub(crate) handler_timeout: Duration,
    pub(crate) trim_memory: bool,
    pub(crate) canary: Option<String>,
    // options: end fields
    /// The pause between two requests after which a connection leaves hyper: at least this long, at most twice this
    /// long. This is not an option for hosts. The value is long compared with the pauses of a busy client, and short
    /// compared with the life of an idle connection.
    pub(crate) park_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // options: begin defaults (made from src/options.toml by `make options`)
            stop_timeout: Duration::from_secs(60),
            kill_timeout: Duration::from_secs(60),
            lame_duck: Duration::ZERO,
            header_timeout: Duration::from_secs(30),
            io_threads: None,
            idle_grace: Duration::from_secs(1),
            // A SYN is sent again after 1 s, and then after 2 s more. So a handshake that lost a SYN has had two
            // chances.
            quiesce_timeout: Duration::from_secs(4),
            linger_timeout: Duration::from_secs(2),
            ready_path: None,
            lame_duck_min: Duration::ZERO,
            lame_duck_quiet: Duration::ZERO,
            idle_timeout: Duration::MAX,
            keep_alive_header: false,
            // A program that forwards a signal does so within milliseconds; a person who wants a second signal takes
            // longer.
            second_signal: Duration::from_millis(500),
            reuse_port: false,
            reload_on_hup: false,
            // What nginx gives a client between two pieces is 60 s, Apache 20 s, and Kestrel 5 s; `least_rate` is
            // Kestrel's.
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            least_rate: None,
            body_buffer: None,
            drain_rate: None,
            proxy_protocol_from: None,
            trusted_proxies: None,
            forwarded_by: None,
            max_body_size: None,
            max_headers: None,
            max_head_size: None,
            max_target_size: None,
            max_conn_requests: None,
            max_conns: None,
            max_client_conns: None,
            max_queued: None,
            tcp_backlog: None,
            v6_only: false,
            tcp_keepalive: Duration::MAX,
            tcp_user_timeout: Duration::MAX,
            receive_buffer: None,
            send_buffer: None,
            abort_on_close: false,
            conn_info: false,
            handler_timeout: Duration::MAX,
            trim_memory: false,
            canary: None,
            // options: end defaults
            park_after: Duration::from_secs(1),
        }
    }
}

impl Options {
    /// Whether a request that is with the program for too long is overdue.
    pub(crate) fn limits_handlers(&self) -> bool {
        self.handler_timeout != Duration::MAX
    }

    /// How many requests a second learn of the drain.
    pub(crate) fn drain_rate(&self) -> f64 {
        self.drain_rate.map_or(DRAIN_RATE, |rate| rate.get() as f64)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why| Err(Error::InvalidArgument(why));
        if let Some(path) = &self.ready_path
            && !is_path(path)
        {
            return wrong(format!(
                "ready_path {path:?} is not a path: \"/\" first, then visible ASCII, and no query"
            ));
        }
        if let Some(target) = &self.canary
            && !is_target(target)
        {
            return wrong(format!(
                "canary {target:?} is not the target of a request: \"/\" first, then visible ASCII without \"#\""
            ));
        }
        for (name, timeout) in [
            ("body_timeout", self.body_timeout),
            ("write_timeout", self.write_timeout),
        ] {
            if timeout.is_zero() {
                return wrong(format!("{name} is 0: every client would be too slow"));
            }
        }
        if self.handler_timeout.is_zero() {
            return wrong("handler_timeout is 0: every request would be overdue".into());
        }
        if self.body_buffer() > MOST_BUFFERED {
            let most = MOST_BUFFERED;
            return wrong(format!("body_buffer is more than {most}"));
        }
        for (name, value, most) in [
            ("max_headers", self.max_headers, MOST_HEADERS),
            ("max_head_size", self.max_head_size, MOST_BUFFERED),
            ("max_target_size", self.max_target_size, MOST_TARGET),
        ] {
            if value.is_some_and(|value| value.get() > most) {
                return wrong(format!("{name} is more than {most}"));
            }
        }
        self.check_sockets()?;
        self.proxy_protocol()?;
        self.forwarding()?;
        if self.idle_timeout.is_zero() {
            return wrong("idle_timeout is 0: no request could come in time".into());
        }
        if self.keep_alive_header && self.announced() == 0 {
            let (timeout, grace) = (self.idle_timeout, self.idle_grace);
            return wrong(format!(
                "keep_alive_header has nothing to say: idle_timeout ({timeout:?}) is not a second longer than \
                 idle_grace ({grace:?})"
            ));
        }
        if self.keep_alive_header && self.idle_timeout == Duration::MAX {
            return wrong("keep_alive_header has nothing to say: there is no idle_timeout".into());
        }
        for (name, part) in [
            ("lame_duck_min", self.lame_duck_min),
            ("lame_duck_quiet", self.lame_duck_quiet),
        ] {
            if part > self.lame_duck {
                let whole = self.lame_duck;
                return wrong(format!(
                    "{name} ({part:?}) is longer than lame_duck ({whole:?})"
                ));
            }
        }
        Ok(())
    }

    /// Checks what is set on a socket before it listens.
    pub(crate) fn check_sockets(&self) -> Result<()> {
        let wrong = |why| Err(Error::InvalidArgument(why));
        for (name, time) in [
            ("tcp_keepalive", self.tcp_keepalive),
            ("tcp_user_timeout", self.tcp_user_timeout),
        ] {
            if !(SHORTEST..=LONGEST).contains(&time) && time != Duration::MAX {
                return wrong(format!(
                    "{name} is {time:?}: not from {SHORTEST:?} to {LONGEST:?}"
                ));
            }
        }
        for (name, value, most) in [
            ("tcp_backlog", self.tcp_backlog, MOST_BACKLOG),
            ("receive_buffer", self.receive_buffer, MOST_BUFFER),
            ("send_buffer", self.send_buffer, MOST_BUFFER),
        ] {
            if value.is_some_and(|value| value.get() > most) {
                return wrong(format!("{name} is more than {most}"));
            }
        }
        Ok(())
    }

    /// The peers that begin with a header of the PROXY protocol.
    pub(crate) fn proxy_protocol(&self) -> Result<Networks> {
        match &self.proxy_protocol_from {
            Some(peers) => Networks::parse("proxy_protocol_from", peers),
            None => Ok(Networks::default()),
        }
    }

    /// The proxies whose fields are believed; `None`: none.
    pub(crate) fn forwarding(&self) -> Result<Option<Arc<Forwarding>>> {
        let fields = self.forwarded_by.as_deref();
        match &self.trusted_proxies {
            Some(peers) => Forwarding::new(peers, fields).map(|it| Some(Arc::new(it))),
            None if fields.is_some() => {
                let why = "forwarded_by has nobody to believe: there are no trusted_proxies";
                Err(Error::InvalidArgument(why.into()))
            }
            None => Ok(None),
        }
    }

    /// In bytes a second.
    pub(crate) fn least_rate(&self) -> u64 {
        self.least_rate.map_or(LEAST_RATE, |rate| rate.get() as u64)
    }

    /// In bytes.
    pub(crate) fn body_buffer(&self) -> usize {
        self.body_buffer.map_or(BODY_BUFFER, NonZeroUsize::get)
    }

    /// In bytes.
    pub(crate) fn max_head_size(&self) -> usize {
        self.max_head_size.map_or(HEAD_SIZE, NonZeroUsize::get)
    }

    /// In bytes.
    pub(crate) fn max_target_size(&self) -> usize {
        self.max_target_size.map_or(TARGET_SIZE, NonZeroUsize::get)
    }

    /// In bytes.
    pub(crate) fn max_body_size(&self) -> u64 {
        self.max_body_size.unwrap_or(u64::MAX)
    }

    /// The number of seconds that clients are told they may leave a connection idle. A request that a client sends at
    /// the last moment must still come in time. The client starts to count when it has the response, which is later
    /// than our start, and its request needs time, too. `idle_grace` is the allowance for both.
    pub(crate) fn announced(&self) -> u64 {
        self.idle_timeout.saturating_sub(self.idle_grace).as_secs()
    }
}

/// A server that takes in those who come from here has 1 ms for each.
const DRAIN_RATE: f64 = 1_000.0;

/// What Kestrel asks of a client, too. A modem was ten times as fast.
const LEAST_RATE: u64 = 240;

/// Twice what nginx and Kestrel take, and four times what Node.js takes.
const HEAD_SIZE: usize = 64 << 10;
/// RFC 9110 (4.1) asks for at least 8,000; nginx, Apache and Kestrel take about as much as this.
const TARGET_SIZE: usize = 8 << 10;
/// A map of fields can hold 24,576. The parser has room for so many ready for each request.
const MOST_HEADERS: usize = 4096;
/// What hyper takes.
const MOST_TARGET: usize = (1 << 16) - 2;

/// What Linux takes for a keepalive.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(32_767);
const MOST_BACKLOG: usize = (1 << 16) - 1;
/// The kernel doubles it, and counts in 32 bits.
const MOST_BUFFER: usize = 1 << 30;

const BODY_BUFFER: usize = 64 << 10;
/// Each connection may hold so much.
const MOST_BUFFERED: usize = 16 << 20;

/// Whether the target of a request can have this path.
fn is_target(target: &str) -> bool {
    target.starts_with('/')
        && target
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic())
        && PathAndQuery::try_from(path).is_ok_and(|parsed| parsed.path() == path)
}
