//! `httpdown_server`: its start, its queries and its stop.

use std::ffi::{c_char, c_int};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use once_cell::sync::OnceCell;

use crate::process;
use crate::{Error, Event, RequestQueue, Result, Server, Signals};

use super::boundary::{
    borrow, deadline, explained, output, room, size_of_callers, slice, status, status_of,
    status_text, text_array, value, without_cancellation, write_sized, write_text,
};
use super::callbacks::ForeignData;
use super::options::Options;
use super::record::{forget, keep};
use super::request::{httpdown_request, own};
use super::types::httpdown_event_kind::*;
use super::types::{httpdown_event, httpdown_options, httpdown_status, httpdown_stop_report};

/// A server. All functions except httpdown_free take a const pointer to it, so any thread may call them, several at
/// once.
pub struct httpdown_server {
    /// The server is set before any of its threads runs, and so before anybody else knows this struct.
    pub(super) server: Arc<OnceCell<Server>>,
    /// The queue, if the server has one.
    pub(super) queue: OnceCell<RequestQueue>,
    /// The host's data lives as long as the server, even if no callback needs it.
    data: Arc<ForeignData>,
}

impl httpdown_server {
    pub(super) fn data(&self) -> Arc<ForeignData> {
        Arc::clone(&self.data)
    }

    pub(super) fn get(&self) -> &Server {
        self.server.wait()
    }
}

/// Starts a server, and returns at once. The server runs on its own threads.
///
/// On OK you own `*server`, and end it by httpdown_free. Otherwise `*server` is NULL, and `error` (may be NULL) has the
/// reason as text, cut to `error_size` and NUL-terminated. The call blocks only while a host name, or a user or group,
/// in `addr` is looked up, and, for at most one second, while another process holds a lock on the directory of a Unix
/// socket (flock(2)).
///
/// Returns OK, INVALID_ARGUMENT, UNSUPPORTED, ADDR_INVALID, ADDR_IN_USE, PERMISSION_DENIED, IO, OUT_OF_RESOURCES, TLS,
/// FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_serve(
    options: *const httpdown_options,
    server: *mut *mut httpdown_server,
    error: *mut c_char,
    error_size: usize,
) -> c_int {
    // SAFETY: the header's preface: NULL or a buffer of that size.
    let error = unsafe { room(error, error_size, "error") };
    explained(error, || {
        // SAFETY: the header's preface: NULL or writable.
        let mut output = unsafe { output(server, "server") };
        if let Ok(output) = &mut output {
            output.write(std::ptr::null_mut());
        }
        // SAFETY: the header's preface: NULL or options. Read first: from here on `destroy` is ours to call.
        let options = unsafe { Options::read(options)? };
        let output = output?;
        output.write(Arc::into_raw(start(options)?).cast_mut());
        Ok(())
    })
}

/// Serves until SIGTERM or SIGINT, stops, and returns the result of the stop.
///
/// A second signal goes straight to the kill, unless it comes within second_signal_ms of the first. A third signal has
/// the effect that it had before this call. The earlier actions of the signals are restored at the end. A process can
/// have only one run at a time. In a child of fork or vfork, the signals have their earlier effect, and do not stop the
/// parent. A daemon forks first, and then runs: a child that is forked during the run can have no server (FORKED). To
/// learn when the server listens, and where, set the option `on_phase`.
///
/// During the run the calling thread takes the signals, even if it blocks them. So a blocked signal that came before
/// the run stops the server, too. If SIGINT is ignored, it stays ignored (a shell that is not interactive ignores it
/// for programs in the background); SIGTERM always stops. `report` (may be NULL; set its struct_size) is written if the
/// server has run, however it ended. `error` is like in httpdown_serve. Blocks.
///
/// After a restart, this process finishes its requests, and ignores SIGTERM and SIGINT: they are for the new one. Its
/// end comes after stop_timeout_ms and kill_timeout_ms at the latest. To end it sooner, send SIGKILL, or call
/// httpdown_kill_begin.
///
/// Returns as httpdown_serve and, when the server has run, as httpdown_stop.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_run(
    options: *const httpdown_options,
    report: *mut httpdown_stop_report,
    error: *mut c_char,
    error_size: usize,
) -> c_int {
    // SAFETY: the header's preface: NULL or a buffer of that size.
    let error = unsafe { room(error, error_size, "error") };
    explained(error, || {
        // SAFETY: the header's preface: NULL or options. Read first: from here on `destroy` is ours to call.
        let options = unsafe { Options::read(options)? };
        // SAFETY: the header's preface: NULL or a report.
        let reports = unsafe { Reports::new(report, 1)? };
        run(vec![options], &reports, |_, _, error| error)
    })
}

/// Runs several servers until SIGTERM or SIGINT, like httpdown_run runs one: for example a public server, and one for
/// metrics at an internal address.
///
/// `options` has `count` pointers, each to the options of one server. Each server has its own callbacks, `user_data`
/// and stop timeouts, and calls its own `destroy`. The signals are caught before the first server starts. The servers
/// start in their order. The first signal stops all servers at the same time, and a second one kills all. Two options
/// are about signals. Of `second_signal_ms`, the longest counts, so nothing is cut earlier than any server permits.
/// SIGHUP is for every server that has set `reload_on_hup`.
///
/// The call returns when all servers have ended. A server that is stopped in another way (by httpdown_stop_begin in a
/// handler, for example) ends alone, and the others go on. But if a server fails, the others are stopped, too. If a
/// server cannot be started, the servers that have started are stopped like by a signal, and `error` names the one that
/// could not, by its index and its `addr`. A restart is for all of them, and a stop of one cancels it. After a restart,
/// SIGTERM and SIGINT are ignored, as in httpdown_run.
///
/// `reports` (may be NULL) has `count` reports; set the struct_size of each. A report is written if its server has run,
/// however the server ended; its `status` is the result of that server. `error` is like in httpdown_serve. Blocks.
///
/// Returns as httpdown_run. If the servers have run, the worst of their results counts: an error such as IO, then
/// TIMED_OUT, then KILLED. INVALID_ARGUMENT also if `count` is 0 or more than 1,024, or if a pointer in `options` is
/// NULL or there twice.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_run_all(
    options: *const *const httpdown_options,
    count: usize,
    reports: *mut httpdown_stop_report,
    error: *mut c_char,
    error_size: usize,
) -> c_int {
    // SAFETY: the header's preface: NULL or a buffer of that size.
    let error = unsafe { room(error, error_size, "error") };
    explained(error, || {
        // SAFETY: the header's preface: NULL or an array of that size, of pointers that are NULL or options. Read
        // first: from here on each `destroy` is ours to call.
        let all = unsafe { read_all(options, count)? };
        // SAFETY: the header's preface: NULL or as many reports.
        let reports = unsafe { Reports::new(reports, count)? };
        run(all, &reports, |index, places, error| {
            let place = &places[index];
            let like = places[..index].iter().position(|other| other == place);
            let like = like.map_or_else(String::new, |first| format!(", like server {first}"));
            error.of(&format!("server {index} ({place}{like})"))
        })
    })
}

/// More servers than this are a mistake.
const MOST_SERVERS: usize = 1024;

/// Reads all options, even if some cannot be read: `destroy` is called for each of the others.
///
/// # Safety
/// NULL or an array of that size, of pointers that are NULL or options.
unsafe fn read_all(options: *const *const httpdown_options, count: usize) -> Result<Vec<Options>> {
    if !(1..=MOST_SERVERS).contains(&count) {
        return Err(Error::InvalidArgument(format!("count is {count}")));
    }
    // SAFETY: the same promise.
    let pointers = unsafe { slice(options, count, "options")? };
    let read = pointers.iter().enumerate().map(|(index, &pointer)| {
        if let Some(first) = pointers[..index].iter().position(|&other| other == pointer) {
            let why = format!("options[{index}] is options[{first}] again");
            return Err(Error::InvalidArgument(why));
        }
        // SAFETY: the same promise.
        let options = unsafe { Options::read(pointer) };
        options.map_err(|error| error.of(&format!("options[{index}]")))
    });
    // All, before the first error counts.
    let read: Vec<_> = read.collect();
    let read: Vec<Options> = read.into_iter().collect::<Result<_>>()?;
    match read.iter().skip(1).position(Options::has_restart) {
        None => Ok(read),
        Some(before) => {
            let index = before + 1;
            let why = format!("options[{index}].restart must be NULL: that of the first counts");
            Err(Error::InvalidArgument(why))
        }
    }
}

/// Runs servers until a signal. `blame` says in an error whose it is: it gets the index, and where the servers should
/// listen.
fn run(
    all: Vec<Options>,
    reports: &Reports,
    blame: impl Fn(usize, &[String], Error) -> Error,
) -> Result<()> {
    let mut signals = Signals::catch()?;
    if all.iter().any(Options::wants_hangup) {
        signals = signals.with_hangup()?;
    }
    if all.first().is_some_and(Options::wants_restart) {
        signals = signals.with_restart()?;
    }
    let places: Vec<String> = all.iter().map(Options::place).collect();
    let mut handles = Vec::new();
    let mut started = Ok(());
    for (index, options) in all.into_iter().enumerate() {
        match start(options) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                started = Err(blame(index, &places, error));
                break;
            }
        }
    }
    let servers: Vec<Server> = handles.iter().map(|handle| handle.get().clone()).collect();
    if servers.is_empty() {
        return started;
    }
    if started.is_err() {
        servers.iter().for_each(Server::stop_begin);
    }
    let result = signals.run_all(&servers);
    let mut indexed = servers.iter().enumerate();
    let reported = indexed.try_for_each(|(index, server)| reports.give(index, server));
    servers.into_iter().for_each(Server::close);
    started.and(reported).and(result.map(drop))
}

fn start(options: Options) -> Result<Arc<httpdown_server>> {
    let handle = Arc::new(httpdown_server {
        server: Arc::default(),
        queue: OnceCell::new(),
        data: options.data(),
    });
    options.serve(&handle)?;
    Ok(handle)
}

/// Stops the server: it takes no new connections and finishes the open requests; then this call returns the result.
/// Blocks, at most for lame_duck_ms + stop_timeout_ms + kill_timeout_ms. Other callers, at this time or later, wait for
/// the same end and get the same result. Before the call returns, all callbacks for events have been called; the last
/// is on_phase with HTTPDOWN_PHASE_STOPPED. But a stop waits at most one second for callbacks that block.
///
/// Do not call this on the only thread that takes requests from the queue. While that thread waits here, nobody answers
/// new requests until the kill. Such a thread calls httpdown_stop_begin, and goes on: see httpdown_event_fd.
///
/// Returns OK (nothing was cut), KILLED (requests were cut when the stop timeout had passed), TIMED_OUT (handlers had
/// to be abandoned), IO (serving had failed, or a listening socket could not be closed), WOULD_DEADLOCK (the server has
/// not ended, and the calling thread belongs to the server, or holds an unfinished request of the queue; the stop has
/// begun nevertheless), INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_stop(server: *const httpdown_server) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? };
        server.get().stop_blocking().map(drop)
    })
}

/// Begins the stop and returns at once. A second call does nothing. Never blocks; may be called anywhere, even in a
/// signal handler.
///
/// Returns OK, INVALID_ARGUMENT, FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_stop_begin(server: *const httpdown_server) -> c_int {
    // SAFETY: the same promise.
    unsafe { begin(server, Server::stop_begin) }
}

/// Goes straight to the kill, whether a stop has begun or not, and returns at once. Otherwise like httpdown_stop_begin.
///
/// Returns OK, INVALID_ARGUMENT, FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_kill_begin(server: *const httpdown_server) -> c_int {
    // SAFETY: the same promise.
    unsafe { begin(server, Server::kill_begin) }
}

/// This code allocates nothing, because it may run in a signal handler.
unsafe fn begin(server: *const httpdown_server, order: fn(&Server)) -> c_int {
    if process::forked() {
        return httpdown_status::HTTPDOWN_STATUS_FORKED as c_int;
    }
    // SAFETY: the header's preface: NULL or a server.
    match unsafe { server.as_ref() } {
        Some(server) => without_cancellation(|| order(server.get())),
        None => return httpdown_status::HTTPDOWN_STATUS_INVALID_ARGUMENT as c_int,
    }
    httpdown_status::HTTPDOWN_STATUS_OK as c_int
}

/// Waits at most `timeout_ms` until the server has ended completely, no matter who has stopped it. Any number of
/// threads may wait; all get the same result. `report` may be NULL (otherwise set its struct_size); it is written
/// whenever the server has ended.
///
/// Returns as httpdown_stop, and WOULD_BLOCK at the timeout.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_wait(
    server: *const httpdown_server,
    timeout_ms: u32,
    report: *mut httpdown_stop_report,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? }.get();
        // SAFETY: the header's preface: NULL or a report.
        unsafe { check_report(report)? };
        let result = server.wait_blocking(deadline(timeout_ms));
        let is_told = !matches!(result, Err(Error::WouldBlock));
        if is_told && server.outcome().is_some() {
            // SAFETY: as above.
            unsafe { give_report(report, server)? };
        }
        result.map(drop)
    })
}

/// Writes the current counts into `*report`. May be called at any time. Never blocks. Set `report->struct_size` before.
///
/// Returns OK, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_report(
    server: *const httpdown_server,
    report: *mut httpdown_stop_report,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? }.get();
        // SAFETY: the header's preface: NULL or a report.
        unsafe { size_of_callers(report, "report")? };
        // SAFETY: as above.
        unsafe { give_report(report, server) }
    })
}

/// Returns the server's phase: a httpdown_phase_code. Returns HTTPDOWN_PHASE_STOPPED also if `server` is NULL, and
/// where other calls return FORKED. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_phase(server: *const httpdown_server) -> c_int {
    value(crate::Phase::Stopped as c_int, || {
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? };
        Ok(server.get().phase() as c_int)
    })
}

/// Returns whether new requests are welcome, for a readiness probe. The result is false from the moment when a stop is
/// asked for, and so during the lame duck; also if `server` is NULL and after a fork. Never blocks; may be called
/// anywhere, even in a signal handler. With the option `ready_path`, the server answers this question by HTTP.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_ready(server: *const httpdown_server) -> bool {
    // Allocates nothing, because it may run in a signal handler.
    // SAFETY: the header's preface: NULL or a server.
    !process::forked() && unsafe { server.as_ref() }.is_some_and(|handle| handle.get().is_ready())
}

/// Writes the address that the server listens on as text ("127.0.0.1:8080", "unix:/run/app.sock") into `buffer`,
/// NUL-terminated; 512 bytes are enough. A path in `addr` is made absolute. `index` counts the listening sockets: `fds`
/// first, then those of `addr`. Never blocks.
///
/// Returns OK, INVALID_ARGUMENT (also: no such index, or the buffer is too small), FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_local_addr(
    server: *const httpdown_server,
    index: usize,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? }.get();
        // SAFETY: the header's preface: NULL or a buffer of that size.
        let buffer = unsafe { room(buffer, size, "buffer")? };
        let addr = server.local_addrs().get(index).map(ToString::to_string);
        match addr {
            Some(addr) if addr.len() < buffer.len() => {
                write_text(buffer, &addr);
                Ok(())
            }
            Some(_) => Err(Error::InvalidArgument("the buffer is too small".into())),
            None => Err(Error::InvalidArgument("no such listening socket".into())),
        }
    })
}

/// Ends a server: stops it if nobody has done so, waits until its threads have ended, and frees it. NULL is fine.
///
/// Blocks like httpdown_stop, and then until the callbacks for events have been called, at most for kill_timeout_ms or
/// one second, whichever is longer. On a thread that would wait for itself (in a handler, for example) the call returns
/// at once, and another thread does the rest. Handlers that never return are left behind; `destroy` is called when the
/// last of them does return. Nothing may use the server during this call or after it. In a child that was forked before
/// this call, the call does nothing: see FORKED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_free(server: *mut httpdown_server) {
    value((), || {
        if !server.is_null() {
            // SAFETY: it came from httpdown_serve, and is freed once.
            let handle = unsafe { Arc::from_raw(server.cast_const()) };
            without_cancellation(|| {
                handle.get().clone().close();
                drop(handle);
            });
        }
        Ok(())
    });
}

/// Takes requests from the queue (the option `dispatch` is HTTPDOWN_DISPATCH_QUEUE). Writes up to `capacity` requests
/// into `requests`, and their number into `*count`. Waits at most `timeout_ms` for the first request. Any thread may
/// make this call, several at once. You own the requests: each must be ended exactly once, by any thread.
///
/// While one of these requests is unfinished, the calling thread must not wait for the server to stop: WOULD_DEADLOCK.
/// Requests can be taken until the kill. Requests that nobody has taken by then are answered with 503.
///
/// Returns OK, WOULD_BLOCK (at the timeout), STOPPED (no request can come any more), INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_next(
    server: *const httpdown_server,
    timeout_ms: u32,
    requests: *mut *mut httpdown_request,
    capacity: usize,
    count: *mut usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let handle = unsafe { borrow(server, "server")? };
        // SAFETY: the header's preface: NULL or an array of that size.
        let requests = unsafe { room(requests, capacity, "requests")? };
        // SAFETY: the header's preface: NULL or writable.
        let count = unsafe { output(count, "count")? };
        let taken = queue_of(handle)?.take(requests.len(), deadline(timeout_ms))?;
        // SAFETY: `server` is the Arc that httpdown_serve gave out; the request keeps it alive.
        let handle = unsafe { share(server) };
        let owned = taken
            .into_iter()
            .filter_map(|exchange| own(exchange, &handle));
        let mut written = 0;
        for (place, request) in requests.iter_mut().zip(owned) {
            place.write(request);
            written += 1;
        }
        count.write(written);
        Ok(())
    })
}

/// Writes a descriptor for the program's own event loop into `*fd`. The descriptor is readable (level-triggered) while
/// requests wait in the queue, and after the end, when httpdown_next returns STOPPED. The descriptor belongs to the
/// server; do not read from it or close it. Never blocks.
///
/// Returns OK, INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_queue_fd(
    server: *const httpdown_server,
    fd: *mut c_int,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? };
        // SAFETY: the header's preface: NULL or writable.
        let fd = unsafe { output(fd, "fd")? };
        let queue = queue_of(server)?;
        fd.write(queue.descriptor()?.as_raw_fd());
        Ok(())
    })
}

/// Writes a descriptor for the program's own event loop into `*fd`. The descriptor is readable (level-triggered) while
/// events wait for httpdown_next_event. It is also readable after the end, when httpdown_wait does not wait any more,
/// even without the option `pull_events`. The descriptor belongs to the server; do not read from it or close it. Never
/// blocks.
///
/// With this descriptor and that of httpdown_queue_fd, a program with one thread stops without blocking, and loses no
/// request. The program calls httpdown_stop_begin, and goes on with its loop. In the loop it polls both descriptors;
/// takes and answers requests (httpdown_next with HTTPDOWN_NOW) until httpdown_next returns STOPPED, and from then on
/// polls only this descriptor; takes events, if it has asked for them; and calls httpdown_wait with HTTPDOWN_NOW. While
/// httpdown_wait returns WOULD_BLOCK, or WOULD_DEADLOCK because the thread holds a request, the server has not ended.
/// After that, httpdown_free returns at once.
///
/// Returns OK, INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_event_fd(
    server: *const httpdown_server,
    fd: *mut c_int,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? }.get();
        // SAFETY: the header's preface: NULL or writable.
        let fd = unsafe { output(fd, "fd")? };
        fd.write(server.event_descriptor()?.as_raw_fd());
        Ok(())
    })
}

pub(super) fn queue_of(server: &httpdown_server) -> Result<&RequestQueue> {
    let none = || Error::InvalidArgument("the server has no queue".into());
    server.queue.get().ok_or_else(none)
}

/// Another reference to a server.
///
/// # Safety
/// The pointer comes from an `Arc` that lives.
pub(super) unsafe fn share(server: *const httpdown_server) -> Arc<httpdown_server> {
    // SAFETY: the same promise.
    unsafe { Arc::increment_strong_count(server) };
    // SAFETY: the count was just increased for this.
    unsafe { Arc::from_raw(server) }
}

/// Takes the oldest event (the option `pull_events`). Waits at most `timeout_ms` for an event. Any thread may make this
/// call, several at once. Set `event->struct_size` before. Events that nobody takes in time are dropped, and counted in
/// the report.
///
/// Returns OK, WOULD_BLOCK (at the timeout), STOPPED (the server has ended and all events were taken),
/// INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_next_event(
    server: *const httpdown_server,
    timeout_ms: u32,
    event: *mut httpdown_event,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? }.get();
        // SAFETY: the header's preface: NULL or an event.
        unsafe { size_of_callers(event, "event")? };
        forget();
        let next = server.next_event(deadline(timeout_ms))?;
        // SAFETY: as above.
        unsafe { write_sized(event, next.into(), "event") }
    })
}

impl From<Event> for httpdown_event {
    fn from(event: Event) -> Self {
        let of = |kind: super::types::httpdown_event_kind, code: c_int| Self {
            struct_size: size_of::<Self>(),
            kind: kind as c_int,
            code,
            conn_id: 0,
            value: 0.0,
            name: [0; 64],
            text: [0; 512],
            record: std::ptr::null(),
        };
        match event {
            Event::Stat { kind, key, value } => Self {
                value,
                name: text_array(key),
                ..of(HTTPDOWN_EVENT_STAT, kind as c_int)
            },
            Event::Conn(conn) => Self {
                conn_id: conn.id,
                name: text_array(&conn.peer.to_string()),
                ..of(HTTPDOWN_EVENT_CONN, conn.state as c_int)
            },
            Event::Phase(phase) => of(HTTPDOWN_EVENT_PHASE, phase as c_int),
            Event::Done(record) => Self {
                conn_id: record.conn().id,
                record: keep(record),
                ..of(HTTPDOWN_EVENT_DONE, 0)
            },
            Event::Log(level, text) => Self {
                text: text_array(&text),
                ..of(HTTPDOWN_EVENT_LOG, level as c_int)
            },
        }
    }
}

/// Where a caller gets the reports of its servers, if it wants them.
struct Reports {
    first: *mut httpdown_stop_report,
    /// How far apart they are: the size that the caller knows.
    size: usize,
}

impl Reports {
    /// # Safety
    /// NULL or so many reports, as long as this value lives.
    unsafe fn new(first: *mut httpdown_stop_report, count: usize) -> Result<Self> {
        let mut reports = Self { first, size: 0 };
        if first.is_null() {
            return Ok(reports);
        }
        // SAFETY: not NULL, so a report.
        reports.size = unsafe { size_of_callers(first, "report")? };
        let wrong = |why| Err(Error::InvalidArgument(why));
        if count > 1
            && !reports
                .size
                .is_multiple_of(align_of::<httpdown_stop_report>())
        {
            return wrong(format!("reports: struct_size is {}", reports.size));
        }
        for index in 1..count {
            // SAFETY: there are so many reports, and each has the size of the first.
            let size = unsafe { size_of_callers(reports.at(index), "report")? };
            if size != reports.size {
                return wrong(format!(
                    "reports[{index}]: struct_size is {size}, and that of the first is {}",
                    reports.size
                ));
            }
        }
        Ok(reports)
    }

    fn at(&self, index: usize) -> *mut httpdown_stop_report {
        self.first.wrapping_byte_add(index * self.size)
    }

    fn give(&self, index: usize, server: &Server) -> Result<()> {
        // SAFETY: NULL, where all are, or a report, as `new` was promised.
        unsafe { give_report(self.at(index), server) }
    }
}

/// # Safety
/// NULL or a report.
unsafe fn check_report(report: *mut httpdown_stop_report) -> Result<()> {
    if !report.is_null() {
        // SAFETY: not NULL, so a report.
        unsafe { size_of_callers(report, "report")? };
    }
    Ok(())
}

/// # Safety
/// NULL or a report.
unsafe fn give_report(report: *mut httpdown_stop_report, server: &Server) -> Result<()> {
    if report.is_null() {
        return Ok(());
    }
    let status = match server.outcome() {
        Some(Err(error)) => status_of(&error),
        Some(Ok(())) | None => httpdown_status::HTTPDOWN_STATUS_OK,
    };
    let of = server.report();
    let value = httpdown_stop_report {
        struct_size: size_of::<httpdown_stop_report>(),
        phase: of.phase as c_int,
        status: status as c_int,
        stop_duration_ms: u64::try_from(of.stop_duration.as_millis()).unwrap_or(u64::MAX),
        connections: of.connections,
        conns_open: of.conns_open,
        conns_new: of.conns_new,
        conns_active: of.conns_active,
        conns_idle: of.conns_idle,
        conns_hijacked: of.conns_hijacked,
        conns_closed: of.conns_closed,
        closed_idle: of.closed_idle,
        raced: of.raced,
        conns_gone: of.conns_gone,
        conns_timed_out: of.conns_timed_out,
        conns_killed: of.conns_killed,
        requests: of.requests,
        served: of.served,
        failed: of.failed,
        gone: of.gone,
        killed: of.killed,
        abandoned: of.abandoned,
        hijacked_killed: of.hijacked_killed,
        unaccepted: of.unaccepted,
        bytes_unacked: of.bytes_unacked,
        events_dropped: of.events_dropped,
        conns_handshaking: of.conns_handshaking,
        conns_tls_failed: of.conns_tls_failed,
        conns_tls_timed_out: of.conns_tls_timed_out,
        timed_out: of.timed_out,
        overdue: of.overdue,
        successor_pid: of.successor.map_or(0, u64::from),
    };
    // SAFETY: not NULL, so a report.
    unsafe { write_sized(report, value, "report") }
}

/// Returns the meaning of a status as English text: static, NUL-terminated, never NULL. May be called anywhere.
#[unsafe(no_mangle)]
pub extern "C" fn httpdown_status_string(status: c_int) -> *const c_char {
    status_text(status).as_ptr()
}

/// Returns, as English text, why the calling thread's last failing call has failed. Functions that return a status set
/// this text, whatever the status. The text is NUL-terminated, cut to 511 bytes, and never NULL: "" if no call has
/// failed. The text belongs to the library, and is valid until the thread's next failing call, or the thread's end; a
/// call that succeeds does not change it. Never blocks. Any thread may make this call, even while the thread ends.
/// httpdown_stop_begin and httpdown_kill_begin, which signal handlers may call, do not set the text.
#[unsafe(no_mangle)]
pub extern "C" fn httpdown_last_error() -> *const c_char {
    super::last_error::text()
}

/// Returns the version of the library that runs, as text: static, NUL-terminated. The header's version is
/// HTTPDOWN_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn httpdown_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
