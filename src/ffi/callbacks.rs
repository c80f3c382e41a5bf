//! The host's callbacks, in the form that the core needs.

use std::ffi::{CString, c_int, c_void};
use std::sync::Arc;

use crate::{ConnEvent, Exchange, Handler, LogLevel, Phase, Stats};

use super::request::lend;
use super::server::httpdown_server;
use super::types::{
    httpdown_conn_state_fn, httpdown_destroy_fn, httpdown_handler_fn, httpdown_log_fn,
    httpdown_phase_fn, httpdown_stat_fn, httpdown_stats,
};

/// The host's data: its pointer, and the function that frees the data when nobody needs it any more.
#[derive(Debug)]
pub(super) struct ForeignData {
    pub(super) pointer: *mut c_void,
    pub(super) destroy: httpdown_destroy_fn,
}

// SAFETY: the header says that callbacks come from several threads at once, and that `destroy` may be called on any
// thread. So the host's data must allow both.
unsafe impl Send for ForeignData {}
// SAFETY: as above.
unsafe impl Sync for ForeignData {}

impl Drop for ForeignData {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: the host gave us both, for this.
            unsafe { destroy(self.pointer) };
        }
    }
}

/// The data that every callback of a server needs.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) server: Arc<httpdown_server>,
    pub(super) data: Arc<ForeignData>,
}

pub(super) struct CHandler {
    pub(super) host: Host,
    pub(super) handler: httpdown_handler_fn,
}

impl Handler for CHandler {
    fn handle(&self, exchange: Exchange) {
        if let Some(handler) = self.handler {
            lend(exchange, &self.host.server, |request| {
                // SAFETY: the host's own handler, with the host's own data; the request lives until it returns.
                unsafe { handler(request, self.host.data.pointer) };
            });
        }
    }
}

pub(super) struct CStats {
    pub(super) host: Host,
    pub(super) stats: httpdown_stats,
}

impl CStats {
    fn bump(&self, callback: httpdown_stat_fn, key: &str, value: f64) {
        if let (Some(callback), Ok(key)) = (callback, CString::new(key)) {
            // SAFETY: the host's own callback, with the host's own data; the key lives until it returns.
            unsafe { callback(key.as_ptr(), value, self.host.data.pointer) };
        }
    }
}

impl Stats for CStats {
    fn bump_avg(&mut self, key: &str, value: f64) {
        self.bump(self.stats.bump_avg, key, value);
    }

    fn bump_sum(&mut self, key: &str, value: f64) {
        self.bump(self.stats.bump_sum, key, value);
    }

    fn bump_histogram(&mut self, key: &str, value: f64) {
        self.bump(self.stats.bump_histogram, key, value);
    }

    fn bump_time(&mut self, key: &str, seconds: f64) {
        self.bump(self.stats.bump_time, key, seconds);
    }
}

pub(super) fn conn_state(host: Host, callback: httpdown_conn_state_fn) -> impl FnMut(ConnEvent) {
    move |event| {
        if let (Some(callback), Ok(peer)) = (callback, CString::new(event.peer.to_string())) {
            let server = Arc::as_ptr(&host.server);
            let state = event.state as c_int;
            // SAFETY: the host's own callback, with the host's own data; the rest lives until it returns.
            unsafe { callback(server, event.id, state, peer.as_ptr(), host.data.pointer) };
        }
    }
}

pub(super) fn phase(host: Host, callback: httpdown_phase_fn) -> impl FnMut(Phase) {
    move |phase| {
        if let Some(callback) = callback {
            let server = Arc::as_ptr(&host.server);
            // SAFETY: the host's own callback, with the host's own data; the server lives as long as `host`.
            unsafe { callback(server, phase as c_int, host.data.pointer) };
        }
    }
}

pub(super) fn log(host: Host, callback: httpdown_log_fn) -> impl FnMut(LogLevel, &str) {
    move |level, text| {
        if let (Some(callback), Ok(text)) = (callback, CString::new(text)) {
            // SAFETY: the host's own callback, with the host's own data; the text lives until it returns.
            unsafe { callback(level as c_int, text.as_ptr(), host.data.pointer) };
        }
    }
}
