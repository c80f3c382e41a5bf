"""Restarts: of programs that restart themselves, and what is refused."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import zipapp
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import LONG, PYTHON, Gate, in_thread
from test_process import Load

import httpdown
from httpdown import Restart, RestartState, _restart

# Each process says what happens on stdout, which all of them have. The first one is told to
# restart by a signal, or by a request.
PRELUDE = """
import asyncio, faulthandler, json, logging, os, signal, subprocess, sys, threading
HERE = os.getcwd()
ENVIRON = sorted(os.environ)
IS_NEW = "HTTPDOWN_RESTART" in os.environ
import httpdown, httpdown.aio

def say(*words):
    os.write(1, (" ".join(map(str, (os.getpid(), *words))) + "\\n").encode())

def tells(level, text):
    say(level, text)

def started(server):
    say("serves", server.address)

def told(pid, error):
    say("ended", pid, type(error).__name__)

def about():
    info = httpdown.restart_info()
    child = [sys.executable, "-c", "import os; print(*sorted(os.environ))"]
    return {
        "pid": os.getpid(),
        "generation": info.generation,
        "state": info.state,
        "predecessors": info.predecessors,
        "how": [sys.argv, getattr(sys, "orig_argv", [])[1:], sys.prefix, sys.flags.dev_mode, HERE],
        "environ": [sorted(os.environ), subprocess.check_output(child, text=True).split()],
    }

def answer(request):
    server = request.server
    if request.path == "/about":
        request.reply(200, json.dumps(about()))
    elif request.path == "/body":
        request.reply(200, request.body())
    elif request.path == "/stop":
        request.reply(200)
        server.stop_begin()
    elif request.path == "/restart":
        try:
            request.reply(200, str(server.restart(RESTART)))
        except httpdown.HttpdownError as error:
            request.reply(200, f"{type(error).__name__}: {error}")
    else:
        request.reply(200, "hello")

RESTART = httpdown.Restart(probation=0.2, on_end=told)
"""

RUN = """
def main(**more):
    options = {"on_log": tells, "started": started, "restart": RESTART, **more}
    report = httpdown.run(answer, "127.0.0.1:0", **options)
    say("reports", report.status, report.successor_pid)

if __name__ == "__main__":
    main()
"""


class Service:
    """A program and its successors."""

    def __init__(self, *command: str, python: bool = True, **options: Any) -> None:
        env = {**os.environ, "PYTHONPATH": str(PYTHON), **options.pop("env", {})}
        prefix = [sys.executable, "-X", "dev", "-W", "error"] if python else []
        # All generations are in one group of processes, so that all can be ended.
        self.first = subprocess.Popen(
            [*prefix, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
            **options,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._said: list[str] = []
        self._errors: Future[str] = in_thread(self._stream(self.first.stderr).read)
        self._reader = in_thread(self._read)
        self.address = self.says("serves (.*)")[1]

    @staticmethod
    def _stream(stream: Any) -> Any:
        assert stream is not None
        return stream

    def _read(self) -> None:
        for line in self._stream(self.first.stdout):
            self._lines.put(line.rstrip("\n"))

    def says(self, pattern: str, pid: int | None = None) -> re.Match[str]:
        """What one of the processes (or this one) says that is so. Each line is found once."""
        at = 0
        while True:
            if at == len(self._said):
                try:
                    self._said.append(self._lines.get(timeout=LONG))
                except queue.Empty:
                    errors = self._errors.result(0) if self._errors.done() else ""
                    pytest.fail(f"nobody says {pattern!r}, only {self._said}\n{errors}")
            found = re.fullmatch(rf"{pid or '[0-9]+'} {pattern}", self._said[at])
            if found:
                del self._said[at]
                return found
            at += 1

    def never_said(self, word: str) -> None:
        """Waits until all have ended."""
        self._reader.result(LONG)
        while not self._lines.empty():
            self._said.append(self._lines.get())
        assert not any(word in line for line in self._said)

    def get(self, path: str, body: bytes | None = None) -> str:
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=LONG)) as client:
            client.request("GET", path, body, {"Connection": "close"})
            text: str = client.getresponse().read().decode()
            return text

    def about(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/about"))
        return found

    def has_taken_over(self) -> int:
        """The PID of the process that says that it has taken over."""
        return int(self.says("INFO restart: took over from PID .*")[0].split()[0])

    def end(self) -> str:
        """Waits until all have ended, and gives what they have said on stderr."""
        self._reader.result(LONG)
        assert self.first.wait(LONG) == 0
        return self._errors.result(LONG)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.first.pid, signal.SIGKILL)
        self.first.wait(LONG)
        self._reader.result(LONG)
        self._errors.result(LONG)
        self._stream(self.first.stdout).close()
        self._stream(self.first.stderr).close()


Start = Callable[..., Service]


@pytest.fixture
def start() -> Iterator[Start]:
    services: list[Service] = []

    class Started(Service):
        def __init__(self, *command: str, **options: Any) -> None:
            services.append(self)
            super().__init__(*command, **options)

    yield Started
    for service in services:
        service.kill()


@pytest.fixture
def serve(start: Start, tmp_path: Path) -> Callable[[str], Service]:
    """Runs a text as a program in a file, `tmp_path / "program.py"`."""

    def run(text: str) -> Service:
        (tmp_path / "program.py").write_text(PRELUDE + text)
        return start(str(tmp_path / "program.py"))

    return run


Serve = Callable[[str], Service]


@contextlib.contextmanager
def uploading(service: Service) -> Iterator[None]:
    """Meanwhile, a request without its last byte is under way. It must be answered."""
    with contextlib.closing(http.client.HTTPConnection(service.address, timeout=LONG)) as client:
        client.putrequest("POST", "/body")
        client.putheader("Content-Length", "100000")
        client.endheaders(b"x" * 99_999)
        yield
        client.send(b"x")
        assert len(client.getresponse().read()) == 100_000


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP], ids=str)
def test_a_signal_restarts_and_no_client_is_refused_or_lost(
    serve: Serve, number: signal.Signals
) -> None:
    service = serve(RUN.replace("main()\n", "main(restart_on_hup=True)\n"))
    load = Load(service.address, 4)
    pid = service.first.pid
    try:
        for generation in range(1, 4):
            load.until_answered(50)
            os.kill(pid, number)
            successor = int(service.says("INFO restart: started PID (.*)", pid)[1])
            service.says("INFO restart: took over from PID .*", successor)
            service.says(f"reports OK {successor}", pid)
            pid = successor
            about = service.about()
            assert (about["pid"], about["generation"]) == (pid, generation)
        assert service.first.wait(LONG) == 0
        load.until_answered(50)
    finally:
        load.end()
    assert (load.refused, load.lost) == (0, [])
    os.kill(pid, signal.SIGTERM)
    service.says("reports OK 0", pid)
    assert service.end() == ""


LATE = """
def late():
    threading.Event().wait(0.3)  # It needs its time.
    with httpdown.Server(answer, "127.0.0.1:0") as server:
        say("late", server.address)
        server.wait()

def begins(server):
    started(server)
    threading.Thread(target=late).start()

httpdown.run(answer, "127.0.0.1:0", on_log=tells, started=begins, restart=RESTART)
"""


def test_another_thread_may_start_a_server_later(serve: Serve) -> None:
    service = serve(LATE)
    run, late = service.address, service.says("late (.*)")[1]
    service.first.send_signal(signal.SIGUSR2)
    successor = service.has_taken_over()
    assert service.first.wait(LONG) == 0
    for service.address in (late, run):
        assert service.about()["pid"] == successor
        service.get("/stop")
    assert service.end() == ""


def by_script(folder: Path) -> dict[str, Any]:
    (folder / "program.py").write_text(PRELUDE + "os.chdir('/')\n" + RUN)
    return {"command": ["program.py", "argument"]}


def by_module(folder: Path) -> dict[str, Any]:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "__main__.py").write_text(PRELUDE + "os.chdir('/')\n" + RUN)
    return {"command": ["-m", "package", "argument"]}


def by_text(folder: Path) -> dict[str, Any]:
    return {"command": ["-c", PRELUDE + RUN, "argument"]}


def by_archive(folder: Path) -> dict[str, Any]:
    (folder / "app").mkdir()
    (folder / "app" / "__main__.py").write_text(PRELUDE + "os.chdir('/')\n" + RUN)
    zipapp.create_archive(folder / "app", folder / "app.pyz", sys.executable)
    return {"command": ["./app.pyz", "argument"], "python": False}


def by_name_in_path(folder: Path) -> dict[str, Any]:
    """A script that is executed by `env`, in a virtual environment whose interpreter is a link."""
    venv = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder / "venv")]
    subprocess.run(venv, check=True, timeout=LONG)
    script = folder / "venv" / "bin" / "program"
    script.write_text("#!/usr/bin/env python\n" + PRELUDE + RUN)
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    return {"command": ["program", "argument"], "python": False, "env": {"PATH": path}}


def by_relative_interpreter(folder: Path) -> dict[str, Any]:
    by_name_in_path(folder)
    return {"command": ["venv/bin/python", "venv/bin/program"], "python": False}


@pytest.mark.parametrize(
    "way",
    [by_script, by_module, by_text, by_archive, by_name_in_path, by_relative_interpreter],
    ids=lambda way: way.__name__,
)
def test_a_program_is_started_as_it_was(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    given = way(tmp_path)
    if "PATH" in given.get("env", {}):
        monkeypatch.setenv("PATH", given["env"]["PATH"])
    command = given.pop("command")
    env = {"PWD": str(tmp_path), **given.pop("env", {})}
    service = start(*command, cwd=tmp_path, env=env, **given)
    before = service.about()
    service.first.send_signal(signal.SIGUSR2)
    service.has_taken_over()
    service.says("reports OK .*", service.first.pid)
    after = service.about()
    assert (before["generation"], after["generation"]) == (0, 1)
    assert after["how"] == before["how"]
    assert before["how"][-1] == str(tmp_path)
    # Neither Python nor its children know of what was passed on.
    assert after["environ"] == before["environ"]
    service.get("/stop")
    assert service.end() == ""


def test_a_link_to_the_directory_is_followed_anew(start: Start, tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program.py").write_text(PRELUDE + f"say({name!r})\n" + RUN)
    current = tmp_path / "current"
    current.symlink_to("1")
    service = start("program.py", cwd=current, env={"PWD": str(current)})
    current.unlink()
    current.symlink_to("2")
    service.first.send_signal(signal.SIGUSR2)
    service.says("2")
    service.says("reports OK [1-9].*", service.first.pid)
    service.get("/stop")
    assert service.end() == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import something_that_is_missing", "ModuleNotFoundError: No module named 'something_"),
        ("raise SystemExit(3)", "has exited with status 3 before it was ready"),
        (None, "can't open file"),
        (PRELUDE + "httpdown.run(answer, '127.0.0.1:1:2')", "httpdown._errors.AddressInvalid: "),
        (
            PRELUDE + "s = httpdown.Server(answer, '127.0.0.2:0')\nhttpdown.restart_ready()",
            "nobody listens on 127.0.0.1:",
        ),
    ],
    ids=["ImportError", "SystemExit", "removed", "address", "forgotten"],
)
def test_if_the_new_version_fails_the_old_one_goes_on(
    serve: Serve, tmp_path: Path, text: str | None, said: str
) -> None:
    service = serve(RUN)
    program = tmp_path / "program.py"
    program.rename(tmp_path / "old")
    if text is not None:
        program.write_text(text)
    answer = service.get("/restart")
    assert answer.startswith("RestartFailed: PID ") and said in answer
    service.says("ERROR restart failed: .*", service.first.pid)
    service.says("ended None RestartFailed", service.first.pid)
    # By a signal, the run goes on, too; and a better version can still take over.
    service.first.send_signal(signal.SIGUSR2)
    service.says("ERROR restart failed: .*", service.first.pid)
    assert service.about()["pid"] == service.first.pid
    (tmp_path / "old").rename(program)
    service.first.send_signal(signal.SIGUSR2)
    pid = service.has_taken_over()
    service.says(f"ended {pid} NoneType", service.first.pid)
    service.says(f"reports OK {pid}", service.first.pid)
    assert service.about()["pid"] == pid
    service.get("/stop")
    service.end()


def test_a_draining_predecessor_is_not_ended_by_signals(serve: Serve) -> None:
    service = serve(
        "signal.signal(signal.SIGWINCH, lambda *_: say('winch'))\n"
        + RUN.replace("main()\n", "main(second_signal=0)\n")
    )
    pid = service.first.pid
    with uploading(service):
        service.first.send_signal(signal.SIGUSR2)
        successor = service.has_taken_over()
        service.says(f"ended {successor} NoneType", pid)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            service.first.send_signal(number)
            # Python calls its handlers in the order of their numbers.
            service.first.send_signal(signal.SIGWINCH)
            service.says("winch", pid)
    service.says(f"reports OK {successor}", pid)
    assert service.first.wait(LONG) == 0
    # The one that serves stops by a signal.
    os.kill(successor, signal.SIGTERM)
    service.says("reports OK 0", successor)
    assert service.end() == ""


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("signal.signal(signal.SIGUSR2, lambda *_: say('mine'))", "mine"),
        ("faulthandler.register(signal.SIGUSR2, sys.stdout, all_threads=False)", None),
    ],
    ids=["signal", "faulthandler"],
)
def test_who_uses_sigusr2_for_something_else_keeps_it(
    serve: Serve, prepare: str, said: str | None
) -> None:
    service = serve(RUN.replace("    main()\n", f"    {prepare}\n    main()\n"))
    service.first.send_signal(signal.SIGUSR2)
    if said is not None:
        service.says(said)
    service.first.send_signal(signal.SIGTERM)
    service.says("reports OK 0", service.first.pid)
    assert service.end() == ""


def test_a_signal_before_the_server_exists_restarts_it_too(serve: Serve) -> None:
    service = serve(
        """
def signals():
    if not IS_NEW:
        os.kill(os.getpid(), signal.SIGUSR2)
    yield from ()
"""
        + RUN.replace("main()\n", "main(fds=signals())\n")
    )
    service.says("reports OK [1-9].*", service.first.pid)
    service.get("/stop")
    assert service.end() == ""


def test_in_a_forked_child_the_signal_has_its_earlier_effect(serve: Serve) -> None:
    service = serve(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)

def forks(server):
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGUSR2)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    say("child", os.WTERMSIG(status))
    started(server)
"""
        + RUN.replace("main()\n", "main(started=forks)\n")
    )
    service.says(f"child {int(signal.SIGUSR2)}")
    service.get("/stop")
    service.says("reports OK 0")
    assert service.end() == ""


def test_who_may_not_restart_yet_is_told(serve: Serve) -> None:
    service = serve(
        """
def tries(server):
    if IS_NEW:
        for call in (server.restart, server.restart_begin):
            try:
                call()
            except httpdown.Busy as error:
                say("busy:", error)
    started(server)

def on_phase(server, phase):
    say("phase", phase)

# Long enough for the new process to try it before it takes over.
RESTART = httpdown.Restart(probation=3, max_predecessors=1)
"""
        + RUN.replace("main()\n", "main(started=tries, on_phase=on_phase)\n")
    )
    pid = service.first.pid
    with uploading(service):
        service.first.send_signal(signal.SIGUSR2)
        for _ in range(2):
            service.says(f"busy: this process has not taken over from PID {pid} yet")
        successor = service.has_taken_over()
        service.says("phase DRAINING", pid)  # It does not accept any more.
        about = service.about()
        assert (about["pid"], about["predecessors"]) == (successor, [pid])
        assert service.get("/restart") == f"Busy: 1 earlier processes still drain: {pid}"
        # A signal says so in the log.
        os.kill(successor, signal.SIGUSR2)
        service.says("ERROR restart failed: 1 earlier processes still drain: .*", successor)
    service.says(f"reports OK {successor}", pid)
    service.get("/stop")
    assert service.end() == ""


CHILDREN = """
def check(status):
    if status != 7:
        say("wrong", status)

def run_until(is_over):
    while True:
        check(subprocess.run([sys.executable, "-c", "raise SystemExit(7)"]).returncode)
        if is_over.is_set():
            break

async def exec_until(is_over):
    while True:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
        check(await child.wait())
        if is_over.is_set():
            break

async def restart(server, request, way):
    is_over = threading.Event()
    others = [asyncio.to_thread(run_until, is_over), exec_until(is_over)]
    others = [asyncio.create_task(other) for other in others]
    env = {**os.environ, "FAULT": "1"} if way == "/fault" else None
    try:
        pid = await server.restart(httpdown.Restart(probation=0.5, env=env))
        request.reply(200, str(pid))
    except httpdown.RestartFailed as error:
        request.reply(200, str(error))
    finally:
        is_over.set()
        for other in others:
            await other

async def serves():
    async with httpdown.aio.Server("127.0.0.1:0", on_log=tells) as server:
        async def answer(request):
            if request.path == "/veto":
                try:
                    await server.restart(httpdown.Restart(before=lambda: 1 // 0))
                except httpdown.RestartFailed as error:
                    request.reply(200, str(error))
            elif request.path == "/stop":
                request.reply()
                server.stop_begin()
            elif request.path == "/":
                request.reply(200, str(os.getpid()))
            else:
                await restart(server, request, request.path)
        started(server)
        await server.serve(answer)

if "FAULT" in os.environ:
    sys.exit(3)
# In its debug mode, asyncio warns of a slow machine.
logging.getLogger("asyncio").setLevel(logging.ERROR)
asyncio.run(serves())
"""


def test_asyncio_restarts_and_every_child_keeps_its_status(serve: Serve) -> None:
    service = serve(CHILDREN)
    assert service.get("/veto") == "refused: integer division or modulo by zero"
    service.says("ERROR restart failed: refused: integer division or modulo by zero")
    assert "has exited with status 3 before it was ready" in service.get("/fault")
    pid = service.get("/success")
    service.says("INFO restart: took over from PID .*", int(pid))
    assert service.first.wait(LONG) == 0
    assert service.get("/") == pid
    service.get("/stop")
    service.never_said("wrong")
    assert service.end() == ""


def test_ctrl_c_ends_the_waiting_and_not_the_restart(serve: Serve) -> None:
    service = serve(
        """
def before():
    say("asked")
    interrupted.wait()

interrupted = threading.Event()
with httpdown.Server(answer, "127.0.0.1:0", on_log=tells) as server:
    started(server)
    if not IS_NEW:
        try:
            server.restart(httpdown.Restart(before=before, probation=0, on_end=told))
        except KeyboardInterrupt:
            say("interrupted")
            interrupted.set()
    report = server.wait()
    say("reports", report.status, report.successor_pid)
"""
    )
    pid = service.first.pid
    service.says("asked", pid)
    service.first.send_signal(signal.SIGINT)
    service.says("interrupted", pid)
    successor = int(service.says("ended (.*) NoneType", pid)[1])
    service.says(f"reports OK {successor}", pid)
    assert service.about()["pid"] == successor
    service.get("/stop")
    assert service.end() == ""


@pytest.mark.parametrize(
    ("before", "timeout", "ended"),
    [("threading.Event().wait", 0.1, None), ("None", LONG, "RestartFailed")],
)
def test_the_interpreter_exits_in_the_middle_of_a_restart(
    serve: Serve, before: str, timeout: float, ended: str | None
) -> None:
    service = serve(
        f"""
if IS_NEW:
    threading.Event().wait()
server = httpdown.Server(answer, "127.0.0.1:0", on_log=tells, kill_timeout={timeout})
server.restart_begin(httpdown.Restart(before={before}, on_end=told))
started(server)
"""
    )
    if ended is not None:
        service.says(f"ended None {ended}")
    assert service.end() == ""


def test_ctrl_c_while_the_thread_starts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Gate()
    start_thread = threading.Thread.start

    def is_interrupted(thread: threading.Thread) -> None:
        start_thread(thread)
        raise KeyboardInterrupt

    with httpdown.Server(hello, "127.0.0.1:0", on_log=lambda *_: None) as server:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", is_interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.restart(Restart(before=refuse, on_end=ended.open))
        ended.wait()
        # And nothing is left of it.
        with pytest.raises(httpdown.RestartFailed, match="not today"):
            server.restart(Restart(before=refuse))


TWO = """
def serve_two():
    other = None if IS_NEW else httpdown.Server(answer, "127.0.0.2:0")
    main(restart=httpdown.Restart(probation=0.2, drop_unclaimed={drop}, ready_timeout=3))
    if other:
        other.close()
serve_two()
"""


@pytest.mark.parametrize("drop", [False, True])
def test_an_address_is_given_up_only_on_purpose(serve: Serve, drop: bool) -> None:
    service = serve(RUN.replace("    main()\n", "    pass\n") + TWO.format(drop=drop))
    service.first.send_signal(signal.SIGUSR2)
    if drop:
        service.has_taken_over()
        service.says("reports OK [1-9].*", service.first.pid)
    else:
        said = service.says("ERROR restart failed: (.*)", service.first.pid)[1]
        assert "nobody listens on 127.0.0.2:" in said
    service.get("/stop")
    service.end()


def test_no_child_restarts_its_parent(serve: Serve) -> None:
    service = serve(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
with httpdown.Server(answer, "127.0.0.1:0") as server:
    if os.fork() == 0:
        for call in (server.restart, server.restart_begin, httpdown.restart_ready,
                     httpdown.restart_info):
            try:
                call()
            except httpdown.Forked:
                say("forked")
        os._exit(0)
    os.wait()
    started(server)
    server.wait()
"""
    )
    service.get("/stop")
    service.end()


# What is refused needs no new process.


def hello(request: httpdown.Request) -> None:
    request.reply(200, "hello")


def refuse() -> None:
    raise PermissionError("not today")


def test_the_program_may_refuse() -> None:
    ends: list[Any] = []
    sums: list[str] = []
    lines: list[str] = []
    logged = Gate()

    class Stats:
        def bump_sum(self, key: str, value: float, /) -> None:
            if key.startswith("restart"):
                sums.append(key)

        bump_avg = bump_histogram = bump_time = lambda *_: None

    def on_log(level: httpdown.LogLevel, text: str) -> None:
        lines.append(f"{level} {text}")
        logged.open()

    restart = Restart(before=refuse, on_end=lambda *end: ends.append(end))
    with httpdown.Server(hello, "127.0.0.1:0", on_log=on_log, stats=Stats()) as server:
        with pytest.raises(httpdown.RestartFailed, match="^refused: not today$") as caught:
            server.restart(restart)
        assert isinstance(caught.value.__cause__, PermissionError)
        assert ends == [(None, caught.value)]
        logged.wait()
        assert lines == ["ERROR restart failed: refused: not today"]
        assert httpdown.restart_info() == httpdown.RestartInfo(RestartState.IDLE, 0, None, ())
        httpdown.restart_ready()  # Nobody waits for that.
        _restart.run_ready()
        assert server.ready
    assert sums == ["restart", "restart.failed"]
    assert server.report().successor_pid == 0


def test_one_restart_at_a_time() -> None:
    asked, may_go_on, ended = Gate(), Gate(), Gate()

    def before() -> None:
        asked.open()
        may_go_on.wait()
        refuse()

    restart = Restart(before=before, on_end=ended.open)
    with httpdown.Server(hello, "127.0.0.1:0", on_log=lambda *_: None) as server:
        server.restart_begin(restart)
        asked.wait()
        assert httpdown.restart_info().state is RestartState.STARTING
        for call in (server.restart, server.restart_begin):
            with pytest.raises(httpdown.Busy, match="^a restart is under way$"):
                call(restart)
        may_go_on.open()
        ended.wait()
        with pytest.raises(httpdown.RestartFailed, match="not today"):
            server.restart(Restart(before=refuse))
    for call in (server.restart, server.restart_begin):
        with pytest.raises(httpdown.Stopped):
            call(restart)


def test_a_program_that_is_not_there_is_not_started() -> None:
    ended: list[Any] = []
    over = Gate()

    def on_end(*end: Any) -> None:
        ended.append(end)
        if len(ended) == 2:
            over.open()

    with httpdown.Server(hello, "127.0.0.1:0", on_log=lambda *_: None) as server:
        missing = Restart(program="/nowhere/program", on_end=on_end)
        with pytest.raises(httpdown.RestartFailed, match="No such file or directory"):
            server.restart(missing)
        server.restart_begin(Restart(directory="/nowhere", args=["a"], env={}, on_end=on_end))
        over.wait()
    assert [pid for pid, _ in ended] == [None, None]
    assert all("No such file" in str(error) for _, error in ended)


def test_callables_that_fail_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with httpdown.Server(hello, "127.0.0.1:0") as server:
        with pytest.raises(httpdown.RestartFailed, match="^refused: ZeroDivisionError$"):
            server.restart(Restart(before=raise_bare, on_end=lambda *_: 1 // 0))
    assert "on_end failed" in caplog.text


def test_who_refuses_by_mistake_refuses() -> None:
    async def nobody_runs_this() -> None:
        raise AssertionError

    with httpdown.Server(hello, "127.0.0.1:0", on_log=lambda *_: None) as server:
        with pytest.raises(TypeError, match="not an async def"):
            Restart(before=nobody_runs_this)
        why = "^refused: before returned a coroutine, which nobody runs$"
        with pytest.raises(httpdown.RestartFailed, match=why):
            server.restart(Restart(before=lambda: nobody_runs_this()))


def raise_bare() -> None:
    raise ZeroDivisionError


def test_a_stop_while_the_program_is_asked() -> None:
    with httpdown.Server(hello, "127.0.0.1:0", on_log=lambda *_: None) as server:
        with pytest.raises(httpdown.Stopped):
            server.restart(Restart(before=server.stop_begin))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"program": "bin/app"}, "program must be an absolute path"),
        ({"program": 3}, TypeError),
        ({"args": []}, "args must have the program's name"),
        ({"args": "app"}, TypeError),
        ({"args": [b"app"]}, TypeError),
        ({"args": ["app", "a\0b"]}, "NUL"),
        ({"env": {"A=": "b"}}, "not a variable's name: 'A='"),
        ({"env": {"": "b"}}, "not a variable's name: ''"),
        ({"env": {"A": "b\0"}}, "the variable A contains a NUL"),
        ({"env": {"A": 1}}, TypeError),
        ({"directory": "/a\0b"}, "NUL"),
        ({"directory": "run"}, "directory must be an absolute path, not 'run'"),
        ({"directory": ""}, "directory is empty"),
        ({"pid_file": ""}, "pid_file is empty"),
        ({"ready_timeout": -1}, "ready_timeout"),
        ({"ready_timeout": 0}, "ready_timeout is 0"),
        ({"probation": "3"}, TypeError),
        ({"max_predecessors": 0}, "max_predecessors"),
        ({"before": 1}, TypeError),
        ({"on_end": 1}, TypeError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_settings(given: Any, error: Any) -> None:
    if isinstance(error, str):
        with pytest.raises(ValueError, match=error):
            Restart(**given)
    else:
        with pytest.raises(error):
            Restart(**given)


def test_settings() -> None:
    restart = Restart(program=Path("/bin/app"), args=["app", "secret"], env={"A": "secret"})
    assert (restart.program, restart.args) == ("/bin/app", ("app", "secret"))
    assert "secret" not in repr(restart)
    assert repr(restart) == "httpdown.Restart(program='/bin/app')"
    with httpdown.Server(hello, "127.0.0.1:0") as server:
        wrong: Any = "now"
        for call in (server.restart, server.restart_begin):
            with pytest.raises(TypeError, match="must be a Restart, not str"):
                call(wrong)
        with pytest.raises(TypeError, match="must be a Restart, not str"):
            httpdown.run(hello, restart=wrong)
    tls = httpdown.Tls(cert_file="cert.pem", key_file="key.pem")
    with pytest.raises(httpdown.InvalidArgument, match="SIGHUP cannot do both"):
        httpdown.run(hello, tls=tls, reload_on_hup=True, restart_on_hup=True)


def test_what_c_gets() -> None:
    raw = _restart._to_c(
        Restart(
            program="/bin/ä",
            args=["app", "ä"],
            env={"A": "b=c"},
            directory="/",
            ready_timeout=1.5,
            probation=0,
            max_predecessors=3,
            drop_unclaimed=True,
            keep_fds=True,
            plain_stderr=True,
        )
    )
    assert (raw.program, raw.directory) == (os.fsencode("/bin/ä"), b"/")
    assert [raw.argv[i] for i in range(3)] == [b"app", os.fsencode("ä"), None]
    assert [raw.envp[i] for i in range(2)] == [b"A=b=c", None]
    assert (raw.ready_timeout_ms, raw.probation_ms, raw.max_predecessors, raw.flags) == (
        1500,
        httpdown._ffi.NOW,
        3,
        7,
    )
    assert not (raw.before or raw.on_restart or raw.destroy)


def test_a_thread_can_ask_while_another_one_waits() -> None:
    """The interpreter is free while C restarts."""
    asked = threading.Event()
    with httpdown.Server(hello, "127.0.0.1:0", on_log=lambda *_: None) as server:
        restart = Restart(
            program="/bin/sleep", args=["sleep", "1000"], ready_timeout=0.5, before=asked.set
        )
        result = in_thread(server.restart, restart)
        assert asked.wait(LONG)
        while not (info := httpdown.restart_info()).successor:
            assert not result.done()
        assert info.state is RestartState.STARTING
        with pytest.raises(httpdown.RestartFailed, match="was not ready after 500ms"):
            result.result(LONG)


@pytest.mark.parametrize("is_silent", [False, True])
def test_systemd_is_told_of_a_run_unless_the_program_tells_it(
    tmp_path: Path, is_silent: bool
) -> None:
    # Here, nobody listens.
    httpdown.no_notify()
    program = f"""
import httpdown
if {is_silent}:
    httpdown.no_notify()
httpdown.run(lambda request: None, "127.0.0.1:0", started=lambda _: print("serves", flush=True))
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(LONG)
        env = {**os.environ, "PYTHONPATH": str(PYTHON), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(
            [sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "serves\n"
            if not is_silent:
                assert b"READY=1" in manager.recv(4096)
            run.terminate()
            assert run.wait(LONG) == 0
        manager.setblocking(False)
        if is_silent:
            with pytest.raises(BlockingIOError):
                manager.recv(4096)
        else:
            assert b"STOPPING=1" in manager.recv(4096)
