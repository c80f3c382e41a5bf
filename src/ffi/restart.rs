//! A restart: its options, its result, and what is known of it.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::process;
use crate::restart::{no_notify, restart_info, restart_ready, run_ready};
use crate::{Error, Restart, Restarted, Result};

use super::boundary::{
    Sized, borrow, duration_or, explained, read_sized, room, size_of_callers, status, status_of,
    write_sized,
};
use super::callbacks::ForeignData;
use super::options::httpdown_options_init;
use super::server::httpdown_server;
use super::types::httpdown_restart_flag::*;
use super::types::{
    httpdown_before_restart_fn, httpdown_restart_fn, httpdown_restart_options, httpdown_restarts,
    httpdown_status,
};

// SAFETY: zero is valid in each field, and the size comes first.
unsafe impl Sized for httpdown_restart_options {
    const LEAST: usize = offset_of!(httpdown_restart_options, argv);
}

// SAFETY: as above.
unsafe impl Sized for httpdown_restarts {
    const LEAST: usize = offset_of!(httpdown_restarts, generation);
}

/// How long the text of a veto may be, in bytes.
const VETO_SIZE: usize = 1024;

/// Sets every field to its default, like httpdown_options_init. `struct_size` is the caller's
/// sizeof(httpdown_restart_options).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_restart_options_init(
    options: *mut httpdown_restart_options,
    struct_size: usize,
) {
    // SAFETY: the header's preface: NULL or a struct of that size; it also begins with its size.
    unsafe { httpdown_options_init(options.cast(), struct_size) };
}

/// Restarts the program without a loss: starts it as a new process, which takes over the listening sockets of all
/// servers of this process, and returns when it has. Whoever connects then comes to the new process. All servers of this
/// one stop, without a lame duck: they finish their requests (httpdown_wait), and the report has `successor_pid`.
///
/// The new process does what this one did: it calls httpdown_serve with the same `addr`, and gets the sockets. When it
/// serves all of them, both processes accept connections for `probation_ms`. If the new process ends or hangs before
/// that is over, it is ended, and this one goes on as before: it has never ceased to accept. Then the result is
/// RESTART_FAILED, and `error` says why, with the last words of the new process: up to 4 KiB of its standard error, until
/// it was ready. What it writes later goes to the real one, and is not in the text. Only the connections that a failed
/// process had accepted are lost; the text says how many they were. A stop of any server of this process cancels the
/// restart.
///
/// `options` may be NULL. `error` is like in httpdown_serve. All servers of the process restart together; on_log and the
/// statistics of `server` tell of it. Blocks until it has succeeded or failed: for as long as the new process needs, at
/// most about ready_timeout_ms + probation_ms. Any thread may make this call, also in a handler: it waits for no
/// request. But a thread that drives connections (HTTPDOWN_DISPATCH_INLINE), and the events thread, serve nobody
/// meanwhile: httpdown_restart_begin is for them.
///
/// Returns OK, RESTART_FAILED; BUSY (a restart is under way, or was a success; this process has not taken over from its
/// own predecessor yet; too many earlier processes still drain), STOPPED (a stop was asked for), UNSUPPORTED (this is
/// the first process of a container, or a service of systemd that is not of Type=notify; unknown flags),
/// INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_restart(
    server: *const httpdown_server,
    options: *const httpdown_restart_options,
    error: *mut c_char,
    error_size: usize,
) -> c_int {
    // SAFETY: the header's preface: NULL or a buffer of that size.
    let error = unsafe { room(error, error_size, "error") };
    explained(error, || {
        // SAFETY: the header's preface: NULL or options. Read first: from here on `destroy` is ours to call.
        let restart = unsafe { read(options)? };
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? };
        server.get().restart_blocking(restart).map(drop)
    })
}

/// Like httpdown_restart, but returns as soon as the restart has begun. `on_restart` is told how it ends, and so is
/// on_log. Does not block.
///
/// Returns OK (the restart has begun), BUSY, STOPPED, UNSUPPORTED, INVALID_ARGUMENT, OUT_OF_RESOURCES, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_restart_begin(
    server: *const httpdown_server,
    options: *const httpdown_restart_options,
) -> c_int {
    super::boundary::status_in_child_too(|| {
        // SAFETY: the header's preface: NULL or options. Read first: from here on `destroy` is ours to call.
        let restart = unsafe { read(options)? };
        // SAFETY: the header's preface: NULL or a server.
        let server = unsafe { borrow(server, "server")? };
        server.get().restart_begin(restart)
    })
}

/// Says that this process has started all its servers, and that they are the service. Does nothing after the first call
/// that has succeeded. Never blocks.
///
/// In a process that was started by a restart, it is needed only with HTTPDOWN_RESTART_DROP_UNCLAIMED; otherwise the
/// process is ready as soon as it serves all sockets that it was given. A socket that nobody serves makes the restart
/// fail after ready_timeout_ms; with this call it fails at once. httpdown_run does not make this call: it waits.
///
/// To systemd (`Type=notify`) it says `READY=1`, if this process was not started by a restart; and from now on
/// `STOPPING=1` when the stop of the last server begins, and `WATCHDOG=1` if the unit has `WatchdogSec=`. httpdown_run
/// and httpdown_run_all do so by themselves.
///
/// Returns OK, RESTART_FAILED (a socket is not served, or no server was started: httpdown_last_error says which; the
/// restart has failed, and this process is ended), INVALID_ARGUMENT (no server was started, in a process that was not
/// started by a restart; nothing was said), FORKED.
#[unsafe(no_mangle)]
pub extern "C" fn httpdown_restart_ready() -> c_int {
    status(restart_ready)
}

/// Says what httpdown_run says when its servers serve: that they are the service. For a program that waits for its
/// signals itself. Like httpdown_restart_ready, but other threads may start more servers later: a socket that is not
/// served yet is no error. In a process that was started by a restart with HTTPDOWN_RESTART_DROP_UNCLAIMED, it is closed.
///
/// Returns what httpdown_restart_ready returns, but for sockets that are not served.
#[unsafe(no_mangle)]
pub extern "C" fn httpdown_run_ready() -> c_int {
    status(run_ready)
}

/// Leaves it to the program to talk with systemd (sd_notify(3)): nothing is sent to NOTIFY_SOCKET, neither of starts and
/// stops nor of restarts. A program that uses sd_notify itself calls this first, before its first server is started, in
/// each process. Any thread may call it. Never blocks.
#[unsafe(no_mangle)]
pub extern "C" fn httpdown_no_notify() {
    no_notify();
}

/// Writes into `*restarts` what is known of the restarts of this program. Set `restarts->struct_size` before. Writes the
/// process IDs of up to `capacity` earlier processes that have not ended into `predecessors` (NULL is fine if `capacity`
/// is 0), the youngest first. Any thread may make this call. Never blocks.
///
/// Returns OK, INVALID_ARGUMENT, FORKED.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn httpdown_restart_info(
    restarts: *mut httpdown_restarts,
    predecessors: *mut u32,
    capacity: usize,
) -> c_int {
    status(|| {
        // SAFETY: the header's preface: NULL or a struct.
        unsafe { size_of_callers(restarts, "restarts")? };
        // SAFETY: the header's preface: NULL or an array of that size.
        let places = unsafe { room(predecessors, capacity, "predecessors")? };
        let info = restart_info();
        for (place, pid) in places.iter_mut().zip(&info.predecessors) {
            place.write(*pid);
        }
        let value = httpdown_restarts {
            struct_size: size_of::<httpdown_restarts>(),
            state: info.state as c_int,
            successor_pid: info.successor.unwrap_or(0),
            generation: info.generation,
            predecessor_count: info.predecessors.len(),
        };
        // SAFETY: as above.
        unsafe { write_sized(restarts, value, "restarts") }
    })
}

/// The options of a restart; NULL: the defaults. The restart owns the host's data: whatever is wrong with the other
/// options, the data is destroyed exactly once.
///
/// # Safety
/// The pointer is NULL or points to options, as the header describes them.
pub(super) unsafe fn read(options: *const httpdown_restart_options) -> Result<Restart> {
    if options.is_null() {
        return Ok(Restart::default());
    }
    // SAFETY: the same promise.
    let (raw, understood): (httpdown_restart_options, _) =
        unsafe { read_sized(options, "options")? };
    let data = Arc::new(ForeignData {
        pointer: raw.user_data,
        destroy: raw.destroy,
    });
    understood?;
    if process::forked() {
        return Err(Error::Forked);
    }
    let mut restart = callbacks(&raw, &data);
    // SAFETY: the header's preface: NULL or NUL-terminated.
    if let Some(program) = unsafe { os_text(raw.program) } {
        restart = restart.program(Path::new(program));
    }
    // SAFETY: the header's preface: NULL, or texts and a NULL.
    if let Some(args) = unsafe { os_texts(raw.argv) } {
        if args.is_empty() {
            let why = "options.argv is empty: the first one is the program's name";
            return Err(Error::InvalidArgument(why.into()));
        }
        restart = restart.args(args);
    }
    // SAFETY: the same.
    if let Some(env) = unsafe { os_texts(raw.envp) } {
        let env: Result<Vec<_>> = env.into_iter().enumerate().map(variable).collect();
        restart = restart.env(env?);
    }
    // SAFETY: the header's preface: NULL or NUL-terminated.
    if let Some(directory) = unsafe { os_text(raw.directory) } {
        restart = restart.directory(Path::new(directory));
    }
    // SAFETY: the same.
    if let Some(file) = unsafe { os_text(raw.pid_file) } {
        restart = restart.pid_file(Path::new(file));
    }
    if raw.ready_timeout_ms != 0 {
        restart = restart.ready_timeout(duration_or(raw.ready_timeout_ms, Duration::ZERO));
    }
    if raw.probation_ms != 0 {
        restart = restart.probation(duration_or(raw.probation_ms, Duration::ZERO));
    }
    if raw.max_predecessors != 0 {
        restart = restart.max_predecessors(raw.max_predecessors as usize);
    }
    let all = [
        HTTPDOWN_RESTART_DROP_UNCLAIMED,
        HTTPDOWN_RESTART_KEEP_FDS,
        HTTPDOWN_RESTART_PLAIN_STDERR,
        HTTPDOWN_RESTART_ON_HUP,
        HTTPDOWN_RESTART_NO_SIGNAL,
    ];
    let known = all.into_iter().fold(0, |known, flag| known | flag as u32);
    if raw.flags & !known != 0 {
        let why = format!("options.flags {} is not known", raw.flags);
        return Err(Error::Unsupported(why));
    }
    let has = |flag| raw.flags & flag as u32 != 0;
    Ok(restart
        .drop_unclaimed(has(HTTPDOWN_RESTART_DROP_UNCLAIMED))
        .keep_fds(has(HTTPDOWN_RESTART_KEEP_FDS))
        .plain_stderr(has(HTTPDOWN_RESTART_PLAIN_STDERR))
        .on_hup(has(HTTPDOWN_RESTART_ON_HUP))
        .no_signal(has(HTTPDOWN_RESTART_NO_SIGNAL)))
}

fn callbacks(raw: &httpdown_restart_options, data: &Arc<ForeignData>) -> Restart {
    let (before, on_restart) = (raw.before, raw.on_restart);
    let mut restart = Restart::default();
    if before.is_some() {
        let data = Arc::clone(data);
        restart = restart.before(move || may_restart(before, &data));
    }
    // Whether or not it is called: the data lives as long as the restart.
    let data = Arc::clone(data);
    restart.on_end(move |result| tell(on_restart, result, &data))
}

fn may_restart(before: httpdown_before_restart_fn, data: &ForeignData) -> Result<(), String> {
    let mut why = [0; VETO_SIZE];
    let answer = before.map_or(0, |before| {
        // SAFETY: the host's own callback, with the host's own data; the buffer lives until it returns.
        unsafe { before(why.as_mut_ptr(), VETO_SIZE, data.pointer) }
    });
    if answer == 0 {
        return Ok(());
    }
    // If the callback has filled the buffer to its end.
    why[VETO_SIZE - 1] = 0;
    // SAFETY: the last byte is a NUL.
    let why = unsafe { CStr::from_ptr(why.as_ptr()) }.to_string_lossy();
    Err(match &*why {
        "" => format!("the check before it has returned {answer}"),
        why => why.into(),
    })
}

fn tell(on_restart: httpdown_restart_fn, result: &Result<Restarted>, data: &ForeignData) {
    let Some(on_restart) = on_restart else { return };
    let (status, text, pid) = match result {
        Ok(restarted) => (
            httpdown_status::HTTPDOWN_STATUS_OK,
            String::new(),
            restarted.pid,
        ),
        Err(error) => (status_of(error), format!("{error:#}"), 0),
    };
    // A NUL inside would end the text early.
    let text = CString::new(text.split('\0').next().unwrap_or("")).unwrap_or_default();
    // SAFETY: the host's own callback, with the host's own data; the text lives until it returns.
    unsafe { on_restart(status as c_int, text.as_ptr(), pid, data.pointer) };
}

/// `NAME=VALUE` of the environment.
fn variable((index, entry): (usize, OsString)) -> Result<(OsString, OsString)> {
    let bytes = entry.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=');
    // Not the entry, which may be a secret.
    let at =
        at.ok_or_else(|| Error::InvalidArgument(format!("options.envp[{index}] has no '='")))?;
    let part = |bytes| OsStr::from_bytes(bytes).to_owned();
    Ok((part(&bytes[..at]), part(&bytes[at + 1..])))
}

/// A path, or another text of the kernel's; NULL is `None`.
///
/// # Safety
/// If the pointer is not NULL, the text is NUL-terminated.
unsafe fn os_text<'a>(pointer: *const c_char) -> Option<&'a OsStr> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    Some(OsStr::from_bytes(text.to_bytes()))
}

/// Copies of the texts of an array that ends with NULL; NULL is `None`.
///
/// # Safety
/// If the pointer is not NULL, it points to texts, each of them NUL-terminated, and a NULL.
unsafe fn os_texts(array: *const *mut c_char) -> Option<Vec<OsString>> {
    if array.is_null() {
        return None;
    }
    let mut texts = Vec::new();
    loop {
        // SAFETY: the array has not ended yet.
        let pointer = unsafe { *array.add(texts.len()) };
        // SAFETY: the caller's promise.
        match unsafe { os_text(pointer) } {
            Some(text) => texts.push(text.to_owned()),
            None => return Some(texts),
        }
    }
}
