"""The server: started, asked, stopped."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from types import FrameType, TracebackType
from typing import Any, Protocol

from . import _arguments, _exit, _ffi, _reports
from ._clock import MockClock
from ._errors import HttpdownError, InvalidArgument, Status, Stopped
from ._ffi import ConnState, EventKind, LogLevel, Phase, StatKind
from ._request import Address, Request

# Of `stop_timeout` and `kill_timeout`, in seconds.
_DEFAULT_TIMEOUT = 60.0
_DEFAULT_SECOND_SIGNAL = 0.5


class Stats(Protocol):
    """A client of a monitoring system. Called in the events thread, one call at a time.

    The keys are listed in httpdown.h, at `httpdown_stats`.
    """

    def bump_avg(self, key: str, value: float, /) -> object:
        """The mean over a period is of interest."""

    def bump_sum(self, key: str, value: float, /) -> object:
        """A counter goes up."""

    def bump_histogram(self, key: str, value: float, /) -> object:
        """The distribution is of interest."""

    def bump_time(self, key: str, value: float, /) -> object:
        """Something that took a time has ended: `value` is seconds."""


@dataclass(frozen=True)
class Report:
    """What a server has done, and what its stop has cost.

    Once it has stopped: requests = served + failed + gone + killed.
    """

    phase: Phase
    """How far the server has come."""
    status: Status
    """How the stop went; OK until it has ended."""
    stop_duration: float
    """How long the stop has taken so far, in seconds; 0 before it begins."""
    connections: int
    """Connections accepted."""
    conns_open: int
    """Connections open now: the sum of the next four."""
    conns_new: int
    """Open, and no byte has come yet."""
    conns_active: int
    """Open, with a request under way."""
    conns_idle: int
    """Open, between two requests."""
    conns_hijacked: int
    """Open, and taken over by a handler."""
    conns_closed: int
    """Connections that ended as they should, closed by either side or released by a handler."""
    closed_idle: int
    """Connections that the stop, or the idle timeout, closed while they were new or idle."""
    raced: int
    """Connections that one of them closed, and on which a request crossed that on the wire."""
    conns_gone: int
    """Connections whose client left in the middle of a request."""
    conns_timed_out: int
    """Connections that were closed because the head of a request did not come in time."""
    conns_killed: int
    """Connections that a kill cut."""
    requests: int
    """Requests whose head has been read, and those that a kill cut before it was."""
    served: int
    """Requests whose whole response the kernel has taken, at a stop: the client's kernel."""
    failed: int
    """Requests whose handler failed after the response had begun: the client saw it cut."""
    gone: int
    """Requests whose client left before its response was complete."""
    killed: int
    """Requests that a kill cut, or answered with 503 because nobody had begun to work on them."""
    abandoned: int
    """Requests whose handler still held them when the kill timeout had passed."""
    hijacked_killed: int
    """Of the connections that a kill cut, those that a handler had taken over."""
    unaccepted: int
    """Connections that still waited to be accepted when their socket had to be closed."""
    bytes_unacked: int
    """Bytes that clients had not acknowledged when their connections ended during the stop."""
    events_dropped: int
    """Events that were dropped because the callbacks were too slow."""

    @classmethod
    def _of(cls, raw: _ffi.StopReport) -> Report:
        special = {
            "phase": Phase(raw.phase),
            "status": Status(raw.status),
            "stop_duration": raw.stop_duration_ms / 1000,
        }
        names = (field.name for field in fields(cls))
        return cls(**{n: special[n] if n in special else getattr(raw, n) for n in names})


class _Handle:
    """C's server; freed when the last of those who use it lets go of it."""

    def __init__(self, pointer: int | None) -> None:
        self.pointer = pointer

    def __del__(self) -> None:
        _ffi.httpdown_free(self.pointer)


class Server:
    """A server: serves from its construction until it is stopped, in threads of its own.

    As a context manager it stops gracefully at the end of the block. One that is not stopped goes
    on, whether or not anybody has a reference to it, until the main thread ends: then it is stopped
    gracefully, too, before `concurrent.futures` takes no more work. One that another thread has
    started, waits for, or is in the block of, goes on until that thread ends, unless it is a
    daemon; its handlers find executors shut down once the main thread has ended. The methods may be
    called by any thread. In a forked child they raise Forked, and leaving the block does nothing.
    Such a child can have no server of its own, unless all those of its parent had been closed
    before the fork.

    `handler` is called with each Request, in one of `threads` threads; requests beyond that wait.
    If it raises, or returns without an answer, the client gets a 500 (or sees the answer cut, if
    one has begun), and the logger "httpdown" gets an error with the request's method and path, and
    the traceback. What it returns is ignored, but for a coroutine or a generator, which is an error
    in the log, too. That the client has left (Gone), or was cut by a kill (Killed), is no failure:
    it is logged for debugging, without a traceback. An `async def` or a generator is a TypeError,
    here and for all other callables: nobody would run it.

    `on_error(request, exception)` is told of each such failure instead of the logger, in the
    handler's thread, before the client gets its 500: it may answer, if the handler has not. For a
    handler that returns without an answer the exception is Unanswered. What `on_error` itself
    raises is logged, along with what it was told.

    `bind` is where to listen: "HOST:PORT", or a Unix socket; several are separated by commas. An
    IPv6 address stands in brackets, no host is every address, port 0 lets the kernel choose.
    "unix:/run/app.sock" is a Unix socket at that path. One on which nobody listens is replaced. Who
    may connect can stand behind it: "unix:/run/app.sock?mode=0660&group=www-data" (the mode is
    octal; `user` and `group` are names or numbers). "unix:@name" is an abstract socket. Default:
    127.0.0.1:8080, or nothing if there are `fds`.

    `fds` are descriptors, or sockets, that listen already: the server's from now on, unless the
    constructor raises. `fds_shared`: the socket outlives this server (systemd, or workers restarted
    one by one). Whoever keeps it must go on accepting, or waiting clients are reset. A stop leaves
    what waits in their queue to the others.

    `reuse_port`: what `bind` names is listened on with SO_REUSEPORT, so that several processes of
    the same user can each have a socket of its own there, if all of them set this. A stop has the
    kernel send new clients to the others, so that workers can be restarted one by one, and none is
    lost. Nobody is told any more that the address is in use.

    Durations are in seconds; 0 is none at all, `math.inf` no limit.
    `stop_timeout`: how long a stop waits for what is there to finish, before it kills; default 60.
    `kill_timeout`: how long a kill waits for handlers that were cut, before it abandons them;
    default 60. `lame_duck`: how long a stop goes on accepting, while `ready` says no and responses
    say `Connection: close`, so that load balancers and clients go elsewhere; default 0.
    `lame_duck_quiet` ends the lame duck early, once no request has come for so long (those for
    `ready_path` do not count); default 0, never early. `lame_duck_min`: how long the lame duck
    takes at least, however quiet it is; default 0. `header_timeout`: how long a request's head may
    take, before the client gets a 408; default 30. `idle_grace`: how long a stop leaves a
    connection between two requests open, once the client has the last answer, so that a request
    that is on its way is served; default 1.
    `quiesce_timeout`: how long a stop goes on accepting connections whose handshake had
    begun; default 4. `linger_timeout`: how long a connection that the server has closed waits for
    the client to close its side; default 2. `idle_timeout`: how long, about, a connection may be
    without a request while the server serves, before it is closed; more than 0, by default there is
    no limit, because a close can cross a request on its way, which is lost then (`raced`).

    `keep_alive_header`: responses tell of the idle timeout, less `idle_grace`, in whole seconds
    (`Keep-Alive: timeout=N`), so that clients that know this field leave first.

    `second_signal`: how long after the first signal of `run` another one counts as the second,
    which goes straight to the kill; default 0.5. One that comes sooner has told the same thing
    again, as process managers and wrappers do.

    `ready_path` is a path, "/healthz" say, that the server answers itself, also while all threads
    are busy: 200 while `ready` says yes, then 503. "/" first, then visible ASCII, no query.

    `io_threads` is how many threads of C's drive connections; default: one for each processor.

    `stats`, `on_conn_state(server, conn_id, state, peer)`, `on_phase(server, phase)` and
    `on_log(level, text)` are told what happens, one after the other, in one thread, which serves
    nothing: a slow one delays only later events. What they raise is logged. Without an `on_log`
    what the library has to say, that accepting pauses without descriptors, say, goes to the logger
    "httpdown", too.

    `clock` is for tests: a MockClock for the stop, kill and lame-duck timers. All other durations
    are in real time, `idle_grace` included.

    Raises AddressInUse, AddressInvalid, PermissionDenied, IOFailed, OutOfResources, Forked;
    ValueError (InvalidArgument too) and TypeError; RuntimeError where gevent or eventlet has
    patched `threading`. Blocks only while a host name is looked up.
    """

    def __init__(
        self,
        handler: Callable[[Request], object],
        bind: str | None = None,
        *,
        fds: Iterable[int | socket.socket] = (),
        fds_shared: bool = False,
        reuse_port: bool = False,
        threads: int = 32,
        stop_timeout: float | None = None,
        kill_timeout: float | None = None,
        lame_duck: float | None = None,
        lame_duck_min: float | None = None,
        lame_duck_quiet: float | None = None,
        ready_path: str | None = None,
        header_timeout: float | None = None,
        idle_grace: float | None = None,
        quiesce_timeout: float | None = None,
        linger_timeout: float | None = None,
        idle_timeout: float | None = None,
        keep_alive_header: bool = False,
        second_signal: float | None = None,
        io_threads: int | None = None,
        on_error: Callable[[Request, BaseException], object] | None = None,
        stats: Stats | None = None,
        on_conn_state: Callable[[Server, int, ConnState, Address], object] | None = None,
        on_phase: Callable[[Server, Phase], object] | None = None,
        on_log: Callable[[LogLevel, str], object] | None = None,
        clock: MockClock | None = None,
    ) -> None:
        _check_threading()
        self._pid = os.getpid()
        self._final: Report | None = None
        # The thread that has started it, those that wait for it, and those in its block.
        self._holders = [threading.current_thread()]
        # When the stop and the kill were asked for, and when C's end was seen first.
        self._stop_begun = self._kill_begun = self._ended = math.inf
        self._handler = _reports.plain("handler", handler)
        self._on_error = None if on_error is None else _reports.plain("on_error", on_error)
        # Of those that are None no event comes.
        self._on_conn_state = _reports.plain(
            "on_conn_state", _nobody if on_conn_state is None else on_conn_state
        )
        self._on_phase = _reports.plain("on_phase", _nobody if on_phase is None else on_phase)
        self._on_log = _reports.plain(
            "on_log", _reports.library_said if on_log is None else on_log
        )
        self._bump: dict[StatKind, Callable[[str, float], object]] = {}
        if stats is not None:
            for kind in StatKind:
                name = f"bump_{kind.name.lower()}"
                self._bump[kind] = _reports.plain(f"stats.{name}", getattr(stats, name))
        self._second_signal = _DEFAULT_SECOND_SIGNAL if second_signal is None else second_signal
        wanted = {
            EventKind.STAT: stats,
            EventKind.CONN: on_conn_state,
            EventKind.PHASE: on_phase,
            EventKind.LOG: self._on_log,
        }
        events = sum(kind for kind, observer in wanted.items() if observer is not None)
        if clock is not None and not isinstance(clock, MockClock):
            raise TypeError(f"clock must be a MockClock, not {type(clock).__name__}")
        given = list(fds)
        numbers = [fd.fileno() if isinstance(fd, socket.socket) else fd for fd in given]
        if bind is None and not given:
            bind = "127.0.0.1:8080"
        options = _ffi.Options(
            struct_size=ctypes.sizeof(_ffi.Options),
            addr=None if bind is None else _arguments.text("bind", bind),
            fds=(ctypes.c_int * len(given))(
                *(_arguments.number("a descriptor", fd, 0, 2**31 - 1) for fd in numbers)
            ),
            fd_count=len(given),
            fds_shared=bool(fds_shared),
            reuse_port=bool(reuse_port),
            clock=None if clock is None else clock._pointer,
            stop_timeout_ms=_arguments.milliseconds("stop_timeout", stop_timeout),
            kill_timeout_ms=_arguments.milliseconds("kill_timeout", kill_timeout),
            lame_duck_ms=_arguments.milliseconds("lame_duck", lame_duck),
            lame_duck_min_ms=_arguments.milliseconds("lame_duck_min", lame_duck_min),
            lame_duck_quiet_ms=_arguments.milliseconds("lame_duck_quiet", lame_duck_quiet),
            ready_path=None if ready_path is None else _arguments.text("ready_path", ready_path),
            header_timeout_ms=_arguments.milliseconds("header_timeout", header_timeout),
            idle_grace_ms=_arguments.milliseconds("idle_grace", idle_grace),
            quiesce_timeout_ms=_arguments.milliseconds("quiesce_timeout", quiesce_timeout),
            linger_timeout_ms=_arguments.milliseconds("linger_timeout", linger_timeout),
            idle_timeout_ms=_arguments.milliseconds("idle_timeout", idle_timeout),
            keep_alive_header=bool(keep_alive_header),
            second_signal_ms=_arguments.milliseconds("second_signal", second_signal),
            dispatch=_ffi.Dispatch.QUEUE,
            io_threads=(
                0 if io_threads is None else _arguments.number("io_threads", io_threads, 1, 1 << 16)
            ),
            pull_events=events,
        )
        self._kill_timeout = _DEFAULT_TIMEOUT if kill_timeout is None else kill_timeout
        self._longest_stop = (
            (lame_duck or 0.0)
            + (_DEFAULT_TIMEOUT if stop_timeout is None else stop_timeout)
            + self._kill_timeout
        )
        count = _arguments.number("threads", threads, 1, 1 << 16)
        targets = [self._deliver] + [self._serve] * count
        self._handle: _Handle | None = _start(options)
        self._addresses = _addresses(self._handle)
        for fd in given:
            if isinstance(fd, socket.socket):
                fd.detach()
        # Daemons, because others would keep the interpreter from exiting, and so from stopping us.
        self._threads = [
            threading.Thread(
                target=target, args=(self._handle,), name=f"httpdown-py-{i}", daemon=True
            )
            for i, target in enumerate(targets)
        ]
        _exit.stop_at_exit(self)
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.kill_begin()
            self.close()
            raise

    # Threads of our own.

    def _serve(self, handle: _Handle) -> None:
        """The life of a thread that answers requests.

        It takes one at a time: several would wait behind the first while other threads are idle,
        and what a call saves is little beside what the interpreter costs.
        """
        taken = ctypes.c_void_p()
        count = ctypes.c_size_t()
        while True:
            try:
                _ffi.httpdown_next(
                    handle.pointer, _ffi.FOREVER, ctypes.byref(taken), 1, ctypes.byref(count)
                )
            except Stopped:
                return
            assert taken.value is not None
            self._answer(Request(taken.value, self))

    def _answer(self, request: Request) -> None:
        request._name()
        try:
            result = self._handler(request)
        except BaseException as error:
            _reports.handler_failed(request, error, self._on_error)
        else:
            if request._is_owed():
                why = _reports.unanswered(request, result)
                _reports.handler_failed(request, why, self._on_error)
            else:
                _reports.returned("the handler", result, request)
        request._leave()

    def _deliver(self, handle: _Handle) -> None:
        """The life of the thread that tells the observers what happens."""
        event = _ffi.Event(struct_size=ctypes.sizeof(_ffi.Event))
        while True:
            try:
                _ffi.httpdown_next_event(handle.pointer, _ffi.FOREVER, ctypes.byref(event))
            except Stopped:
                return
            told, observer, arguments = self._observer(event)
            try:
                _reports.returned(told, observer(*arguments))
            except BaseException as error:
                _reports.observer_failed(told, error)

    def _observer(self, event: _ffi.Event) -> tuple[str, Callable[..., object], tuple[object, ...]]:
        """Who shall be called for an event, by name and as such, and with what."""
        name = event.name.decode()
        if event.kind == EventKind.STAT:
            kind = StatKind(event.code)
            return f"stats.bump_{kind.name.lower()}", self._bump[kind], (name, event.value)
        if event.kind == EventKind.CONN:
            state = ConnState(event.code)
            peer = Address.parse(name)
            return "on_conn_state", self._on_conn_state, (self, event.conn_id, state, peer)
        if event.kind == EventKind.PHASE:
            return "on_phase", self._on_phase, (self, Phase(event.code))
        text = event.text.decode("utf-8", "replace")
        return "on_log", self._on_log, (LogLevel(event.code), text)

    # What the program asks and orders.

    @property
    def addresses(self) -> list[Address]:
        """The addresses that it listens on, or did: those of `fds` first, then those of `bind`."""
        return list(self._addresses)

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self._addresses[0]

    @property
    def phase(self) -> Phase:
        """How far the server has come; STOPPED also in a forked child. Never blocks."""
        handle = self._handle
        return Phase.STOPPED if handle is None else Phase(_ffi.httpdown_phase(handle.pointer))

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome: False from the beginning of a stop on. Never blocks.

        `ready_path` tells it to who asks by HTTP.
        """
        handle = self._handle
        return handle is not None and bool(_ffi.httpdown_ready(handle.pointer))

    def report(self) -> Report:
        """The counts as they are now, at any time. Never blocks. Raises Forked."""
        handle = self._handle
        if handle is None:
            assert self._final is not None
            return self._final
        raw = _ffi.StopReport(struct_size=ctypes.sizeof(_ffi.StopReport))
        _ffi.httpdown_report(handle.pointer, ctypes.byref(raw))
        return Report._of(raw)

    def stop_begin(self) -> None:
        """Begins the stop and returns at once. A second time it does nothing. Raises Forked."""
        handle = self._handle
        if handle is not None:
            self._stop_begun = min(self._stop_begun, time.monotonic())
            _ffi.httpdown_stop_begin(handle.pointer)

    def kill_begin(self) -> None:
        """Goes straight to the kill, whether a stop has begun or not, and returns at once."""
        handle = self._handle
        if handle is not None:
            self._kill_begun = min(self._kill_begun, time.monotonic())
            _ffi.httpdown_kill_begin(handle.pointer)

    def stop(self) -> Report:
        """Stops: no new connections, what is there is finished, and then the result.

        Blocks, at most for lame_duck + stop_timeout + kill_timeout. Whoever calls later, or
        meanwhile, waits for the same end and gets the same result. Handlers that go on when they
        have answered are waited for too, within that time. Ctrl-C meanwhile (in the main thread)
        begins the kill, and raises KeyboardInterrupt.

        Raises Killed (requests were cut when the stop timeout had passed), TimedOut (handlers had
        to be abandoned), IOFailed (serving had failed, or a listening socket could not be closed)
        and Forked. In a handler or an observer of this server it would wait for itself: there it
        begins the stop and raises WouldDeadlock; call `stop_begin` instead.
        """
        try:
            self.stop_begin()
            return self.wait()
        except KeyboardInterrupt:
            self.kill_begin()
            raise

    def wait(self, timeout: float | None = None) -> Report:
        """Waits until the server has ended entirely, whoever has stopped it: then as `stop`.

        Raises TimeoutError after `timeout` seconds, and otherwise as `stop`. Ctrl-C only ends the
        waiting.
        """
        if self._is_in_child():
            raise _ffi.failure(Status.FORKED)
        deadline = math.inf
        if timeout is not None:
            deadline = time.monotonic() + _arguments.seconds("timeout", timeout)
        handle = self._handle
        if self._final is None and handle is not None:
            if threading.current_thread() in self._threads:
                raise _ffi.failure(Status.WOULD_DEADLOCK)
            with self._held():
                final = self._wait(handle, timeout)
                self._join(final, deadline)
            self._final = final
        assert self._final is not None
        if self._final.status != Status.OK:
            failure = _ffi.failure(self._final.status)
            if isinstance(failure, HttpdownError):
                failure.report = self._final
            raise failure
        return self._final

    def _wait(self, handle: _Handle, timeout: float | None) -> Report:
        """Waits for C's end."""
        raw = _ffi.StopReport(struct_size=ctypes.sizeof(_ffi.StopReport))
        try:
            _arguments.in_slices(
                lambda ms: _ffi.httpdown_wait(handle.pointer, ms, ctypes.byref(raw)), timeout
            )
        except HttpdownError:
            # Written only if the server has ended: then it says what happened.
            if raw.phase != Phase.STOPPED:
                raise
        self._ended = min(self._ended, time.monotonic())
        return Report._of(raw)

    def _join(self, final: Report, deadline: float) -> None:
        """Waits for our threads: all requests have ended, and soon handlers and observers return.

        For as long as the stop may take, no longer: what a handler does behind its answer must not
        hold it. Those that C has abandoned have had their time.
        """
        if final.status == Status.TIMED_OUT:
            return
        for thread in self._threads:
            while thread.is_alive():
                # Anew each time: a kill may come meanwhile.
                bound = min(
                    self._stop_begun + self._longest_stop,
                    self._kill_begun + self._kill_timeout,
                    self._ended + self._kill_timeout,
                )
                now = time.monotonic()
                if now >= bound:
                    return
                if now >= deadline:
                    raise _ffi.failure(Status.WOULD_BLOCK)
                thread.join(min(bound - now, deadline - now, _arguments.SLICE))

    def run(self, started: Callable[[Server], object] | None = None) -> Report:
        """Serves until SIGTERM or SIGINT, and stops: for programs that do nothing else.

        A second signal goes straight to the kill, unless it comes within `second_signal` of the
        first; a third does what it would have done without us. What the signals did before is
        restored at the end. In a forked child they do what they would have done without us, and do
        not stop the parent. `started` is called when the signals are caught: the moment to tell
        others of the server. The thread takes the signals meanwhile, also if it blocks them. A
        SIGINT that is ignored stays so, as where a shell that is not interactive starts a program
        in the background; SIGTERM always stops. Only in the main thread.

        A signal that comes before this call does what it does without us: SIGTERM ends the program,
        and cuts the requests that the server, which serves since its construction, has by then.
        `httpdown.run` leaves no such gap.

        Returns and raises as `stop`; raises Stopped if the server has been stopped, and that has
        been waited for, and ValueError in another thread.
        """
        self._check_serves()
        if started is not None:
            _reports.plain("started", started)
        with _StopSignals() as signals:
            signals.stop(self)
            if started is not None:
                started(self)
            return self.wait()

    def close(self) -> None:
        """Stops as `stop` does, but keeps the result to itself, and frees what C has.

        Afterwards the server can still be asked how it went. In a handler or an observer of this
        server it returns at once, and the rest follows. In a forked child it does nothing.
        """
        if self._is_in_child():
            return
        self.stop_begin()
        if threading.current_thread() in self._threads:
            return
        with contextlib.suppress(HttpdownError):
            self.stop()
        self._handle = None

    def _is_in_child(self) -> bool:
        return os.getpid() != self._pid

    def _check_serves(self) -> None:
        """Raises Stopped if somebody has been told of the end: what serves then is nothing.

        An end that nobody knows of yet, because a handler has begun the stop, is no mistake. Raises
        Forked in a forked child, where nothing serves either.
        """
        if self._is_in_child():
            raise _ffi.failure(Status.FORKED)
        if self._final is not None:
            raise _ffi.failure(Status.STOPPED)

    def __enter__(self) -> Server:
        """Raises Stopped if the server has been stopped, and that has been waited for; Forked."""
        self._check_serves()
        self._holders.append(threading.current_thread())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops. What the block has raised goes before what the stop would raise."""
        try:
            if not self._is_in_child():
                self.stop()
        except KeyboardInterrupt:
            self.kill_begin()
            raise
        except HttpdownError:
            if error is None:
                raise
        finally:
            self._let_go()
            self.close()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        self._holders.append(threading.current_thread())
        try:
            yield
        finally:
            self._let_go()

    def _let_go(self) -> None:
        # Not there if the block was entered by another thread.
        with contextlib.suppress(ValueError):
            self._holders.remove(threading.current_thread())

    def __repr__(self) -> str:
        return f"<httpdown.Server {self.address} {self.phase.name}>"


def run(
    handler: Callable[[Request], object],
    bind: str | None = None,
    *,
    started: Callable[[Server], object] | None = None,
    **options: Any,
) -> Report:
    """Serves until SIGTERM or SIGINT (Ctrl-C), and stops: all that most programs need.

    As `Server(handler, bind, **options)` and its `run`, but the signals are caught before the
    server is there, so that none is lost and none cuts a request: one that comes before the server
    listens stops it as soon as it does. `started(server)` is called when it serves: the moment to
    tell others of it. A second signal goes straight to the kill, unless it comes within
    `second_signal` of the first; a third does what it would have done without us. What the signals
    did before is restored at the end, and is what they do in a forked child. Only in the main
    thread.

    Returns what the server has done. Blocks until it has ended. Raises what `Server` raises, and as
    `Server.stop` Killed, TimedOut and IOFailed, whose `report` tells it; ValueError in another
    thread. What `started` raises stops the server and comes out.
    """
    if started is not None:
        _reports.plain("started", started)
    with _StopSignals() as signals:
        server = Server(handler, bind, **options)
        try:
            signals.stop(server)
            if started is not None:
                started(server)
            return server.wait()
        finally:
            server.close()


class _StopSignals:
    """SIGTERM and SIGINT stop a server while this is entered, as soon as there is one."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._server: Server | None = None
        self._seen = 0
        # When the last one came that counted: one that comes soon after tells the same again.
        self._last = -math.inf
        self._old: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._blocked: set[int] = set()

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._old[number] = signal.signal(number, self._on_signal)
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._old)
        self._blocked = before & set(self._old)
        return self

    def stop(self, server: Server) -> None:
        """From now on this server is meant, also by a signal that has come already."""
        self._server = server
        if self._seen > 0:
            server.stop_begin()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # There is nothing to stop here: it does what it did before.
            self._restore()
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self._server is None:
            # Nothing can be cut yet, however often it is told.
            self._seen, self._last = 1, now
            return
        if now - self._last < self._server._second_signal:
            return
        self._last = now
        self._seen += 1
        if self._seen == 1:
            self._server.stop_begin()
        elif self._seen == 2:
            self._server.kill_begin()
            if self._server._second_signal == 0:
                self._restore()
        else:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self._old:
            number, action = self._old.popitem()
            # None: it was not set by Python, and Python cannot set it again.
            signal.signal(number, signal.SIG_DFL if action is None else action)

    def __exit__(self, *_: object) -> None:
        # First: one that was blocked must not do now what it would have done if it had not been.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
        self._restore()


def _check_threading() -> None:
    """Raises RuntimeError where `threading` makes no threads.

    Green threads all run in one, and the first that waits for a request would hold all the others.
    """
    for library, patcher, asks, names in (
        ("gevent", "gevent.monkey", "is_module_patched", ("threading", "_thread")),
        ("eventlet", "eventlet.patcher", "is_monkey_patched", ("thread",)),
    ):
        # Who has not imported it has patched nothing.
        is_patched = getattr(sys.modules.get(patcher), asks, None)
        if is_patched is not None and any(map(is_patched, names)):
            raise RuntimeError(
                f"{library} has patched threading, and httpdown needs real threads: "
                "patch all but threads, or start httpdown in a process without the patches"
            )


def _nobody(*_: object) -> None:
    pass


def _start(options: _ffi.Options) -> _Handle:
    pointer = ctypes.c_void_p()
    why = ctypes.create_string_buffer(512)
    status = _ffi.httpdown_serve(
        ctypes.byref(options), ctypes.byref(pointer), why, ctypes.sizeof(why)
    )
    if status != Status.OK:
        raise _ffi.failure(status, why.value.decode("utf-8", "replace"))
    return _Handle(pointer.value)


def _addresses(handle: _Handle) -> list[Address]:
    addresses: list[Address] = []
    buffer = ctypes.create_string_buffer(512)
    # The end is where there is no such index.
    with contextlib.suppress(InvalidArgument):
        while True:
            _ffi.httpdown_local_addr(handle.pointer, len(addresses), buffer, ctypes.sizeof(buffer))
            addresses.append(Address.parse(buffer.value.decode()))
    return addresses
