"""Servers and their process: signals, exit, fork."""

from __future__ import annotations

import http.client
import importlib.util
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Callable

import pytest
from conftest import CHECKOUT, LONG, PYTHON, Program

Run = Callable[[str], Program]

IN_A_BLOCK = """
try:
    with httpdown.Server({handler}, "127.0.0.1:0", on_phase=on_phase) as server:
        print(server.address, flush=True)
        server.wait()
finally:
    print(server.report().served, server.report().killed, flush=True)
"""

RUN = """
server = httpdown.Server({handler}, "127.0.0.1:0", on_phase=on_phase)
try:
    server.run(lambda server: print(server.address, flush=True))
finally:
    print(server.report().served, server.report().killed, flush=True)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""

RUN_AT_ONCE = """
def started(server):
    print(server.address, flush=True)

try:
    report = httpdown.run({handler}, "127.0.0.1:0", on_phase=on_phase, started=started)
except httpdown.Killed as killed:
    report = killed.report
    raise
finally:
    print(report.served, report.killed, flush=True)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def begin(program: Program) -> http.client.HTTPResponse:
    """A request whose answer has begun."""
    connection = program.connect(program.line())
    connection.request("GET", "/")
    response = connection.getresponse()
    program.opened.append(response)
    assert response.read(5) == b"begin"
    return response


@pytest.mark.parametrize(
    ("text", "number", "status"),
    [
        (IN_A_BLOCK, signal.SIGINT, -signal.SIGINT),
        (RUN, signal.SIGINT, 0),
        (RUN, signal.SIGTERM, 0),
        (RUN_AT_ONCE, signal.SIGINT, 0),
        (RUN_AT_ONCE, signal.SIGTERM, 0),
    ],
    ids=["Ctrl-C in a block", "SIGINT in Server.run", "SIGTERM in Server.run", "SIGINT", "SIGTERM"],
)
def test_a_signal_loses_no_request(
    program: Run, text: str, number: signal.Signals, status: int
) -> None:
    started = program(text.format(handler="slow"))
    response = begin(started)
    started.signal(number)
    assert response.read() == b"x" * 50_000
    code, out, err = started.end()
    assert (code, out) == (status, "draining\n1 0\n")
    assert ("KeyboardInterrupt" in err) == (status != 0)
    assert status != 0 or err == ""


@pytest.mark.parametrize(
    ("text", "number", "status"),
    [
        (IN_A_BLOCK, signal.SIGINT, -signal.SIGINT),
        (RUN.replace("on_phase)", "on_phase, second_signal=0)"), signal.SIGTERM, 1),
        (RUN_AT_ONCE.replace("=started", "=started, second_signal=0"), signal.SIGTERM, 1),
    ],
    ids=["Ctrl-C in a block", "SIGTERM in Server.run", "SIGTERM"],
)
def test_a_second_signal_kills(
    program: Run, text: str, number: signal.Signals, status: int
) -> None:
    started = program(text.format(handler="until_cancelled"))
    response = begin(started)
    started.signal(number)
    assert started.line() == "draining"
    started.signal(number)
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        response.read()
    code, out, err = started.end()
    assert (code, out) == (status, "0 1\n")
    assert ("Killed" in err) == (status == 1)


def test_a_stop_that_is_told_twice_cuts_nothing(program: Run) -> None:
    started = program(RUN.format(handler="slow"))
    response = begin(started)
    started.signal(signal.SIGTERM)
    assert started.line() == "draining"
    started.signal(signal.SIGTERM)
    assert response.read() == b"x" * 50_000
    assert started.end() == (0, "1 0\n", "")


@pytest.mark.parametrize("comes_before", [False, True])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_that_was_blocked_stops_the_run(
    program: Run, number: str, comes_before: bool
) -> None:
    started = program(
        f"""
numbers = {{signal.SIGTERM, signal.SIGINT}}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
comes_before = {comes_before}
server = httpdown.Server(lambda request: "hello", "127.0.0.1:0")
if comes_before:
    os.kill(os.getpid(), signal.{number})
server.run(lambda server: None if comes_before else os.kill(os.getpid(), signal.{number}))
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= numbers
assert not signal.sigpending()
print("ended", flush=True)
"""
    )
    assert started.end() == (0, "ended\n", "")


def test_an_interrupt_that_was_ignored_is_ignored(program: Run) -> None:
    started = program(
        """
def interrupts_first(server):
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGINT)
    assert server.ready
    os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGINT, signal.SIG_IGN)
httpdown.Server(lambda request: "hello", "127.0.0.1:0").run(interrupts_first)
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
print("ended", flush=True)
"""
    )
    assert started.end() == (0, "ended\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_that_comes_before_the_server_is_there_stops_it(
    program: Run, number: signal.Signals
) -> None:
    started = program(
        f"""
def while_it_is_made():
    for _ in range(3):
        os.kill(os.getpid(), {number:d})
    yield from ()

def started(server):
    print("started")

report = httpdown.run(slow, "127.0.0.1:0", fds=while_it_is_made(), started=started)
print(report.phase, report.status)
"""
    )
    assert started.end() == (0, "started\nSTOPPED OK\n", "")


def test_a_run_that_cannot_start_leaves_the_signals_as_they_were(program: Run) -> None:
    started = program(
        """
def fails(server):
    servers.append(server)
    raise ZeroDivisionError

servers = []
for bind, error, options in (
    ("nonsense", httpdown.AddressInvalid, {}),
    ("127.0.0.1:0", ZeroDivisionError, {"started": fails}),
    ("127.0.0.1:0", TypeError, {"no_such_option": 1}),
):
    try:
        httpdown.run(slow, bind, **options)
    except error:
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert servers[0].phase == httpdown.Phase.STOPPED

def elsewhere():
    try:
        httpdown.run(slow, "127.0.0.1:0", started=fails)
    except ValueError:
        print("only in the main thread")

thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
"""
    )
    assert started.end() == (0, "only in the main thread\n", "")


def test_exit_with_a_server_that_serves(program: Run) -> None:
    started = program(
        """
def slow_at_exit(request):
    begun.set()
    slow(request)

begun = threading.Event()
server = httpdown.Server(slow_at_exit, "127.0.0.1:0", on_phase=on_phase)
print(server.address, flush=True)
begun.wait()
"""
    )
    response = begin(started)
    assert response.read() == b"x" * 50_000
    assert started.end() == (0, "draining\n", "")


@pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info[:3] <= (3, 12, 1),
    reason="this Python starts no threads once its main thread has ended",
)
@pytest.mark.parametrize(
    "work",
    [
        "threads.submit(str.upper, 'x').result()",
        "processes.submit(str.upper, 'x').result()",
        "started_late(str.upper, 'x')",
    ],
    ids=["threads", "processes", "a thread"],
)
def test_a_handler_needs_others_while_the_interpreter_exits(program: Run, work: str) -> None:
    """They are imported, and made, when the server serves already."""
    started = program(
        f"""
warnings.simplefilter("ignore", DeprecationWarning)

def started_late(call, argument):
    got = []
    thread = threading.Thread(target=lambda: got.append(call(argument)))
    thread.start()
    thread.join()
    return got[0]

def late(request):
    with request.start() as out:
        out.write("begin")
        begun.set()
        draining.wait()
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        import multiprocessing
        threads = ThreadPoolExecutor()
        processes = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
        out.write({work})
        out.write({work})

begun = threading.Event()
server = httpdown.Server(late, "127.0.0.1:0", on_phase=on_phase)
print(server.address, flush=True)
begun.wait()
"""
    )
    response = begin(started)
    assert response.read() == b"XX"
    assert started.end() == (0, "draining\n", "")


@pytest.mark.parametrize(
    "serve",
    [
        "with make() as server: go_on(server)",
        "server = make(); threading.Thread(target=go_on, args=(server,)).start(); server.wait()",
        "server = make(); go_on(server)",
    ],
    ids=["in a block", "in wait", "at work"],
)
def test_a_server_of_another_thread_outlives_the_main_thread(program: Run, serve: str) -> None:
    started = program(
        f"""
def stop(request):
    request.reply(200, "begin")
    asked.set()

def make():
    return httpdown.Server(stop, "127.0.0.1:0", on_phase=on_phase)

def go_on(server):
    assert exiting.wait(30) and server.ready
    print(server.address, flush=True)
    assert asked.wait(30)
    server.stop_begin()

def thread():
    {serve}

asked = threading.Event()
exiting = threading.Event()
threading._register_atexit(exiting.set)  # Called last.
threading.Thread(target=thread).start()
"""
    )
    begin(started)
    assert started.end() == (0, "draining\n", "")


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "server = None", "os._exit(0)"])
def test_exit_with_idle_servers(program: Run, end: str) -> None:
    started = program(
        f"""
import gc
servers = [httpdown.Server(slow, "127.0.0.1:0", on_phase=on_phase) for _ in range(3)]
server = httpdown.Server(slow, "127.0.0.1:0")
print(server.address, flush=True)
{end}
"""
    )
    code, _, err = started.end()
    assert (code, err) == (0, "")


def test_exit_with_a_handler_that_never_returns(program: Run) -> None:
    started = program(
        """
begun = threading.Event()
def deaf(request):
    request.reply(200) if request.path == "/fine" else begun.set()
    time.sleep(1000)

server = httpdown.Server(deaf, "127.0.0.1:0", stop_timeout=0, kill_timeout=0.01)
print(server.address, flush=True)
begun.wait()
"""
    )
    connection = started.connect(started.line())
    connection.request("GET", "/")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        connection.getresponse()
    code, _, err = started.end()
    assert (code, err) == (0, "")


def test_a_forked_child_has_no_server(program: Run) -> None:
    started = program(
        """
# Python 3.12 warns of any fork beside threads.
warnings.simplefilter("ignore", DeprecationWarning)
asked = threading.Event()

def raises_forked(call):
    try:
        call()
    except httpdown.Forked:
        return
    raise AssertionError(call)

def in_child(request):
    assert server.phase == httpdown.Phase.STOPPED and not server.ready
    for call in (
        server.stop, server.report, server.stop_begin, server.kill_begin,
        lambda: server.wait(0), lambda: httpdown.Server(slow, "127.0.0.1:0"),
        request.body, request.start, lambda: request.wait_cancelled(0), request.reply,
        server.__enter__, server.run,
    ):
        raises_forked(call)
    server.close()

def fork(request):
    child = os.fork()
    if child == 0:
        try:
            in_child(request)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    asked.set()
    request.reply(200, str(status))

with httpdown.Server(fork, "127.0.0.1:0", on_phase=on_phase) as server:
    child = os.fork()
    if child == 0:
        sys.exit(3)  # Leaves the block, runs what is registered at exit, ends the interpreter.
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    print(server.address, flush=True)
    asked.wait()
print(server.report().served, flush=True)
"""
    )
    connection = started.connect(started.line())
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"0"
    connection.close()
    assert started.end() == (0, "draining\n1\n", "")


def test_a_child_forked_after_the_last_server_was_closed_has_its_own(program: Run) -> None:
    started = program(
        """
warnings.simplefilter("ignore", DeprecationWarning)

def forks(call):
    child = os.fork()
    if child == 0:
        call()
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3

def serves():
    with httpdown.Server(slow, "127.0.0.1:0") as server:
        assert server.ready

def forked():
    try:
        httpdown.Server(slow, "127.0.0.1:0")
    except httpdown.Forked:
        return
    raise AssertionError

try:
    httpdown.Server(slow, "nonsense")
except httpdown.AddressInvalid:
    forks(serves)
for _ in range(5):
    with httpdown.Server(slow, "127.0.0.1:0") as server:
        forks(forked)
    forks(serves)
"""
    )
    assert started.end() == (0, "", "")


def test_a_signal_to_a_forked_child_does_not_stop_the_run(program: Run) -> None:
    started = program(
        """
warnings.simplefilter("ignore", DeprecationWarning)

def end_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def in_handler(request):
    ends = []
    for number in (signal.SIGTERM, signal.SIGINT):
        up, down = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(down, b"x")
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                os._exit(7)
            finally:
                os._exit(8)
        os.read(up, 1)
        os.kill(child, number)
        ends.append(end_of(child))
    request.reply(200, repr(ends))

server = httpdown.Server(in_handler, "127.0.0.1:0", on_phase=on_phase)
server.run(lambda server: print(server.address, flush=True))
print(server.report().served, flush=True)
"""
    )
    address = started.line()
    for _ in range(2):
        connection = started.connect(address)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"[-15, 7]"
        connection.close()
    started.signal(signal.SIGTERM)
    assert started.end() == (0, "draining\n2\n", "")


def test_the_demo() -> None:
    demo = Program(
        str(CHECKOUT / "examples" / "demo.py"), "-addr=127.0.0.1:0", "--stop-timeout", "9s"
    )
    line = demo.line()
    found = re.fullmatch(r"serving on http://(127\.0\.0\.1:\d+)/ with pid (\d+)", line)
    assert found and int(found[2]) == demo.process.pid, line
    for bad in ("3", "s", "-1s", "1x", "1s1", "%20"):
        connection = demo.connect(found[1])
        connection.request("GET", f"/?duration={bad}")
        assert connection.getresponse().status == 400
        connection.close()
    connection = demo.connect(found[1])
    connection.request("GET", "/?duration=0.3s")
    response = connection.getresponse()
    pid = found[2]
    assert response.readline() == f"going to sleep 0.3s with pid {pid}\n".encode()
    demo.signal(signal.SIGTERM)
    assert response.read() == f"slept 0.3s with pid {pid}\n".encode()
    connection.close()
    assert demo.end() == (0, "stopped: 7 requests, 7 served, 0 killed\n", "")


def test_the_demo_that_cannot_listen() -> None:
    demo = str(CHECKOUT / "examples" / "demo.py")
    first = Program(demo, "--addr", "127.0.0.1:0")
    address = first.line().split("/")[2]
    code, out, err = Program(demo, "-addr", address).end()
    assert (code, out) == (1, "") and "in use" in err
    first.signal(signal.SIGINT)
    assert first.end()[0] == 0


def test_the_example_of_the_readme() -> None:
    text = (PYTHON / "README.md").read_text("utf-8")
    texts = re.findall(r"```python\n((?:(?!```).)* as server:.*?)```", text, re.DOTALL)
    (example,) = (text for text in texts if "asyncio" not in text)
    use = """
    import urllib.request
    for path, words in ("/", ["Hello,", "127.0.0.1!"]), ("/count", list("0123456789")):
        with urllib.request.urlopen(f"http://{server.address}{path}") as response:
            assert response.read().decode().split() == words
"""
    assert example.count("    ...  # ") == 1
    code, out, err = Program("-c", example.replace("    ...  # ", use + "    # ")).end()
    assert (code, err) == (0, "")
    assert out.endswith("2 served, 0 killed\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
@pytest.mark.parametrize("readme", [CHECKOUT / "README.md", PYTHON / "README.md"], ids=str)
def test_the_programs_of_the_readmes_stop_without_a_loss(
    program: Run, readme: Path, number: signal.Signals
) -> None:
    texts = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    runs = re.compile(r'httpdown\.run\(\w+, "127\.0\.0\.1:8080"\)')
    (text,) = filter(runs.search, texts)
    started_here = text.replace(
        '"127.0.0.1:8080"',
        '"127.0.0.1:0", started=lambda s: print(s.address, flush=True), on_phase=on_phase',
    ).replace("(request):", "(request):\n    begun.set(); draining.wait()")
    assert started_here.count("started=") == started_here.count("begun.set") == 1
    started = program(
        f"""
def tell():
    begun.wait()
    os.kill(os.getpid(), {number:d})

begun = threading.Event()
threading.Thread(target=tell, daemon=True).start()
{started_here}"""
    )
    connection = started.connect(started.line())
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"Hello, World!"
    code, out, err = started.end()
    assert (code, err) == (0, "") and out.startswith("draining\n")


def test_servers_in_threads_of_their_own(program: Run) -> None:
    """Only the main thread gets Ctrl-C; others can stop servers all the same."""
    started = program(
        """
def one():
    with httpdown.Server(slow, "127.0.0.1:0") as server:
        pass
    results.append(server.report().status)

results = []
threads = [threading.Thread(target=one) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(results), set(results) == {httpdown.Status.OK})
"""
    )
    assert started.end() == (0, "20 True\n", "")


PATCHED = """
warnings.simplefilter("ignore")
{patch}
try:
    server = httpdown.Server(lambda request: request.reply(200), "127.0.0.1:0")
except RuntimeError as error:
    print(error)
else:
    import urllib.request
    print(urllib.request.urlopen(f"http://{server.address}/").status, flush=True)
    server.close()
"""


@pytest.mark.parametrize(
    ("library", "patch", "said"),
    [
        ("gevent", "import gevent.monkey as m; m.patch_all()", "gevent has patched threading"),
        ("gevent", "import gevent.monkey as m; m.patch_thread()", "gevent has patched threading"),
        ("gevent", "import gevent.monkey as m; m.patch_all(thread=False)", "200"),
        ("eventlet", "import eventlet as m; m.monkey_patch()", "eventlet has patched threading"),
        ("eventlet", "import eventlet as m; m.monkey_patch(thread=False)", "200"),
        # What httpdown looks for, where neither is installed.
        (None, "sys.modules['gevent.monkey'] = None", "200"),
    ],
    ids=str,
)
def test_patched_threads_are_refused(
    program: Run, library: str | None, patch: str, said: str
) -> None:
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed (make tools)")
    code, out, err = program(PATCHED.replace("{patch}", patch)).end()
    assert (code, out[: len(said)]) == (0, said), err


WORKER = """
def hello(request):
    request.reply(200, "hello")

server = httpdown.Server(hello, "{address}", reuse_port=True, stop_timeout=20)
server.run(lambda server: print(server.address, flush=True))
"""


class Load:
    """Clients that make a connection for each request, and count what became of it."""

    def __init__(self, address: str, clients: int) -> None:
        host, port = address.split(":")
        self.at = (host, int(port))
        self.answered = self.refused = 0
        self.lost: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            what = self._ask()
            with self._lock:
                self.answered += what == "answered"
                self.refused += what == "refused"
                if what not in ("answered", "refused"):
                    self.lost.append(what)

    def _ask(self) -> str:
        try:
            connection = socket.create_connection(self.at, timeout=LONG)
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:
            return f"not connected: {error!r}"
        try:
            with connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b""
                while piece := connection.recv(4096):
                    answer += piece
        except OSError as error:
            return f"no answer: {error!r}"
        return "answered" if answer.endswith(b"\r\n\r\nhello") else f"cut: {answer!r}"

    def until_answered(self, more: int) -> None:
        """Until so many more have been answered."""
        wanted = self.answered + more
        deadline = time.monotonic() + LONG
        while self.answered < wanted:
            assert time.monotonic() < deadline, "they are not answered any more"
            time.sleep(0.01)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(LONG)


def test_workers_with_a_socket_each_lose_nothing(program: Run) -> None:
    workers = [program(WORKER.format(address="127.0.0.1:0"))]
    address = workers[0].line()

    def start() -> None:
        workers.append(program(WORKER.format(address=address)))
        assert workers[-1].line() == address

    start()
    load = Load(address, 8)
    try:
        for _ in range(4):  # One after the other is replaced.
            load.until_answered(100)
            start()
            workers[0].signal(signal.SIGTERM)
            assert workers.pop(0).end() == (0, "", "")
        load.until_answered(100)
        assert (load.refused, load.lost) == (0, [])
        for worker in workers:  # And then all stop.
            worker.signal(signal.SIGTERM)
        for worker in workers:
            assert worker.end() == (0, "", "")
    finally:
        load.end()
    assert load.lost == []
    assert load.refused > 0


RUN_ALL = """
def tells(server, phase):
    if phase == httpdown.Phase.DRAINING:
        os.write(1, b"draining\\n")  # whole: each server has a thread for that

def started(servers):
    print(*(server.address for server in servers), flush=True)

try:
    given = [{{"handler": {handler}, "bind": "127.0.0.1:0", {options}}} for _ in range(3)]
    reports = httpdown.run_all(given, started=started)
    print(*(report.served for report in reports), flush=True)
finally:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def begin_all(program: Program) -> list[http.client.HTTPResponse]:
    """A request of each server whose answer has begun."""
    begun = []
    for address in program.line().split():
        connection = program.connect(address)
        connection.request("GET", "/", headers={"Connection": "close"})
        response = connection.getresponse()
        program.opened.append(response)
        assert response.read(5) == b"begin"
        begun.append(response)
    return begun


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_stops_several_servers_at_the_same_time_and_loses_no_request(
    program: Run, number: signal.Signals
) -> None:
    # Each handler waits until all servers drain.
    started = program(
        """
draining = threading.Semaphore(0)
def on_phase(server, phase):
    if phase == httpdown.Phase.DRAINING:
        draining.release()

all_drain = threading.Event()
def waits():
    for _ in range(3):
        draining.acquire()
    all_drain.set()
threading.Thread(target=waits, daemon=True).start()

def slow(request):
    with request.start() as out:
        out.write("begin")
        all_drain.wait()
        out.write("end")
"""
        + RUN_ALL.format(handler="slow", options='"on_phase": on_phase')
    )
    responses = begin_all(started)
    started.signal(number)
    assert [response.read() for response in responses] == [b"end"] * 3
    assert started.end() == (0, "1 1 1\n", "")


def test_a_second_signal_kills_several_servers(program: Run) -> None:
    started = program(
        RUN_ALL.format(
            handler="until_cancelled", options='"on_phase": tells, "second_signal": 0'
        )
    )
    responses = begin_all(started)
    started.signal(signal.SIGTERM)
    assert [started.line() for _ in range(3)] == ["draining"] * 3
    started.signal(signal.SIGTERM)
    for response in responses:
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            response.read()
    status, _, err = started.end()
    assert status == 1
    assert "httpdown._errors.Killed" in err


def test_the_longest_second_signal_of_several_servers_counts(program: Run) -> None:
    started = program(
        """
pauses = iter([0, float("inf"), 0])
all_drain = threading.Event()
def slow(request):
    with request.start() as out:
        out.write("begin")
        all_drain.wait()
        out.write("end")

def goes_on():
    sys.stdin.readline()
    all_drain.set()
threading.Thread(target=goes_on, daemon=True).start()
"""
        + RUN_ALL.format(
            handler="slow", options='"on_phase": tells, "second_signal": next(pauses)'
        )
    )
    responses = begin_all(started)
    started.signal(signal.SIGTERM)
    assert [started.line() for _ in range(3)] == ["draining"] * 3
    started.signal(signal.SIGINT)
    assert started.process.stdin is not None
    started.process.stdin.write("\n")
    started.process.stdin.flush()
    assert [response.read() for response in responses] == [b"end"] * 3
    assert started.end() == (0, "1 1 1\n", "")


def test_a_server_that_cannot_be_started_is_named_and_those_before_it_lose_nothing(
    program: Run,
) -> None:
    started = program(
        """
import socket
listening = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listening.getsockname())
client.sendall(b"GET / HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n")

def hello(request):
    request.reply(200, "hello")

def started(servers):
    print("never")

given = [
    {"handler": hello, "fds": [listening]},
    {"handler": hello, "bind": "127.0.0.1:0"},
    {"handler": hello, "bind": "nonsense"},
]
try:
    httpdown.run_all(given, started=started)
except httpdown.AddressInvalid as error:
    assert str(error).startswith("server 2 (nonsense): "), str(error)
assert b"".join(iter(lambda: client.recv(1000), b"")).endswith(b"hello")
client.close()

for bad, error in (
    ([], ValueError),
    ([None], TypeError),
    ([{"handler": hello, "no_such_option": 1}], TypeError),
    ([{"bind": "127.0.0.1:0"}], TypeError),
):
    try:
        httpdown.run_all(bad)
    except error as caught:
        if bad and bad[0] and sys.version_info >= (3, 11):
            assert caught.__notes__[0].startswith("server 0"), caught.__notes__
    else:
        print("no error", bad)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    )
    assert started.end() == (0, "", "")


def test_several_servers_end_alone_or_by_the_failure_of_one(program: Run) -> None:
    started = program(
        """
import socket
listening = socket.create_server(("127.0.0.1", 0))
copy = listening.dup()

def stops(request):
    request.server.stop_begin()
    request.reply(200, "that was it")

def hello(request):
    request.reply(200, "hello")

def ask(server):
    with socket.create_connection((server.address.host, server.address.port)) as client:
        client.sendall(b"GET / HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n")
        return b"".join(iter(lambda: client.recv(1000), b""))

def started(servers):
    def client():
        assert ask(servers[0]).endswith(b"that was it")
        servers[0].wait()
        assert ask(servers[1]).endswith(b"hello")
        assert ask(servers[2]).endswith(b"hello")
        print("one has ended", flush=True)
        copy.shutdown(socket.SHUT_RD)  # accept(2) then fails for good
    threading.Thread(target=client).start()
    known.extend(servers)

known = []
try:
    httpdown.run_all(
        [
            {"handler": stops, "bind": "127.0.0.1:0"},
            {"handler": hello, "fds": [listening]},
            {"handler": hello, "bind": "127.0.0.1:0"},
        ],
        started=started,
    )
except httpdown.IOFailed as error:
    assert error.report.served == 1
print(*(server.report().status for server in known))
copy.close()
"""
    )
    status, out, err = started.end()
    assert (status, out) == (0, "one has ended\nOK IO OK\n")
    assert err.startswith("serving failed: ")
