//! `httpdown_options`: reads and checks the options, and turns them into a builder.

use std::ffi::c_int;
use std::mem::{MaybeUninit, offset_of};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::events::Interest;
use crate::process;
use crate::{Builder, Dispatch, Error, Listener, Restart, Result, Server};

use super::boundary::{Sized, borrow, duration_or, read_sized, slice, text};
use super::callbacks::{self, CHandler, CStats, ForeignData, Host};
use super::server::httpdown_server;
use super::tls;
use super::types::{
    httpdown_dispatch, httpdown_event, httpdown_event_kind, httpdown_options, httpdown_stop_report,
    httpdown_tls,
};
use super::{record, restart};

// SAFETY: zero is valid in each field, and the size comes first.
unsafe impl Sized for httpdown_options {
    const LEAST: usize = offset_of!(httpdown_options, fds);
}

// SAFETY: as above.
unsafe impl Sized for httpdown_stop_report {
    const LEAST: usize = offset_of!(httpdown_stop_report, stop_duration_ms);
}

// SAFETY: as above.
unsafe impl Sized for httpdown_event {
    const LEAST: usize = offset_of!(httpdown_event, conn_id);
}

/// Where a server listens by default.
const DEFAULT_ADDR: &str = ":80";
/// Where it listens by default if it speaks TLS.
const DEFAULT_TLS_ADDR: &str = ":443";
/// More threads than this are a mistake, or a negative number.
const MOST_THREADS: u32 = 1 << 16;
/// More descriptors than this are a mistake.
const MOST_FDS: usize = 1024;

/// Sets every field to its default: zero, except `struct_size`. This function is for C++ before C++20, and for
/// languages without designated initialisers. `struct_size` is the caller's sizeof(httpdown_options). Does nothing if
/// `options` is NULL or the size makes no sense.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_options_init(options: *mut httpdown_options, struct_size: usize) {
    if options.is_null() || !(size_of::<usize>()..=4096).contains(&struct_size) {
        return;
    }
    let bytes = options.cast::<MaybeUninit<u8>>();
    // SAFETY: the caller says that so many bytes are its struct.
    unsafe { bytes.write_bytes(0, struct_size) };
    // SAFETY: the size is the first field.
    unsafe { options.cast::<usize>().write(struct_size) };
}

/// Sets every field to its default, like httpdown_options_init. `struct_size` is the caller's sizeof(httpdown_tls).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_tls_init(tls: *mut httpdown_tls, struct_size: usize) {
    // SAFETY: the header's preface: NULL or a struct of that size; it also begins with its size.
    unsafe { httpdown_options_init(tls.cast(), struct_size) };
}

/// The options. They own the host's data already: whatever is wrong with the other options, the data is destroyed
/// exactly once.
pub(super) struct Options {
    raw: httpdown_options,
    data: Arc<ForeignData>,
    /// How a signal restarts the program. It owns data of its own.
    restart: Option<Restart>,
}

impl Options {
    /// # Safety
    /// The pointer is NULL or points to options, as the header describes them.
    pub(super) unsafe fn read(options: *const httpdown_options) -> Result<Self> {
        // SAFETY: the same promise.
        let (raw, understood): (httpdown_options, _) = unsafe { read_sized(options, "options")? };
        let data = Arc::new(ForeignData {
            pointer: raw.user_data,
            destroy: raw.destroy,
        });
        let restart = (!raw.restart.is_null()).then(|| {
            // SAFETY: the same promise.
            unsafe { restart::read(raw.restart) }
        });
        understood?;
        if process::forked() {
            return Err(Error::Forked);
        }
        let restart = restart
            .transpose()
            .map_err(|error| error.of("options.restart"))?;
        Ok(Self { raw, data, restart })
    }

    pub(super) fn data(&self) -> Arc<ForeignData> {
        Arc::clone(&self.data)
    }

    /// Where the server should listen, for a person.
    pub(super) fn place(&self) -> String {
        // SAFETY: the header's preface: NULL or NUL-terminated.
        let addr = unsafe { text(self.raw.addr, "options.addr") };
        match (addr, fds(&self.raw)) {
            (Ok(Some(addr)), _) => addr.to_owned(),
            (_, Ok(fds)) if !fds.is_empty() => format!("descriptors {fds:?}"),
            _ => default_addr(&self.raw).to_owned(),
        }
    }

    /// Whether SIGHUP is for this server.
    pub(super) fn wants_hangup(&self) -> bool {
        let restarts = self.restart.as_ref().is_some_and(Restart::is_by_hangup);
        restarts || self.raw.reload_on_hup != 0
    }

    /// Whether SIGUSR2 may restart the program.
    pub(super) fn wants_restart(&self) -> bool {
        self.restart.as_ref().is_none_or(Restart::is_by_signal)
    }

    pub(super) fn has_restart(&self) -> bool {
        self.restart.is_some()
    }

    /// Starts the server that the options describe. Callbacks get `server`.
    pub(super) fn serve(self, server: &Arc<httpdown_server>) -> Result<()> {
        let Self { raw, data, restart } = self;
        let host = Host {
            server: Arc::clone(server),
            data,
        };
        let mut builder = builder(&raw, &host)?;
        if let Some(restart) = restart {
            builder = builder.restart(restart);
        }
        let dispatch = dispatch(&raw)?;
        let listeners = listeners(&raw, &mut builder)?;
        // The callbacks get it from there.
        let slot = Arc::clone(&server.server);
        builder = builder.on_start(move |server| drop(slot.set(server.clone())));
        match dispatch {
            None => {
                let queue = server.queue.get_or_init(|| builder.new_queue());
                builder.serve_by(queue.clone(), listeners)?
            }
            Some(dispatch) => {
                let handler = CHandler {
                    host,
                    handler: raw.handler,
                };
                builder.handle(listeners, dispatch, handler)?
            }
        };
        // The server has copies; the descriptors that it was given are now ours to close.
        for fd in fds(&raw)? {
            // SAFETY: the descriptor is open, as the copy has shown, and the caller has given it to us.
            drop(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
        Ok(())
    }
}

/// The options that are plain values.
fn plain(raw: &httpdown_options) -> Result<Builder> {
    let mut builder = Server::builder();
    let defaults = crate::options::Options::default();
    // options: begin read (made from src/options.toml by `make options`)
    builder = builder.stop_timeout(duration_or(raw.stop_timeout_ms, defaults.stop_timeout));
    builder = builder.kill_timeout(duration_or(raw.kill_timeout_ms, defaults.kill_timeout));
    builder = builder.lame_duck(duration_or(raw.lame_duck_ms, defaults.lame_duck));
    builder = builder.header_timeout(duration_or(raw.header_timeout_ms, defaults.header_timeout));
    if let Some(count) = threads(raw.io_threads, "options.io_threads")? {
        builder = builder.io_threads(count);
    }
    builder = builder.idle_grace(duration_or(raw.idle_grace_ms, defaults.idle_grace));
    builder = builder.quiesce_timeout(duration_or(
        raw.quiesce_timeout_ms,
        defaults.quiesce_timeout,
    ));
    builder = builder.linger_timeout(duration_or(raw.linger_timeout_ms, defaults.linger_timeout));
    // SAFETY: the header's preface: NULL or NUL-terminated.
    if let Some(text) = unsafe { text(raw.ready_path, "options.ready_path")? } {
        builder = builder.ready_path(text);
    }
    builder = builder.lame_duck_min(duration_or(raw.lame_duck_min_ms, defaults.lame_duck_min));
    builder = builder.lame_duck_quiet(duration_or(
        raw.lame_duck_quiet_ms,
        defaults.lame_duck_quiet,
    ));
    builder = builder.idle_timeout(duration_or(raw.idle_timeout_ms, defaults.idle_timeout));
    builder = builder.keep_alive_header(raw.keep_alive_header != 0);
    builder = builder.second_signal(duration_or(raw.second_signal_ms, defaults.second_signal));
    builder = builder.reuse_port(raw.reuse_port != 0);
    // SAFETY: the header's preface: NULL or a httpdown_tls.
    builder = unsafe { tls::set(builder, raw.tls)? };
    builder = builder.reload_on_hup(raw.reload_on_hup != 0);
    builder = builder.body_timeout(duration_or(raw.body_timeout_ms, defaults.body_timeout));
    builder = builder.write_timeout(duration_or(raw.write_timeout_ms, defaults.write_timeout));
    if let Some(count) = count(raw.least_rate, "options.least_rate")? {
        builder = builder.least_rate(count);
    }
    if let Some(count) = count(raw.body_buffer, "options.body_buffer")? {
        builder = builder.body_buffer(count);
    }
    if let Some(count) = count(raw.drain_rate, "options.drain_rate")? {
        builder = builder.drain_rate(count);
    }
    // SAFETY: the header's preface: NULL or NUL-terminated.
    if let Some(text) = unsafe { text(raw.proxy_protocol_from, "options.proxy_protocol_from")? } {
        builder = builder.proxy_protocol_from(text);
    }
    // SAFETY: the header's preface: NULL or NUL-terminated.
    if let Some(text) = unsafe { text(raw.trusted_proxies, "options.trusted_proxies")? } {
        builder = builder.trusted_proxies(text);
    }
    // SAFETY: the header's preface: NULL or NUL-terminated.
    if let Some(text) = unsafe { text(raw.forwarded_by, "options.forwarded_by")? } {
        builder = builder.forwarded_by(text);
    }
    if raw.max_body_size != 0 {
        builder = builder.max_body_size(raw.max_body_size);
    }
    if let Some(count) = count(raw.max_headers, "options.max_headers")? {
        builder = builder.max_headers(count);
    }
    if let Some(count) = count(raw.max_head_size, "options.max_head_size")? {
        builder = builder.max_head_size(count);
    }
    if let Some(count) = count(raw.max_target_size, "options.max_target_size")? {
        builder = builder.max_target_size(count);
    }
    if let Some(count) = count(raw.max_conn_requests, "options.max_conn_requests")? {
        builder = builder.max_conn_requests(count);
    }
    if let Some(count) = count(raw.max_conns, "options.max_conns")? {
        builder = builder.max_conns(count);
    }
    if let Some(count) = count(raw.max_client_conns, "options.max_client_conns")? {
        builder = builder.max_client_conns(count);
    }
    if let Some(count) = count(raw.max_queued, "options.max_queued")? {
        builder = builder.max_queued(count);
    }
    if let Some(count) = count(raw.tcp_backlog, "options.tcp_backlog")? {
        builder = builder.tcp_backlog(count);
    }
    builder = builder.v6_only(raw.v6_only != 0);
    builder = builder.tcp_keepalive(duration_or(raw.tcp_keepalive_ms, defaults.tcp_keepalive));
    builder = builder.tcp_user_timeout(duration_or(
        raw.tcp_user_timeout_ms,
        defaults.tcp_user_timeout,
    ));
    if let Some(count) = count(raw.receive_buffer, "options.receive_buffer")? {
        builder = builder.receive_buffer(count);
    }
    if let Some(count) = count(raw.send_buffer, "options.send_buffer")? {
        builder = builder.send_buffer(count);
    }
    builder = builder.abort_on_close(raw.abort_on_close != 0);
    builder = builder.handler_timeout(duration_or(
        raw.handler_timeout_ms,
        defaults.handler_timeout,
    ));
    builder = builder.trim_memory(raw.trim_memory != 0);
    // SAFETY: the header's preface: NULL or NUL-terminated.
    if let Some(text) = unsafe { text(raw.canary, "options.canary")? } {
        builder = builder.canary(text);
    }
    // options: end read
    Ok(builder)
}

fn builder(raw: &httpdown_options, host: &Host) -> Result<Builder> {
    let mut builder = plain(raw)?;
    if !raw.clock.is_null() {
        // SAFETY: the header's preface: a clock.
        let clock = unsafe { borrow(raw.clock, "options.clock")? };
        builder = builder.clock(clock.clock.clone());
    }
    let stats = raw.stats;
    let has_stats = stats.bump_avg.is_some()
        || stats.bump_sum.is_some()
        || stats.bump_histogram.is_some()
        || stats.bump_time.is_some();
    if raw.pull_events != 0 {
        let has_callbacks = has_stats
            || raw.on_conn_state.is_some()
            || raw.on_phase.is_some()
            || raw.on_log.is_some()
            || raw.on_done.is_some();
        if has_callbacks {
            let why = "options.pull_events excludes callbacks for events".into();
            return Err(Error::InvalidArgument(why));
        }
        return Ok(builder.pull(interest(raw.pull_events)?));
    }
    if has_stats {
        let host = host.clone();
        builder = builder.stats(CStats { host, stats });
    }
    if raw.on_conn_state.is_some() {
        builder = builder.on_conn_state(callbacks::conn_state(host.clone(), raw.on_conn_state));
    }
    if raw.on_phase.is_some() {
        builder = builder.on_phase(callbacks::phase(host.clone(), raw.on_phase));
    }
    if raw.on_done.is_some() {
        builder = builder.on_done(record::done(host.clone(), raw.on_done));
    }
    if raw.on_log.is_some() {
        builder = builder.on_log(callbacks::log(host.clone(), raw.on_log));
    }
    Ok(builder)
}

/// `None`: the queue.
fn dispatch(raw: &httpdown_options) -> Result<Option<Dispatch>> {
    const POOL: c_int = httpdown_dispatch::HTTPDOWN_DISPATCH_POOL as c_int;
    const INLINE: c_int = httpdown_dispatch::HTTPDOWN_DISPATCH_INLINE as c_int;
    const QUEUE: c_int = httpdown_dispatch::HTTPDOWN_DISPATCH_QUEUE as c_int;
    let dispatch = match raw.dispatch {
        POOL => Some(
            threads(raw.pool_threads, "options.pool_threads")?
                .map_or_else(Dispatch::default, Dispatch::Pool),
        ),
        INLINE => Some(Dispatch::Inline),
        QUEUE => None,
        other => {
            let why = format!("options.dispatch {other} is not known");
            return Err(Error::Unsupported(why));
        }
    };
    match (dispatch, raw.handler) {
        (Some(_), None) => Err(Error::InvalidArgument("options.handler is NULL".into())),
        (None, Some(_)) => Err(Error::InvalidArgument(
            "options.handler is set, but the queue has none".into(),
        )),
        _ => Ok(dispatch),
    }
}

fn threads(count: u32, name: &str) -> Result<Option<NonZeroUsize>> {
    if count > MOST_THREADS {
        return Err(Error::InvalidArgument(format!("{name} is {count}")));
    }
    Ok(NonZeroUsize::new(count as usize))
}

#[allow(clippy::unnecessary_wraps, reason = "like `threads`")]
fn count(count: u32, _: &str) -> Result<Option<NonZeroUsize>> {
    Ok(NonZeroUsize::new(count as usize))
}

fn interest(kinds: u32) -> Result<Interest> {
    let has = |kind: httpdown_event_kind| kinds & kind as u32 != 0;
    if kinds >= 32 {
        let why = format!("options.pull_events {kinds} is not known");
        return Err(Error::Unsupported(why));
    }
    Ok(Interest {
        stats: has(httpdown_event_kind::HTTPDOWN_EVENT_STAT),
        conns: has(httpdown_event_kind::HTTPDOWN_EVENT_CONN),
        phases: has(httpdown_event_kind::HTTPDOWN_EVENT_PHASE),
        logs: has(httpdown_event_kind::HTTPDOWN_EVENT_LOG),
        done: has(httpdown_event_kind::HTTPDOWN_EVENT_DONE),
    })
}

fn fds(raw: &httpdown_options) -> Result<&[c_int]> {
    if raw.fd_count > MOST_FDS {
        let why = format!("options.fd_count is {}", raw.fd_count);
        return Err(Error::InvalidArgument(why));
    }
    // SAFETY: the header's preface: an array of that length.
    unsafe { slice(raw.fds, raw.fd_count, "options.fds") }
}

fn default_addr(raw: &httpdown_options) -> &'static str {
    if raw.tls.is_null() {
        DEFAULT_ADDR
    } else {
        DEFAULT_TLS_ADDR
    }
}

fn listeners(raw: &httpdown_options, builder: &mut Builder) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for &fd in fds(raw)? {
        let wrong = |why: &str| Error::InvalidArgument(format!("descriptor {fd}: {why}"));
        if fd < 0 {
            return Err(wrong("negative"));
        }
        if fds(raw)?.iter().filter(|&&other| other == fd).count() > 1 {
            return Err(wrong("given twice"));
        }
        // SAFETY: the number is not -1; the copy will show whether the descriptor is open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // We use a copy, so that the caller still has the original if anything fails.
        let copy = fd
            .try_clone_to_owned()
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EBADF) => wrong("not open"),
                _ => Error::io(format!("copying descriptor {}", fd.as_raw_fd()), error),
            })?;
        let listener = Listener::from_copy(copy, fd.as_raw_fd())?;
        listeners.push(if raw.fds_shared == 0 {
            listener
        } else {
            listener.shared()
        });
    }
    // SAFETY: the header's preface: NULL or NUL-terminated.
    let addr = unsafe { text(raw.addr, "options.addr")? };
    let default = listeners.is_empty().then(|| default_addr(raw));
    for addr in addr
        .or(default)
        .into_iter()
        .flat_map(|list| list.split(','))
    {
        listeners.push(builder.listen(addr.trim())?);
    }
    Ok(listeners)
}
