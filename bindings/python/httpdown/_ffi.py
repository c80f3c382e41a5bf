"""Finds and loads the C library, and declares everything that include/httpdown.h declares.

`ctypes.CDLL` releases the GIL while C runs, so any call may block. There are no callbacks, so only
Python's own threads enter the interpreter.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from ctypes import (
    POINTER,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_int,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from enum import IntEnum, IntFlag
from importlib import metadata
from pathlib import Path
from typing import Any

from . import _errors

NOW = 4294967294
FOREVER = 4294967295
TO_END = 2**64 - 1

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[2]
_MANIFEST = _CHECKOUT / "Cargo.toml"
_IN_CHECKOUT = _MANIFEST.is_file() and (_CHECKOUT / "include" / "httpdown.h").is_file()


def _package_version() -> str:
    if _IN_CHECKOUT:
        found = re.search(r'^version = "(.+)"', _MANIFEST.read_text("utf-8"), re.MULTILINE)
        assert found is not None
        return found[1]
    return metadata.version("httpdown")


def _find() -> Path:
    """The library that belongs to this package, never another one that the system has."""
    bundled = sorted(_PACKAGE.glob("libhttpdown.so*"))
    if bundled:
        return bundled[0]
    named = os.environ.get("HTTPDOWN_LIBRARY")
    if named:
        return Path(named).resolve()
    built = _CHECKOUT / "build" / "libhttpdown.so.0"
    if _IN_CHECKOUT and built.is_file():
        return built
    hint = "run `make lib`" if _IN_CHECKOUT else "install the package again"
    raise ImportError(
        f"httpdown's library is not in {_PACKAGE}: {hint}, or set HTTPDOWN_LIBRARY to its path"
    )


def _load() -> ctypes.CDLL:
    path = _find()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"httpdown's library cannot be loaded: {error}") from error
    # const char *httpdown_version(void);
    library.httpdown_version.argtypes = []
    library.httpdown_version.restype = c_char_p
    found: str = library.httpdown_version().decode()
    # Before 1.0 the interface may change with any minor version.
    if found.split(".")[:2] != VERSION.split(".")[:2]:
        raise ImportError(f"{path} is httpdown {found}, but this package needs {VERSION}")
    return library


VERSION = _package_version()
_library = _load()
httpdown_version: Callable[..., Any] = _library.httpdown_version


class Phase(_errors.Code):
    """The phase of a server's life. A phase only moves forward."""

    SERVING = 0
    LAME_DUCK = 1
    QUIESCING = 2
    DRAINING = 3
    KILLING = 4
    STOPPED = 5


class ConnState(_errors.Code):
    """The state of a connection."""

    NEW = 0
    ACTIVE = 1
    IDLE = 2
    HIJACKED = 3
    CLOSED = 4
    HANDSHAKING = 5


class Dispatch(IntEnum):
    POOL = 0
    INLINE = 1
    QUEUE = 2


class LogLevel(_errors.Code):
    """How much a log line matters."""

    ERROR = 0
    WARNING = 1
    INFO = 2


class EventKind(IntFlag):
    STAT = 1
    CONN = 2
    PHASE = 4
    LOG = 8
    DONE = 16


class StatKind(IntEnum):
    AVG = 0
    SUM = 1
    HISTOGRAM = 2
    TIME = 3


class RequestEnd(_errors.Code):
    """How a request has ended: its column in the Report."""

    SERVED = 0
    FAILED = 1
    GONE = 2
    TIMED_OUT = 3
    KILLED = 4


class LogFormat(IntEnum):
    COMMON = 0
    COMBINED = 1
    JSON = 2


class TlsVersion(IntEnum):
    TLS_1_2 = 12
    TLS_1_3 = 13


class ClientAuth(IntEnum):
    NONE = 0
    OPTIONAL = 1
    REQUIRED = 2


class RestartState(_errors.Code):
    """Where a process is in a restart."""

    IDLE = 0
    SUCCEEDING = 1
    STARTING = 2
    PROBATION = 3
    HANDED_OVER = 4


class RestartFlag(IntFlag):
    """What a restart does otherwise than by default."""

    DROP_UNCLAIMED = 1
    KEEP_FDS = 2
    PLAIN_STDERR = 4
    ON_HUP = 8
    NO_SIGNAL = 16


class Ready(IntFlag):
    """What can happen to a request."""

    READABLE = 1
    WRITABLE = 2
    GONE = 4
    DRAINING = 8
    NEW = 16
    OVERDUE = 32


# Callbacks are plain addresses here, because they are always NULL. So are pointers from one struct
# to another, because only few are used.


class Stats(ctypes.Structure):
    _fields_ = [
        ("bump_avg", c_void_p),
        ("bump_sum", c_void_p),
        ("bump_histogram", c_void_p),
        ("bump_time", c_void_p),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("addr", c_char_p),
        ("fds", POINTER(c_int)),
        ("fd_count", c_size_t),
        ("handler", c_void_p),
        ("user_data", c_void_p),
        ("destroy", c_void_p),
        ("stats", Stats),
        ("on_conn_state", c_void_p),
        ("on_phase", c_void_p),
        ("on_log", c_void_p),
        ("clock", c_void_p),
        # options: begin fields (made from src/options.toml by `make options`)
        ("stop_timeout_ms", c_uint32),
        ("kill_timeout_ms", c_uint32),
        ("lame_duck_ms", c_uint32),
        ("header_timeout_ms", c_uint32),
        ("dispatch", c_int),
        ("pool_threads", c_uint32),
        ("io_threads", c_uint32),
        ("fds_shared", c_int),
        ("pull_events", c_uint32),
        ("idle_grace_ms", c_uint32),
        ("quiesce_timeout_ms", c_uint32),
        ("linger_timeout_ms", c_uint32),
        ("ready_path", c_char_p),
        ("lame_duck_min_ms", c_uint32),
        ("lame_duck_quiet_ms", c_uint32),
        ("idle_timeout_ms", c_uint32),
        ("keep_alive_header", c_int),
        ("second_signal_ms", c_uint32),
        ("reuse_port", c_int),
        ("tls", c_void_p),
        ("reload_on_hup", c_int),
        ("body_timeout_ms", c_uint32),
        ("write_timeout_ms", c_uint32),
        ("least_rate", c_uint32),
        ("body_buffer", c_uint32),
        ("drain_rate", c_uint32),
        ("on_done", c_void_p),
        ("proxy_protocol_from", c_char_p),
        ("trusted_proxies", c_char_p),
        ("forwarded_by", c_char_p),
        ("max_body_size", c_uint64),
        ("max_headers", c_uint32),
        ("max_head_size", c_uint32),
        ("max_target_size", c_uint32),
        ("max_conn_requests", c_uint32),
        ("max_conns", c_uint32),
        ("max_client_conns", c_uint32),
        ("max_queued", c_uint32),
        ("tcp_backlog", c_uint32),
        ("v6_only", c_int),
        ("tcp_keepalive_ms", c_uint32),
        ("tcp_user_timeout_ms", c_uint32),
        ("receive_buffer", c_uint32),
        ("send_buffer", c_uint32),
        ("abort_on_close", c_int),
        ("handler_timeout_ms", c_uint32),
        ("trim_memory", c_int),
        ("canary", c_char_p),
        ("restart", c_void_p),
        # options: end fields
    ]


class StopReport(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("phase", c_int),
        ("status", c_int),
        ("stop_duration_ms", c_uint64),
        ("connections", c_uint64),
        ("conns_open", c_uint64),
        ("conns_new", c_uint64),
        ("conns_active", c_uint64),
        ("conns_idle", c_uint64),
        ("conns_hijacked", c_uint64),
        ("conns_closed", c_uint64),
        ("closed_idle", c_uint64),
        ("raced", c_uint64),
        ("conns_gone", c_uint64),
        ("conns_timed_out", c_uint64),
        ("conns_killed", c_uint64),
        ("requests", c_uint64),
        ("served", c_uint64),
        ("failed", c_uint64),
        ("gone", c_uint64),
        ("killed", c_uint64),
        ("abandoned", c_uint64),
        ("hijacked_killed", c_uint64),
        ("unaccepted", c_uint64),
        ("bytes_unacked", c_uint64),
        ("events_dropped", c_uint64),
        ("conns_handshaking", c_uint64),
        ("conns_tls_failed", c_uint64),
        ("conns_tls_timed_out", c_uint64),
        ("timed_out", c_uint64),
        ("overdue", c_uint64),
        ("successor_pid", c_uint64),
    ]


class Event(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("kind", c_int),
        ("code", c_int),
        ("conn_id", c_uint64),
        ("value", c_double),
        ("name", c_char * 64),
        ("text", c_char * 512),
        ("record", c_void_p),
    ]


class Bytes(ctypes.Structure):
    # Not c_char_p, which would end at the first NUL.
    _fields_ = [("data", c_void_p), ("len", c_size_t)]


class RequestRecord(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("end", c_int),
        ("status_code", c_int),
        ("version", c_int),
        ("tls", c_int),
        ("conn_id", c_uint64),
        ("number", c_uint64),
        ("received", c_uint64),
        ("sent", c_uint64),
        ("began_us", c_int64),
        ("head_us", c_int64),
        ("called_us", c_int64),
        ("answered_us", c_int64),
        ("flushed_us", c_int64),
        ("acknowledged_us", c_int64),
        ("ended_us", c_int64),
        ("peer", Bytes),
        ("method", Bytes),
        ("target", Bytes),
        ("referer", Bytes),
        ("user_agent", Bytes),
        ("data", c_void_p),
        ("overdue", c_int),
        ("reserved", c_int),
    ]


class Credentials(ctypes.Structure):
    _fields_ = [("pid", c_uint32), ("uid", c_uint32), ("gid", c_uint32)]


class Header(ctypes.Structure):
    _fields_ = [("name", Bytes), ("value", Bytes)]


class Item(ctypes.Structure):
    _fields_ = [
        ("request", c_void_p),
        ("user_data", c_void_p),
        ("ready", c_uint32),
        ("reserved_0", c_uint32),
        ("stream", c_void_p),
    ]


class Certificate(ctypes.Structure):
    _fields_ = [
        ("cert_file", c_char_p),
        ("key_file", c_char_p),
        ("cert", Bytes),
        ("key", Bytes),
    ]


class Tls(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("cert_file", c_char_p),
        ("key_file", c_char_p),
        ("cert", Bytes),
        ("key", Bytes),
        ("more", c_void_p),
        ("more_count", c_size_t),
        ("client_auth", c_int),
        ("min_version", c_int),
        ("ca_file", c_char_p),
        ("ca", Bytes),
        ("crl_file", c_char_p),
        ("crl", Bytes),
        ("ticket_keys", Bytes),
        ("handshake_timeout_ms", c_uint32),
        ("handshakes", c_uint32),
    ]


class TlsInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("version", c_int),
        ("resumed", c_int),
        ("cipher_suite", Bytes),
        ("server_name", Bytes),
        ("alpn", Bytes),
        ("client_certificate", Bytes),
        ("client_subject", Bytes),
        ("client_names", Bytes),
        ("client_fingerprint", c_uint8 * 32),
    ]


class RestartOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("program", c_char_p),
        ("argv", POINTER(c_char_p)),
        ("envp", POINTER(c_char_p)),
        ("directory", c_char_p),
        ("before", c_void_p),
        ("on_restart", c_void_p),
        ("user_data", c_void_p),
        ("destroy", c_void_p),
        ("ready_timeout_ms", c_uint32),
        ("probation_ms", c_uint32),
        ("max_predecessors", c_uint32),
        ("flags", c_uint32),
        ("pid_file", c_char_p),
    ]


class Restarts(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("state", c_int),
        ("successor_pid", c_uint32),
        ("generation", c_uint64),
        ("predecessor_count", c_size_t),
    ]


def lend(owned: bytes) -> Bytes:
    """Bytes for C, which must not outlive `owned`."""
    return Bytes(ctypes.cast(ctypes.c_char_p(owned), c_void_p), len(owned))


def copy(borrowed: Bytes) -> bytes:
    """A copy of bytes that C has lent."""
    return ctypes.string_at(borrowed.data, borrowed.len) if borrowed.len else b""


def _plain(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function that cannot fail, or whose status the caller checks."""
    function = getattr(_library, name)
    function.restype = result
    function.argtypes = arguments
    return function  # type: ignore[no-any-return]


def _status(name: str, *arguments: Any) -> Callable[..., Any]:
    """A function that returns a status. It raises unless the status is OK."""
    function = _plain(name, c_int, *arguments)
    function.errcheck = _check  # type: ignore[attr-defined]
    return function


def _check(status: int, _function: object, _arguments: object) -> None:
    if status:
        # This thread has made no other call in between.
        raise failure(status, httpdown_last_error().decode("utf-8", "replace"))


def failure(status: int, text: str = "") -> Exception:
    """The exception for a status. Without a text, it has the library's text."""
    return _errors.error(status, text or httpdown_status_string(status).decode())


# void httpdown_options_init(httpdown_options *options, size_t struct_size);
httpdown_options_init = _plain("httpdown_options_init", None, POINTER(Options), c_size_t)

# void httpdown_tls_init(httpdown_tls *tls, size_t struct_size);
httpdown_tls_init = _plain("httpdown_tls_init", None, POINTER(Tls), c_size_t)

# int httpdown_serve(const httpdown_options *options, httpdown_server **server, char *error,
#     size_t error_size);
httpdown_serve = _plain(
    "httpdown_serve",
    c_int,
    POINTER(Options),
    POINTER(c_void_p),
    c_char_p,
    c_size_t,
)

# int httpdown_run(const httpdown_options *options, httpdown_stop_report *report, char *error,
#     size_t error_size);
httpdown_run = _plain(
    "httpdown_run",
    c_int,
    POINTER(Options),
    POINTER(StopReport),
    c_char_p,
    c_size_t,
)

# int httpdown_run_all(const httpdown_options *const *options, size_t count,
#     httpdown_stop_report *reports, char *error, size_t error_size);
httpdown_run_all = _plain(
    "httpdown_run_all",
    c_int,
    POINTER(c_void_p),
    c_size_t,
    POINTER(StopReport),
    c_char_p,
    c_size_t,
)

# int httpdown_stop(const httpdown_server *server);
httpdown_stop = _status("httpdown_stop", c_void_p)

# int httpdown_stop_begin(const httpdown_server *server);
httpdown_stop_begin = _status("httpdown_stop_begin", c_void_p)

# int httpdown_kill_begin(const httpdown_server *server);
httpdown_kill_begin = _status("httpdown_kill_begin", c_void_p)

# int httpdown_wait(const httpdown_server *server, uint32_t timeout_ms, httpdown_stop_report
#     *report);
httpdown_wait = _status("httpdown_wait", c_void_p, c_uint32, POINTER(StopReport))

# int httpdown_report(const httpdown_server *server, httpdown_stop_report *report);
httpdown_report = _status("httpdown_report", c_void_p, POINTER(StopReport))

# int httpdown_phase(const httpdown_server *server);
httpdown_phase = _plain("httpdown_phase", c_int, c_void_p)

# bool httpdown_ready(const httpdown_server *server);
httpdown_ready = _plain("httpdown_ready", c_bool, c_void_p)

# int httpdown_local_addr(const httpdown_server *server, size_t index, char *buffer, size_t
#     size);
httpdown_local_addr = _status("httpdown_local_addr", c_void_p, c_size_t, c_char_p, c_size_t)

# void httpdown_free(httpdown_server *server);
httpdown_free = _plain("httpdown_free", None, c_void_p)

# int httpdown_next(const httpdown_server *server, uint32_t timeout_ms, httpdown_request
#     **requests, size_t capacity, size_t *count);
httpdown_next = _status(
    "httpdown_next",
    c_void_p,
    c_uint32,
    POINTER(c_void_p),
    c_size_t,
    POINTER(c_size_t),
)

# int httpdown_queue_fd(const httpdown_server *server, int *fd);
httpdown_queue_fd = _status("httpdown_queue_fd", c_void_p, POINTER(c_int))

# int httpdown_event_fd(const httpdown_server *server, int *fd);
httpdown_event_fd = _status("httpdown_event_fd", c_void_p, POINTER(c_int))

# int httpdown_next_event(const httpdown_server *server, uint32_t timeout_ms, httpdown_event
#     *event);
httpdown_next_event = _status("httpdown_next_event", c_void_p, c_uint32, POINTER(Event))

# const char *httpdown_status_string(int status);
httpdown_status_string = _plain("httpdown_status_string", c_char_p, c_int)

# const char *httpdown_last_error(void);
httpdown_last_error = _plain("httpdown_last_error", c_char_p)

# httpdown_bytes httpdown_request_method(const httpdown_request *request);
httpdown_request_method = _plain("httpdown_request_method", Bytes, c_void_p)

# httpdown_bytes httpdown_request_target(const httpdown_request *request);
httpdown_request_target = _plain("httpdown_request_target", Bytes, c_void_p)

# httpdown_bytes httpdown_request_path(const httpdown_request *request);
httpdown_request_path = _plain("httpdown_request_path", Bytes, c_void_p)

# httpdown_bytes httpdown_request_query(const httpdown_request *request);
httpdown_request_query = _plain("httpdown_request_query", Bytes, c_void_p)

# httpdown_bytes httpdown_request_scheme(const httpdown_request *request);
httpdown_request_scheme = _plain("httpdown_request_scheme", Bytes, c_void_p)

# int httpdown_request_version(const httpdown_request *request);
httpdown_request_version = _plain("httpdown_request_version", c_int, c_void_p)

# httpdown_bytes httpdown_request_header(const httpdown_request *request, const char *name);
httpdown_request_header = _plain("httpdown_request_header", Bytes, c_void_p, c_char_p)

# size_t httpdown_request_header_count(const httpdown_request *request);
httpdown_request_header_count = _plain("httpdown_request_header_count", c_size_t, c_void_p)

# int httpdown_request_headers(const httpdown_request *request, size_t first, httpdown_header
#     *headers, size_t capacity, size_t *count);
httpdown_request_headers = _status(
    "httpdown_request_headers",
    c_void_p,
    c_size_t,
    POINTER(Header),
    c_size_t,
    POINTER(c_size_t),
)

# httpdown_bytes httpdown_request_peer_addr(const httpdown_request *request);
httpdown_request_peer_addr = _plain("httpdown_request_peer_addr", Bytes, c_void_p)

# httpdown_bytes httpdown_request_local_addr(const httpdown_request *request);
httpdown_request_local_addr = _plain("httpdown_request_local_addr", Bytes, c_void_p)

# httpdown_bytes httpdown_request_proxy_addr(const httpdown_request *request);
httpdown_request_proxy_addr = _plain("httpdown_request_proxy_addr", Bytes, c_void_p)

# httpdown_bytes httpdown_request_client_addr(const httpdown_request *request);
httpdown_request_client_addr = _plain("httpdown_request_client_addr", Bytes, c_void_p)

# httpdown_bytes httpdown_request_client_scheme(const httpdown_request *request);
httpdown_request_client_scheme = _plain("httpdown_request_client_scheme", Bytes, c_void_p)

# httpdown_bytes httpdown_request_client_host(const httpdown_request *request);
httpdown_request_client_host = _plain("httpdown_request_client_host", Bytes, c_void_p)

# int httpdown_request_peer_credentials(const httpdown_request *request, httpdown_credentials
#     *credentials);
httpdown_request_peer_credentials = _plain(
    "httpdown_request_peer_credentials", c_int, c_void_p, POINTER(Credentials)
)

# uint64_t httpdown_request_conn_id(const httpdown_request *request);
httpdown_request_conn_id = _plain("httpdown_request_conn_id", c_uint64, c_void_p)

# const httpdown_server *httpdown_request_server(const httpdown_request *request);
httpdown_request_server = _plain("httpdown_request_server", c_void_p, c_void_p)

# int httpdown_request_read(httpdown_request *request, void *buffer, size_t capacity, uint32_t
#     timeout_ms, size_t *count);
httpdown_request_read = _status(
    "httpdown_request_read",
    c_void_p,
    c_void_p,
    c_size_t,
    c_uint32,
    POINTER(c_size_t),
)

# int httpdown_request_body(httpdown_request *request, size_t limit, uint32_t timeout_ms,
#     httpdown_bytes *body);
httpdown_request_body = _status(
    "httpdown_request_body", c_void_p, c_size_t, c_uint32, POINTER(Bytes)
)

# int httpdown_request_trailers(httpdown_request *request, size_t first, httpdown_header
#     *trailers, size_t capacity, size_t *count);
httpdown_request_trailers = _status(
    "httpdown_request_trailers",
    c_void_p,
    c_size_t,
    POINTER(Header),
    c_size_t,
    POINTER(c_size_t),
)

# bool httpdown_request_cancelled(const httpdown_request *request);
httpdown_request_cancelled = _plain("httpdown_request_cancelled", c_bool, c_void_p)

# bool httpdown_request_overdue(const httpdown_request *request);
httpdown_request_overdue = _plain("httpdown_request_overdue", c_bool, c_void_p)

# int httpdown_request_wait_cancelled(const httpdown_request *request, uint32_t timeout_ms);
httpdown_request_wait_cancelled = _status("httpdown_request_wait_cancelled", c_void_p, c_uint32)

# int httpdown_request_defer(httpdown_request *request);
httpdown_request_defer = _status("httpdown_request_defer", c_void_p)

# int httpdown_request_retain(httpdown_request *request);
httpdown_request_retain = _status("httpdown_request_retain", c_void_p)

# int httpdown_request_release(httpdown_request *request);
httpdown_request_release = _plain("httpdown_request_release", c_int, c_void_p)

# int httpdown_reply(httpdown_request *request, int status_code, const httpdown_header *headers,
#     size_t header_count, const void *body, size_t body_len);
httpdown_reply = _status(
    "httpdown_reply",
    c_void_p,
    c_int,
    POINTER(Header),
    c_size_t,
    c_void_p,
    c_size_t,
)

# int httpdown_reply_text(httpdown_request *request, int status_code, const char *text);
httpdown_reply_text = _status("httpdown_reply_text", c_void_p, c_int, c_char_p)

# int httpdown_reply_borrowed(httpdown_request *request, int status_code, const httpdown_header
#     *headers, size_t header_count, const void *body, size_t body_len, httpdown_destroy_fn
#     release, void *release_data);
httpdown_reply_borrowed = _status(
    "httpdown_reply_borrowed",
    c_void_p,
    c_int,
    POINTER(Header),
    c_size_t,
    c_void_p,
    c_size_t,
    c_void_p,
    c_void_p,
)

# int httpdown_reply_fd(httpdown_request *request, int status_code, const httpdown_header
#     *headers, size_t header_count, int fd, uint64_t offset, uint64_t length);
httpdown_reply_fd = _status(
    "httpdown_reply_fd",
    c_void_p,
    c_int,
    POINTER(Header),
    c_size_t,
    c_int,
    c_uint64,
    c_uint64,
)

# int httpdown_reply_file(httpdown_request *request, const char *path, const httpdown_header
#     *headers, size_t header_count);
httpdown_reply_file = _status("httpdown_reply_file", c_void_p, c_char_p, POINTER(Header), c_size_t)

# int httpdown_reply_open_file(httpdown_request *request, int fd, const httpdown_header
#     *headers, size_t header_count);
httpdown_reply_open_file = _status(
    "httpdown_reply_open_file", c_void_p, c_int, POINTER(Header), c_size_t
)

# httpdown_bytes httpdown_content_type(const char *path);
httpdown_content_type = _plain("httpdown_content_type", Bytes, c_char_p)

# int httpdown_reply_start(httpdown_request *request, int status_code, const httpdown_header
#     *headers, size_t header_count);
httpdown_reply_start = _status("httpdown_reply_start", c_void_p, c_int, POINTER(Header), c_size_t)

# int httpdown_reply_write(httpdown_request *request, const void *data, size_t len, uint32_t
#     timeout_ms, size_t *taken);
httpdown_reply_write = _status(
    "httpdown_reply_write", c_void_p, c_void_p, c_size_t, c_uint32, POINTER(c_size_t)
)

# int httpdown_reply_trailers(httpdown_request *request, const httpdown_header *trailers, size_t
#     trailer_count);
httpdown_reply_trailers = _status(
    "httpdown_reply_trailers", c_void_p, POINTER(Header), c_size_t
)

# int httpdown_reply_finish(httpdown_request *request);
httpdown_reply_finish = _status("httpdown_reply_finish", c_void_p)

# int httpdown_reply_abort(httpdown_request *request);
httpdown_reply_abort = _status("httpdown_reply_abort", c_void_p)

# int httpdown_log_line(const httpdown_request_record *record, int format, char *buffer, size_t
#     size, size_t *len);
httpdown_log_line = _plain(
    "httpdown_log_line",
    c_int,
    POINTER(RequestRecord),
    c_int,
    c_char_p,
    c_size_t,
    POINTER(c_size_t),
)

# int httpdown_request_set_data(httpdown_request *request, void *data, httpdown_destroy_fn
#     destroy);
httpdown_request_set_data = _status("httpdown_request_set_data", c_void_p, c_void_p, c_void_p)

# void *httpdown_request_data(const httpdown_request *request);
httpdown_request_data = _plain("httpdown_request_data", c_void_p, c_void_p)

# bool httpdown_request_asks_for_upgrade(httpdown_request *request);
httpdown_request_asks_for_upgrade = _plain("httpdown_request_asks_for_upgrade", c_bool, c_void_p)

# int httpdown_upgrade(httpdown_request *request, const httpdown_header *headers, size_t
#     header_count, httpdown_stream **stream);
httpdown_upgrade = _status(
    "httpdown_upgrade", c_void_p, POINTER(Header), c_size_t, POINTER(c_void_p)
)

# int httpdown_stream_read(const httpdown_stream *stream, void *buffer, size_t capacity, uint32_t
#     timeout_ms, size_t *count);
httpdown_stream_read = _status(
    "httpdown_stream_read", c_void_p, c_void_p, c_size_t, c_uint32, POINTER(c_size_t)
)

# int httpdown_stream_write(const httpdown_stream *stream, const void *data, size_t len, uint32_t
#     timeout_ms, size_t *taken);
httpdown_stream_write = _status(
    "httpdown_stream_write", c_void_p, c_void_p, c_size_t, c_uint32, POINTER(c_size_t)
)

# int httpdown_stream_shutdown(const httpdown_stream *stream, uint32_t timeout_ms);
httpdown_stream_shutdown = _status("httpdown_stream_shutdown", c_void_p, c_uint32)

# int httpdown_stream_notify(const httpdown_stream *stream, uint32_t wanted, httpdown_stream_fn
#     tell, void *user_data, httpdown_destroy_fn destroy);
httpdown_stream_notify = _status(
    "httpdown_stream_notify", c_void_p, c_uint32, c_void_p, c_void_p, c_void_p
)

# int httpdown_stream_fd(const httpdown_stream *stream, uint32_t timeout_ms, int *fd);
httpdown_stream_fd = _status("httpdown_stream_fd", c_void_p, c_uint32, POINTER(c_int))

# void httpdown_stream_free(httpdown_stream *stream);
httpdown_stream_free = _plain("httpdown_stream_free", None, c_void_p)

# httpdown_bytes httpdown_str(const char *text);
httpdown_str = _plain("httpdown_str", Bytes, c_char_p)

# bool httpdown_bytes_equal(httpdown_bytes bytes, const char *text);
httpdown_bytes_equal = _plain("httpdown_bytes_equal", c_bool, Bytes, c_char_p)

# int httpdown_request_notify(httpdown_request *request, uint32_t wanted, httpdown_ready_fn tell,
#     void *user_data, httpdown_destroy_fn destroy);
httpdown_request_notify = _status(
    "httpdown_request_notify", c_void_p, c_uint32, c_void_p, c_void_p, c_void_p
)

# int httpdown_next_item(const httpdown_server *server, uint32_t timeout_ms, httpdown_item
#     *items, size_t capacity, size_t *count);
httpdown_next_item = _status(
    "httpdown_next_item",
    c_void_p,
    c_uint32,
    POINTER(Item),
    c_size_t,
    POINTER(c_size_t),
)

# int httpdown_tls_reload(const httpdown_server *server, const httpdown_tls *tls, char *error,
#     size_t error_size);
httpdown_tls_reload = _plain(
    "httpdown_tls_reload", c_int, c_void_p, POINTER(Tls), c_char_p, c_size_t
)

# int httpdown_request_tls(const httpdown_request *request, httpdown_tls_info *info);
httpdown_request_tls = _plain("httpdown_request_tls", c_int, c_void_p, POINTER(TlsInfo))

# void httpdown_restart_options_init(httpdown_restart_options *options, size_t struct_size);
httpdown_restart_options_init = _plain(
    "httpdown_restart_options_init", None, POINTER(RestartOptions), c_size_t
)

# int httpdown_restart(const httpdown_server *server, const httpdown_restart_options *options,
#     char *error, size_t error_size);
httpdown_restart = _plain(
    "httpdown_restart", c_int, c_void_p, POINTER(RestartOptions), c_char_p, c_size_t
)

# int httpdown_restart_begin(const httpdown_server *server, const httpdown_restart_options
#     *options);
httpdown_restart_begin = _status("httpdown_restart_begin", c_void_p, POINTER(RestartOptions))

# void httpdown_no_notify(void);
httpdown_no_notify = _plain("httpdown_no_notify", None)
# int httpdown_restart_ready(void);
httpdown_restart_ready = _status("httpdown_restart_ready")
# int httpdown_run_ready(void);
httpdown_run_ready = _status("httpdown_run_ready")

# int httpdown_restart_info(httpdown_restarts *restarts, uint32_t *predecessors, size_t
#     capacity);
httpdown_restart_info = _status(
    "httpdown_restart_info", POINTER(Restarts), POINTER(c_uint32), c_size_t
)

# int httpdown_query_value(httpdown_bytes query, const char *name, char *buffer, size_t size,
#     size_t *len);
httpdown_query_value = _plain(
    "httpdown_query_value",
    c_int,
    Bytes,
    c_char_p,
    c_char_p,
    c_size_t,
    POINTER(c_size_t),
)

# bool httpdown_query_next(httpdown_bytes *rest, httpdown_header *pair);
httpdown_query_next = _plain("httpdown_query_next", c_bool, POINTER(Bytes), POINTER(Header))

# int httpdown_query_decode(httpdown_bytes encoded, char *buffer, size_t size, size_t *len);
httpdown_query_decode = _status(
    "httpdown_query_decode",
    Bytes,
    c_char_p,
    c_size_t,
    POINTER(c_size_t),
)

# int httpdown_percent_decode(httpdown_bytes encoded, char *buffer, size_t size, size_t *len);
httpdown_percent_decode = _status(
    "httpdown_percent_decode",
    Bytes,
    c_char_p,
    c_size_t,
    POINTER(c_size_t),
)

# int httpdown_clock_new_mock(httpdown_clock **clock);
httpdown_clock_new_mock = _status("httpdown_clock_new_mock", POINTER(c_void_p))

# int httpdown_clock_advance(const httpdown_clock *clock, uint64_t ms);
httpdown_clock_advance = _status("httpdown_clock_advance", c_void_p, c_uint64)

# int httpdown_clock_wait_for_timers(const httpdown_clock *clock, size_t count, uint32_t
#     timeout_ms);
httpdown_clock_wait_for_timers = _status(
    "httpdown_clock_wait_for_timers",
    c_void_p,
    c_size_t,
    c_uint32,
)

# void httpdown_clock_free(httpdown_clock *clock);
httpdown_clock_free = _plain("httpdown_clock_free", None, c_void_p)
