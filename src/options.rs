//! What can be set for a server, with its defaults and bounds.

use std::time::Duration;

use http::uri::PathAndQuery;

use crate::error::{Error, Result};

/// What can be set.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) stop_timeout: Duration,
    pub(crate) kill_timeout: Duration,
    pub(crate) lame_duck: Duration,
    pub(crate) lame_duck_min: Duration,
    /// Zero: the lame duck takes its whole time.
    pub(crate) lame_duck_quiet: Duration,
    pub(crate) ready_path: Option<String>,
    pub(crate) conn_info: bool,
    pub(crate) header_timeout: Duration,
    /// [`Duration::MAX`]: none.
    pub(crate) idle_timeout: Duration,
    pub(crate) keep_alive_header: bool,
    pub(crate) quiesce_timeout: Duration,
    pub(crate) idle_grace: Duration,
    pub(crate) linger_timeout: Duration,
    pub(crate) second_signal: Duration,
    /// After how long a pause between two requests a connection leaves hyper, at least; at most twice that. No option:
    /// long beside the pauses of a busy client, and short beside the life of an idle connection.
    pub(crate) park_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stop_timeout: Duration::from_secs(60),
            kill_timeout: Duration::from_secs(60),
            lame_duck: Duration::ZERO,
            lame_duck_min: Duration::ZERO,
            lame_duck_quiet: Duration::ZERO,
            ready_path: None,
            conn_info: false,
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::MAX,
            keep_alive_header: false,
            // A SYN is sent again after 1 s, and then after 2 more: a handshake that lost one has had two chances.
            quiesce_timeout: Duration::from_secs(4),
            idle_grace: Duration::from_secs(1),
            linger_timeout: Duration::from_secs(2),
            // Whoever forwards a signal does it within milliseconds; a person who means it takes longer.
            second_signal: Duration::from_millis(500),
            park_after: Duration::from_secs(1),
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why| Err(Error::InvalidArgument(why));
        if let Some(path) = &self.ready_path
            && !is_path(path)
        {
            return wrong(format!(
                "ready_path {path:?} is not a path: \"/\" first, then visible ASCII, and no query"
            ));
        }
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

    /// For how many seconds clients are told that they may leave a connection idle: as long as a request that they send
    /// at the last moment still comes in time. They count from when they have a response, which is later than we do, and
    /// their request needs its time, too: how much, `idle_grace` says.
    pub(crate) fn announced(&self) -> u64 {
        self.idle_timeout.saturating_sub(self.idle_grace).as_secs()
    }
}

/// Whether a request's target can have this path.
fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic())
        && PathAndQuery::try_from(path).is_ok_and(|parsed| parsed.path() == path)
}
