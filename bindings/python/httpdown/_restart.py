"""The restart: the program is started anew, and takes over without a loss."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from . import _arguments, _ffi, _reports
from ._errors import HttpdownError, RestartFailed, Status
from ._ffi import Phase, RestartState

if TYPE_CHECKING:
    from ._server import Server

Path = Union[str, "os.PathLike[str]"]

_DEFAULT_MAX_PREDECESSORS = 8
# What is said of a failure: its reason, and the last 4 KiB that the new process has written.
_TEXT_SIZE = 16 << 10
# How often we look whether a restart has begun, in seconds. It does at once, or is refused.
_LOOK = 0.001


@dataclass(frozen=True, init=False, repr=False)
class Restart:
    """How the program is restarted: `Server.restart(Restart(...))`.

    - `program`: The file that is executed: an absolute path. It is looked up anew, so a link that
      leads elsewhere now, or a file that was replaced, means the new version. Default: the
      interpreter as it was started (`sys.executable`: a link of a virtual environment stays one).
    - `args`: The arguments; the first one is the program's name. Default: those of this process
      (`sys.orig_argv`), so `python -m package` and scripts are started again as they were.
    - `env`: The environment, without what a restart itself needs. Default: the one that this
      process was started with.
    - `directory`: The working directory: an absolute path. Default: the one of the moment when
      `httpdown` was imported, by the name that the shell had for it: so do not change it before.
    - `ready_timeout`: How long the new process may take until it serves all sockets, in seconds,
      more than 0. Default: 60.
    - `probation`: How long both processes accept, once the new one is ready. If the new one dies
      within this time, this one goes on. Default: 3.
    - `max_predecessors`: A restart is refused (Busy) while so many earlier processes still drain,
      because each of them holds memory. Default: 8.
    - `drop_unclaimed`: A socket that the new process does not listen on any more is stopped like in
      a stop, without a loss. Otherwise it makes the restart fail, because it is a mistake more
      often than not. With this option the new process must call `restart_ready` when all its
      servers serve; `run` does. Default: False.
    - `keep_fds`: The new process also gets the inheritable descriptors of this one, with their
      numbers. They must be out of the way of the sockets, which have the numbers from 3 on:
      otherwise the restart fails.
      Default: False.
    - `plain_stderr`: The new process writes to this one's standard error at once. Otherwise it gets
      a pipe until it is ready, which is copied there, so that its traceback is in the text of
      RestartFailed, too. A program that looks at its start whether that is a terminal, or the
      journal (JOURNAL_STREAM), sees the pipe. Default: False.
    - `pid_file`: A file that has the process ID of the program. A restart replaces it when the new
      process has proved itself. The first process's file is written by the program, or by whoever
      starts it. A symbolic link is replaced by a file. Default: none.
    - `before()`: Is asked whether the restart may begin. If it raises, the restart is refused: the
      exception's text is in that of RestartFailed. It may block, and the restart waits for it.
    - `on_end(pid, error)`: Is told how a restart has ended that has begun: with the new process and
      None, or with None and the exception.

    Both callables are called in a thread of the restart's own. The repr shows neither arguments nor
    environment. Raises TypeError and ValueError.
    """

    program: str | None
    args: tuple[str, ...] | None
    env: Mapping[str, str] | None
    directory: str | None
    ready_timeout: float | None
    probation: float | None
    max_predecessors: int | None
    drop_unclaimed: bool
    keep_fds: bool
    plain_stderr: bool
    pid_file: str | None
    before: Callable[[], object] | None
    on_end: Callable[[int | None, HttpdownError | None], object] | None

    def __init__(
        self,
        *,
        program: Path | None = None,
        args: Iterable[str] | None = None,
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
        ready_timeout: float | None = None,
        probation: float | None = None,
        max_predecessors: int | None = None,
        drop_unclaimed: bool = False,
        keep_fds: bool = False,
        plain_stderr: bool = False,
        pid_file: Path | None = None,
        before: Callable[[], object] | None = None,
        on_end: Callable[[int | None, HttpdownError | None], object] | None = None,
    ) -> None:
        _arguments.milliseconds("ready_timeout", ready_timeout)
        _arguments.milliseconds("probation", probation)
        if ready_timeout == 0:
            raise ValueError("ready_timeout is 0: no process would be ready in time")
        _arguments.count("max_predecessors", max_predecessors)
        for name, value in {
            "program": None if program is None else _path("program", program),
            "args": None if args is None else _args(args),
            "env": None if env is None else _env(env),
            "directory": None if directory is None else _path("directory", directory),
            "ready_timeout": ready_timeout,
            "probation": probation,
            "max_predecessors": max_predecessors,
            "drop_unclaimed": bool(drop_unclaimed),
            "keep_fds": bool(keep_fds),
            "plain_stderr": bool(plain_stderr),
            "pid_file": None if pid_file is None else os.path.abspath(_path("pid_file", pid_file)),
            "before": None if before is None else _reports.plain("before", before),
            "on_end": None if on_end is None else _reports.plain("on_end", on_end),
        }.items():
            object.__setattr__(self, name, value)  # The dataclass is frozen.

    def __repr__(self) -> str:
        named = (f"{name}={value!r}" for name, value in vars(self).items() if value)
        shown = (part for part in named if not part.startswith(("args=", "env=")))
        return f"httpdown.Restart({', '.join(shown)})"


def _text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError(f"{name} contains a NUL")
    return value


def _path(name: str, value: Path) -> str:
    found = _text(name, os.fspath(value))
    if not found:
        raise ValueError(f"{name} is empty")
    if name != "pid_file" and not os.path.isabs(found):
        raise ValueError(f"{name} must be an absolute path, not {found!r}")
    return found


def _args(given: Iterable[str]) -> tuple[str, ...]:
    if isinstance(given, (str, bytes)):
        raise TypeError("args must be the arguments, not one text")
    args = tuple(_text("an argument", each) for each in given)
    if not args:
        raise ValueError("args must have the program's name, at least")
    return args


def _env(given: Mapping[str, str]) -> Mapping[str, str]:
    env = {_text("a variable's name", name): value for name, value in given.items()}
    for name, value in env.items():
        if not name or "=" in name:
            raise ValueError(f"not a variable's name: {name!r}")
        _text(f"the variable {name}", value)
    return env


@dataclass(frozen=True)
class RestartInfo:
    """What is known of the restarts of this program: `restart_info()`."""

    state: RestartState
    """Where this process is in a restart."""
    generation: int
    """How many restarts led to this process."""
    successor: int | None
    """The new process, from its start on, if there is one."""
    predecessors: tuple[int, ...]
    """The earlier processes that have not ended, the youngest first."""


def restart_info() -> RestartInfo:
    """What is known of the restarts of this program. Never blocks. Raises Forked."""
    raw = _ffi.Restarts(struct_size=ctypes.sizeof(_ffi.Restarts))
    capacity = _DEFAULT_MAX_PREDECESSORS
    while True:
        pids = (ctypes.c_uint32 * capacity)()
        _ffi.httpdown_restart_info(ctypes.byref(raw), pids, capacity)
        if raw.predecessor_count <= capacity:
            break
        capacity = raw.predecessor_count
    state = RestartState(raw.state)
    if state is RestartState.IDLE and _turn.is_asking:
        state = RestartState.STARTING
    return RestartInfo(
        state=state,
        generation=raw.generation,
        successor=raw.successor_pid or None,
        predecessors=tuple(pids[: raw.predecessor_count]),
    )


def restart_ready() -> None:
    """Says that this process has started all its servers, and that they are the service.

    If the process was started by a restart, that is needed only with
    `Restart(drop_unclaimed=True)`; otherwise it is ready as soon as it serves all sockets that it
    was given. Call it anyway to be told at once of a socket that was forgotten. It also tells
    systemd (`Type=notify`) that the servers are the service; `run` does so by itself. Does nothing
    after the first call that has succeeded. Never blocks.

    Raises RestartFailed (a socket is not served, or no server was started: the restart has failed,
    and this process is ended), InvalidArgument (no server was started, in a process that was not
    started by a restart), and Forked.
    """
    _ffi.httpdown_restart_ready()


def run_ready() -> None:
    """Says that the servers of a run are the service. Other threads may start more of them."""
    _ffi.httpdown_run_ready()


def no_notify() -> None:
    """Leaves it to the program to talk with systemd (`sd_notify`).

    Nothing is sent to NOTIFY_SOCKET then, neither of starts and stops nor of restarts. Call it
    before the first server is started, in each process. Never blocks.
    """
    _ffi.httpdown_no_notify()


def has_handed_over() -> bool:
    """Whether a successor has taken over from this process."""
    return restart_info().state is RestartState.HANDED_OVER


# How the program was started. This is noted when the package is imported, before the program
# changes its directory, its name or `sys`.


def _directory() -> str | None:
    """The working directory: by the name that a shell has for it, if that is the same one."""
    named = os.environ.get("PWD", "")
    with contextlib.suppress(OSError, ValueError):
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    with contextlib.suppress(OSError):
        return os.getcwd()
    return None


def _command() -> tuple[str | None, tuple[str, ...] | None]:
    """The interpreter, and the arguments; None: C knows better.

    If Python is a part of another program, `sys.executable` is not what runs here. Python before
    3.10 does not know its own arguments.
    """
    with contextlib.suppress(OSError, ValueError):
        if os.path.isabs(sys.executable) and os.path.samefile(sys.executable, "/proc/self/exe"):
            args = getattr(sys, "orig_argv", None)
            # The first one may be relative, or a name in PATH, and Python finds its virtual
            # environment by it.
            return sys.executable, (sys.executable, *args[1:]) if args else None
    return None, None


_PROGRAM, _ARGS = _command()
_DIRECTORY = _directory()


def _to_c(restart: Restart) -> _ffi.RestartOptions:
    """The options as C takes them. C copies what they point to. It calls nothing of ours."""
    flags = {
        _ffi.RestartFlag.DROP_UNCLAIMED: restart.drop_unclaimed,
        _ffi.RestartFlag.KEEP_FDS: restart.keep_fds,
        _ffi.RestartFlag.PLAIN_STDERR: restart.plain_stderr,
    }
    env = restart.env
    return _ffi.RestartOptions(
        struct_size=ctypes.sizeof(_ffi.RestartOptions),
        program=_encoded(restart.program or _PROGRAM),
        argv=_array(restart.args or _ARGS),
        envp=_array(None if env is None else (f"{name}={env[name]}" for name in env)),
        directory=_encoded(restart.directory or _DIRECTORY),
        ready_timeout_ms=_arguments.milliseconds("ready_timeout", restart.ready_timeout),
        probation_ms=_arguments.milliseconds("probation", restart.probation),
        max_predecessors=restart.max_predecessors or 0,
        flags=sum(flag for flag, is_set in flags.items() if is_set),
        pid_file=_encoded(restart.pid_file),
    )


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _array(texts: Iterable[str] | None) -> ctypes.Array[ctypes.c_char_p] | None:
    """Texts, and a NULL behind them."""
    if texts is None:
        return None
    encoded = [*map(os.fsencode, texts), None]
    return (ctypes.c_char_p * len(encoded))(*encoded)


class _Turn:
    """The right to restart: one restart at a time. C has the same rule, but asks no `before`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_asking = False

    def take(self, server: Server, restart: Restart) -> None:
        """Raises what C would say, so that `before` is not asked for what is refused anyway."""
        if not self._lock.acquire(blocking=False):
            raise _busy("a restart is under way")
        try:
            info = restart_info()
            if info.state is RestartState.HANDED_OVER:
                raise _busy(f"process {info.successor} has taken over")
            if info.state is RestartState.SUCCEEDING:
                pid = next(iter(info.predecessors), 0)
                raise _busy(f"this process has not taken over from PID {pid} yet")
            if info.state is not RestartState.IDLE:
                raise _busy("a restart is under way")
            if server.phase is not Phase.SERVING:
                raise _ffi.failure(Status.STOPPED)
            count = len(info.predecessors)
            if count >= (restart.max_predecessors or _DEFAULT_MAX_PREDECESSORS):
                pids = ", ".join(map(str, info.predecessors))
                raise _busy(f"{count} earlier processes still drain: {pids}")
        except BaseException:
            self._lock.release()
            raise
        self.is_asking = restart.before is not None

    def give_back(self) -> None:
        self.is_asking = False
        self._lock.release()


def _busy(why: str) -> Exception:
    return _ffi.failure(Status.BUSY, why)


_turn = _Turn()


def _in_child() -> None:
    global _turn
    _turn = _Turn()


# A thread that has the turn does not exist in a child.
os.register_at_fork(after_in_child=_in_child)


class Attempt:
    """A restart, in a thread of its own.

    The library's own thread never runs Python code, which could not end when the interpreter does.
    So `before` and `on_end` are called here, and C is only asked to restart.

    `vetoed` is told of a restart that `before` has refused: C does not know of it.
    """

    def __init__(
        self, server: Server, restart: Restart | None, vetoed: Callable[[str], object]
    ) -> None:
        if restart is None:
            restart = Restart()
        if not isinstance(restart, Restart):
            raise TypeError(f"restart must be a Restart, not {type(restart).__name__}")
        if server._is_in_child():
            raise _ffi.failure(Status.FORKED)
        handle = server._handle
        if handle is None:
            raise _ffi.failure(Status.STOPPED)
        self.result: concurrent.futures.Future[int] = concurrent.futures.Future()
        # Nobody can cancel it any more.
        self.result.set_running_or_notify_cancel()
        self._server = server
        # C's server lives as long as this attempt.
        self._handle = handle
        self._restart = restart
        self._options = _to_c(restart)
        self._vetoed = vetoed
        self._turn = _turn
        self._has_turn = self._was_asked = False
        # It takes its turn itself, because Ctrl-C may interrupt this call here.
        threading.Thread(target=self._run, name="httpdown-py-restart", daemon=True).start()

    def wait(self) -> int:
        """Waits for the end. Returns the new process.

        A signal that comes just before a lock is waited for does not interrupt the wait.
        """
        while not concurrent.futures.wait([self.result], _arguments.SLICE).done:
            pass
        return self.result.result()

    def wait_begun(self) -> None:
        """Waits until the restart has begun. Raises if it was refused at once."""
        while not concurrent.futures.wait([self.result], _LOOK).done:
            is_begun = self._has_turn and restart_info().state is not RestartState.IDLE
            if is_begun or self._was_asked:
                return
        error = self.result.exception()
        if error is not None and not isinstance(error, RestartFailed) and not self._was_asked:
            raise error

    def _run(self) -> None:
        # The server's end waits for this thread, so that `on_end` is called before the program
        # ends.
        threads, thread = self._server._threads, threading.current_thread()
        threads.append(thread)
        try:
            try:
                self._turn.take(self._server, self._restart)
            except Exception as error:
                self.result.set_exception(error)
            else:
                self._has_turn = True
                self._take_turn()
        finally:
            threads.remove(thread)

    def _take_turn(self) -> None:
        pid: int | None = None
        error: Exception | None = None
        veto: HttpdownError | None = None
        try:
            error = veto = self._ask()
            if veto is None:
                pid, error = self._call()
        except Exception as failure:  # No memory, for example.
            error = failure
        finally:
            self._turn.give_back()
        self._tell(pid, error)
        if pid is not None:
            self.result.set_result(pid)
        else:
            self.result.set_exception(error)
        # After the result, because an observer of the log may wait for it.
        if veto is not None:
            self._vetoed(f"restart failed: {veto}")

    def _ask(self) -> HttpdownError | None:
        """Why the program refuses to be restarted."""
        before = self._restart.before
        if before is None:
            return None
        self._was_asked = True
        try:
            answer = before()
            if not _reports.returned("before", answer):
                return None
            why, cause = f"before returned a {type(answer).__name__}, which nobody runs", None
        except BaseException as error:
            why, cause = str(error) or type(error).__name__, error
        finally:
            self._turn.is_asking = False
        failure = RestartFailed(Status.RESTART_FAILED, f"refused: {why}")
        failure.__cause__ = cause
        return failure

    def _call(self) -> tuple[int | None, Exception | None]:
        """The new process, or what has gone wrong."""
        why = ctypes.create_string_buffer(_TEXT_SIZE)
        status = _ffi.httpdown_restart(
            self._handle.pointer, ctypes.byref(self._options), why, ctypes.sizeof(why)
        )
        if status == Status.OK:
            return restart_info().successor, None
        return None, _ffi.failure(status, why.value.decode("utf-8", "replace"))

    def _tell(self, pid: int | None, error: Exception | None) -> None:
        """Tells the program of the end, if the restart had begun."""
        on_end = self._restart.on_end
        # What was refused at once, the caller knows.
        has_begun = error is None or isinstance(error, RestartFailed) or self._was_asked
        if on_end is None or not has_begun:
            return
        known = error if isinstance(error, HttpdownError) else None
        try:
            _reports.returned("on_end", on_end(pid, known))
        except BaseException as failure:
            _reports.observer_failed("on_end", failure)
