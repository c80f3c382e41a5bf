"""What the tests share: a client, threads whose failures count, programs of their own."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Callable, TypeVar

import pytest

import httpdown
from httpdown import _ffi

PYTHON = Path(__file__).resolve().parents[1]
CHECKOUT = PYTHON.parents[1]
LONG = 30.0  # What should happen at once has happened by then.

T = TypeVar("T")


class Counted:
    """A function of C that is remembered when it is called."""

    called: set[str] = set()

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        self.called.add(self._name)
        return self._function(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


for _name, _function in list(vars(_ffi).items()):
    if _name.startswith("httpdown_"):
        setattr(_ffi, _name, Counted(_name, _function))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What looks at all other tests comes last, and only if all were asked for."""
    last = [item for item in items if item.get_closest_marker("last")]
    items[:] = [item for item in items if item not in last] + last
    folders = [Path(argument).resolve() for argument in config.args]
    if folders != [Path(__file__).resolve().parent] or config.option.keyword:
        for item in last:
            item.add_marker(pytest.mark.skip(reason="not all tests were asked for"))


# Where servers listen on Unix sockets, the same tests are run once more.
BY_UNIX = os.environ.get("HTTPDOWN_TEST_SOCKETS") == "unix"
_numbers = itertools.count()


def any_address() -> str:
    """An address that nobody else has: the kernel's choice of a port, or an abstract name."""
    if BY_UNIX:
        return f"unix:@httpdown-python-{os.getpid()}-{next(_numbers)}"
    return "127.0.0.1:0"


def is_client(address: httpdown.Address) -> bool:
    return address == ("", None) if BY_UNIX else address.host == "127.0.0.1"


def dial(address: httpdown.Address, timeout: float = LONG) -> socket.socket:
    """A connection to a server."""
    if address.port is not None:
        return socket.create_connection((address.host, address.port), timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(re.sub("^@", "\0", address.host))
    except OSError:
        connection.close()
        raise
    return connection


class Connection(http.client.HTTPConnection):
    def __init__(self, address: httpdown.Address) -> None:
        host = "localhost" if address.port is None else address.host
        super().__init__(host, address.port, timeout=LONG)
        self._address = address

    def connect(self) -> None:
        self.sock = dial(self._address)


def connect(server: httpdown.Server) -> http.client.HTTPConnection:
    return Connection(server.address)


def fetch(
    server: httpdown.Server, path: str = "/", method: str = "GET", body: Any = None, **headers: str
) -> http.client.HTTPResponse:
    """A whole response, on a connection of its own; its `body` is what `read` gave."""
    with contextlib.closing(connect(server)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        return response


def in_thread(call: Callable[..., T], *arguments: Any) -> Future[T]:
    """Its result, in time."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Gate:
    """Something that happens once, and in time."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def open(self, *_: object) -> None:
        self._event.set()

    def wait(self) -> None:
        assert self._event.wait(LONG), "it did not happen"


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What has been reported to sys.unraisablehook."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    return reported


class Program:
    """A Python program that prints its server's address first."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.opened: list[http.client.HTTPConnection | http.client.HTTPResponse] = []
        env = {**os.environ, "PYTHONPATH": str(PYTHON), **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def connect(self, address: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(address, timeout=LONG)
        self.opened.append(connection)
        return connection

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """The exit status, and what was still said on stdout and stderr."""
        out, err = self.process.communicate(timeout=LONG)
        for opened in self.opened:
            opened.close()
        return self.process.returncode, out, err


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    """Runs a text as a program of its own."""
    programs: list[Program] = []

    def run(text: str) -> Program:
        path = tmp_path / f"program{len(programs)}.py"
        path.write_text(PRELUDE + text)
        programs.append(Program(str(path)))
        return programs[-1]

    yield run
    for started in programs:
        if started.process.returncode is None:
            started.process.kill()
            started.end()


PRELUDE = """
import os, signal, sys, threading, time, warnings
import httpdown

draining = threading.Event()
def on_phase(server, phase):
    if phase == httpdown.Phase.DRAINING:
        draining.set()
        print("draining", flush=True)

def slow(request):
    # Ends only once the stop has begun.
    with request.start() as out:
        out.write("begin")
        draining.wait()
        for _ in range(50):
            out.write("x" * 1000)

def until_cancelled(request):
    with request.start() as out:
        out.write("begin")
        request.wait_cancelled()
"""
