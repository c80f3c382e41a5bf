"""Servers: made, asked, stopped."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG, Gate, any_address, connect, dial, fetch, in_thread

import httpdown
from httpdown import ConnState, LogLevel, MockClock, Phase, Request, Server, Status, _server


def hello(request: Request) -> None:
    request.reply(200, "Hello, World!")


def test_hello() -> None:
    with Server(hello, any_address()) as server:
        assert (server.phase, server.ready) == (Phase.SERVING, True)
        response: Any = fetch(server)
        assert (response.status, response.body) == (200, b"Hello, World!")
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert (server.phase, server.ready) == (Phase.STOPPED, False)
    report = server.report()
    assert (report.status, report.requests, report.served) == (Status.OK, 1, 1)
    assert server.stop() == server.wait() == report


def test_a_server_that_has_stopped_is_not_used_again() -> None:
    with Server(hello, any_address()) as server:
        pass
    with pytest.raises(httpdown.Stopped):
        server.run()
    with pytest.raises(httpdown.Stopped):
        with server:
            raise AssertionError("entered")
    assert server.stop() == server.wait() == server.report()


def test_a_stop_that_has_only_begun_is_waited_for_in_a_block() -> None:
    server = Server(hello, any_address())
    server.stop_begin()
    with server:
        pass
    assert server.report().status == Status.OK


def test_codes_print_as_names() -> None:
    for code in (*Phase, *ConnState, *LogLevel, *Status):
        assert str(code) == f"{code}" == code.name
    assert "DRAINING" == f"{Phase.DRAINING}" and Phase.DRAINING == 3


def test_two_servers_do_not_know_of_each_other() -> None:
    with Server(hello, "127.0.0.1:0") as one, Server(hello, "127.0.0.1:0,[::1]:0") as two:
        assert one.address != two.address
        assert [str(address).rpartition(":")[0] for address in two.addresses] == [
            "127.0.0.1",
            "[::1]",
        ]
        one.stop()
        assert fetch(two).status == 200


def test_an_address_in_use() -> None:
    with Server(hello, any_address()) as server:
        with pytest.raises(httpdown.AddressInUse, match="in use") as error:
            Server(hello, str(server.address))
        assert error.value.status == Status.ADDR_IN_USE


def test_given_sockets_become_the_servers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        with Server(hello, fds=[given]) as server:
            assert given.fileno() == -1
            assert server.addresses == [("127.0.0.1", port)]
            assert fetch(server).status == 200


def test_given_sockets_stay_ours_on_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given, socket.socket() as silent:
        with pytest.raises(httpdown.InvalidArgument, match="not a listening socket"):
            Server(hello, fds=[given, silent])
        assert given.fileno() >= 0


def test_a_unix_socket_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with Server(hello, f"unix:{path}?mode=0600, 127.0.0.1:0") as server:
        assert server.address == (str(path), None)
        assert str(server.address) == f"unix:{path}"
        assert server.addresses[1].port is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert fetch(server).status == 200
        with pytest.raises(httpdown.AddressInUse, match="somebody listens there"):
            Server(hello, f"unix:{path}")
        assert "app.sock" in repr(server)
    assert not path.exists()
    with pytest.raises(httpdown.AddressInvalid, match="not an octal number"):
        Server(hello, f"unix:{path}?mode=rw")
    with pytest.raises(httpdown.InvalidArgument, match="SO_REUSEPORT"):
        Server(hello, f"unix:{path}", reuse_port=True)


def test_shared_sockets_keep_their_queue() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        with Server(hello, fds=[os.dup(ours.fileno())], fds_shared=True):
            pass
        with socket.create_connection(ours.getsockname(), LONG):
            ours.accept()[0].close()


@pytest.mark.parametrize(
    "options",
    [
        {"handler": None},
        {"handler": "hello"},
        {"bind": 8080},
        {"bind": "127.0.0.1:0\0"},
        {"bind": "nonsense"},
        {"bind": "127.0.0.1:99999"},
        {"threads": 0},
        {"threads": -1},
        {"threads": 1 << 40},
        {"threads": True},
        {"threads": 1.5},
        {"io_threads": 0},
        {"io_threads": 1 << 33},
        {"stop_timeout": -1},
        {"stop_timeout": math.nan},
        {"stop_timeout": -math.inf},
        {"stop_timeout": 1e10},
        {"stop_timeout": True},
        {"stop_timeout": "10s"},
        {"kill_timeout": -0.001},
        {"lame_duck": 4294967.295},
        {"header_timeout": "1"},
        {"ready_path": ""},
        {"ready_path": "ready"},
        {"ready_path": "/ready?"},
        {"ready_path": "/a b"},
        {"ready_path": "/\0"},
        {"ready_path": "/\n"},
        {"ready_path": "/ä"},
        {"ready_path": b"/ready"},
        {"lame_duck": 5, "lame_duck_min": 5.001},
        {"lame_duck": 5, "lame_duck_quiet": math.inf},
        {"lame_duck_quiet": 1},
        {"lame_duck_min": -1},
        {"idle_timeout": 0},
        {"idle_timeout": -1},
        {"keep_alive_header": True},
        {"keep_alive_header": True, "idle_timeout": math.inf},
        {"keep_alive_header": True, "idle_timeout": 1.5},
        {"fds": [-1]},
        {"fds": [True]},
        {"fds": ["1"]},
        {"fds": [1 << 40]},
        {"fds": [999_999]},
        {"clock": 1.0},
        {"on_error": "print"},
        {"on_phase": 1},
        {"on_log": "print"},
        {"on_conn_state": {1: 2}},
        {"stats": object()},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    arguments = {"handler": hello, "bind": any_address(), **options}
    with pytest.raises((ValueError, TypeError, AttributeError, httpdown.AddressInvalid)) as error:
        Server(**arguments)
    assert str(error.value)


def test_durations_that_do() -> None:
    for value in (0, 1e-9, 0.5, 1, 4_294_967, math.inf, None):
        with Server(hello, any_address(), stop_timeout=value, kill_timeout=value):
            pass


def test_a_stop_lets_a_request_finish_and_refuses_new_connections() -> None:
    begun, finish, draining = Gate(), Gate(), Gate()

    def slow(request: Request) -> None:
        with request.start(200) as out:
            out.write(b"x" * 1000)
            begun.open()
            finish.wait()
            for _ in range(49):
                out.write(b"x" * 1000)

    def on_phase(_: Server, phase: Phase) -> None:
        if phase == Phase.DRAINING:
            draining.open()

    with Server(slow, any_address(), on_phase=on_phase) as server:
        client = in_thread(fetch, server)
        begun.wait()
        stop = in_thread(server.stop)
        draining.wait()
        assert not server.ready
        with pytest.raises(ConnectionRefusedError):
            dial(server.address)
        with pytest.raises(TimeoutError):
            server.wait(0)
        finish.open()
        response: Any = client.result(LONG)
        assert response.body == b"x" * 50_000
        assert stop.result(LONG).served == 1


def test_a_lame_duck_still_accepts() -> None:
    clock = MockClock()
    with Server(hello, any_address(), lame_duck=5, clock=clock) as server:
        server.stop_begin()
        clock.wait_for_timers(1)
        assert (server.phase, server.ready) == (Phase.LAME_DUCK, False)
        assert fetch(server).status == 200
        clock.advance(5)
        assert server.wait(LONG).stop_duration == 5


def test_the_ready_path_while_all_threads_are_busy() -> None:
    begun, finish = Gate(), Gate()

    def slow(request: Request) -> None:
        begun.open()
        finish.wait()
        request.reply(200)

    with Server(slow, any_address(), threads=1, ready_path="/ready") as server:
        client = in_thread(fetch, server)
        begun.wait()
        response: Any = fetch(server, "/ready?verbose")
        assert (response.status, response.body) == (200, b"ready\n")
        assert response.headers["cache-control"] == "no-store"
        response = fetch(server, "/ready", "POST", b"body")
        assert (response.status, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        finish.open()
        assert client.result(LONG).status == 200
    assert server.report().served == 3


def test_a_lame_duck_ends_when_it_is_quiet() -> None:
    clock = MockClock()
    with Server(
        hello,
        any_address(),
        clock=clock,
        ready_path="/ready",
        lame_duck=60,
        lame_duck_min=8,
        lame_duck_quiet=5,
    ) as server:
        server.stop_begin()
        clock.wait_for_timers(2)
        clock.advance(4)
        assert fetch(server).status == 200
        clock.advance(4)  # The least time is over, but it is not quiet for long enough.
        clock.wait_for_timers(2)
        response: Any = fetch(server, "/ready")
        assert (response.status, response.body) == (503, b"stopping\n")
        assert (server.phase, server.ready) == (Phase.LAME_DUCK, False)
        clock.advance(1)
        assert server.wait(LONG).stop_duration == 9


def test_an_idle_connection_is_closed() -> None:
    with Server(hello, any_address(), idle_timeout=0.1) as server:
        client = connect(server)
        client.request("GET", "/")
        response = client.getresponse()
        assert (response.read(), response.getheader("keep-alive")) == (b"Hello, World!", None)
        assert client.sock.recv(1) == b""
        client.close()
    assert server.report().closed_idle == 1


def test_responses_tell_of_the_idle_timeout() -> None:
    with Server(hello, any_address(), idle_timeout=61.5, keep_alive_header=True) as server:
        assert fetch(server).headers["keep-alive"] == "timeout=60"


def test_a_kill_after_the_stop_timeout() -> None:
    begun = Gate()

    def endless(request: Request) -> None:
        with request.start(200) as out:
            begun.open()
            assert request.wait_cancelled(LONG)
            with pytest.raises(httpdown.Killed):
                out.write(b"too late")

    clock = MockClock()
    server = Server(endless, any_address(), stop_timeout=60, clock=clock)
    client = in_thread(fetch, server)
    begun.wait()
    stop = in_thread(server.stop)
    clock.wait_for_timers(1)
    clock.advance(60)
    with pytest.raises(httpdown.Killed):
        stop.result(LONG)
    with pytest.raises(httpdown.Killed):
        server.wait()
    assert client.exception(LONG)
    server.close()
    report = server.report()
    assert (report.killed, report.served, report.status) == (1, 0, Status.KILLED)


def test_a_handler_that_ignores_the_kill_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    begun, finish, finished = Gate(), Gate(), Gate()

    def deaf(request: Request) -> None:
        begun.open()
        finish.wait()
        try:
            request.reply(200)
        finally:
            finished.open()

    clock = MockClock()
    with contextlib.suppress(httpdown.TimedOut):
        with Server(deaf, any_address(), stop_timeout=1, kill_timeout=1, clock=clock) as server:
            client = in_thread(fetch, server)
            begun.wait()
            server.stop_begin()
            clock.wait_for_timers(1)
            clock.advance(1)
            clock.wait_for_timers(1)
            clock.advance(1)
            with pytest.raises(httpdown.TimedOut):
                server.wait(LONG)
    assert client.exception(LONG)
    report = server.report()
    assert (report.killed, report.abandoned) == (1, 1)
    finish.open()
    finished.wait()
    assert caplog.records == []


class Clock:
    """Stands for the module `time` in the server; moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(_server, "time", self)

    def monotonic(self) -> float:
        return self.now


@contextlib.contextmanager
def busy_behind_its_answer(**options: Any) -> Iterator[Server]:
    """A server with a handler that has answered, and does not return."""
    begun, finish = Gate(), Gate()

    def handler(request: Request) -> None:
        request.reply(200)
        begun.open()
        finish.wait()

    with contextlib.suppress(httpdown.HttpdownError):
        with Server(handler, any_address(), **options) as server:
            try:
                assert fetch(server).status == 200
                begun.wait()
                yield server
            finally:
                finish.open()


def reach_the_end(server: Server, clock: MockClock | None = None) -> None:
    """Waits for the end of C's part alone."""
    deadline = time.monotonic() + LONG
    while server.phase != Phase.STOPPED:
        assert time.monotonic() < deadline
        if clock is not None:
            clock.advance(HOUR)
        time.sleep(0.001)


HOUR = 3600


@pytest.mark.parametrize(
    ("begin", "options", "bound"),
    [
        (
            Server.stop_begin,
            {"lame_duck": 0.01, "stop_timeout": HOUR, "kill_timeout": HOUR},
            2 * HOUR + 0.01,
        ),
        (Server.kill_begin, {"stop_timeout": math.inf, "kill_timeout": HOUR}, HOUR),
    ],
    ids=["stop", "kill"],
)
def test_a_stop_keeps_its_bound_whatever_handlers_do_behind_their_answers(
    begin: Any, options: dict[str, Any], bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with busy_behind_its_answer(**options) as server:
        begin(server)
        reach_the_end(server)
        clock.now += bound - 1
        with pytest.raises(TimeoutError):
            server.wait(0)
        clock.now += 1
        # Those who come later do not wait anew.
        for call in (server.stop, server.wait, server.close, server.stop):
            in_thread(call).result(LONG)
        assert server.report().status == Status.OK


def test_a_server_that_has_ended_waits_for_a_kill_timeout_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    with busy_behind_its_answer(stop_timeout=math.inf, kill_timeout=HOUR) as server:
        server.stop_begin()
        reach_the_end(server)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                server.wait(0)
            clock.now += HOUR / 2
        assert in_thread(server.stop).result(LONG).served == 1


def test_a_wait_ends_by_its_timeout_whatever_handlers_do_behind_their_answers() -> None:
    with busy_behind_its_answer() as server:
        server.stop_begin()
        for timeout in (0, 0.01, 0.5):
            with pytest.raises(TimeoutError):
                in_thread(server.wait, timeout).result(LONG)
        assert server.phase == Phase.STOPPED  # So it was not C that was waited for.


def test_abandoned_handlers_are_not_waited_for() -> None:
    begun, finish = Gate(), Gate()

    def deaf(request: Request) -> None:
        begun.open()
        finish.wait()

    clock = MockClock()
    server = Server(deaf, any_address(), stop_timeout=HOUR, kill_timeout=HOUR, clock=clock)
    client = in_thread(fetch, server)
    begun.wait()
    server.kill_begin()
    reach_the_end(server, clock)
    with pytest.raises(httpdown.TimedOut):
        server.wait(0)
    assert client.exception(LONG)
    finish.open()
    server.close()


def test_stop_in_a_handler_begins_the_stop() -> None:
    failures: list[BaseException] = []

    def handler(request: Request) -> None:
        for call in (request.server.stop, request.server.wait):
            with pytest.raises(httpdown.WouldDeadlock) as error:
                call()
            failures.append(error.value)
        request.server.close()
        request.reply(200, "stopping")
        with pytest.raises(httpdown.WouldDeadlock):
            request.server.stop()

    with Server(handler, any_address(), threads=2) as server:
        response: Any = fetch(server)
        assert response.body == b"stopping"
        assert server.wait(LONG).served == 1
    assert len(failures) == 2


def test_a_server_that_nobody_holds_goes_on_until_it_is_stopped() -> None:
    addresses: list[httpdown.Address] = []

    def handler(request: Request) -> None:
        request.server.stop_begin()
        request.reply(200)

    addresses.append(Server(handler, any_address()).address)
    with dial(addresses[0]) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 200")


def test_what_a_block_raises_goes_before_what_its_stop_would() -> None:
    begun = Gate()

    def endless(request: Request) -> None:
        begun.open()
        request.wait_cancelled()

    with pytest.raises(ZeroDivisionError):
        with Server(endless, any_address(), stop_timeout=0) as server:
            client = in_thread(fetch, server)
            begun.wait()
            raise ZeroDivisionError
    assert server.report().status == Status.KILLED
    assert client.exception(LONG)


def test_a_hundred_servers_leave_nothing_behind() -> None:
    def counts() -> tuple[int, int, int]:
        return (
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            threading.active_count(),
        )

    def one() -> None:
        def on_phase(*_: object) -> None: ...

        with Server(hello, any_address(), threads=3, on_phase=on_phase) as server:
            assert fetch(server).status == 200

    def leaves_nothing() -> bool:
        return all(now <= then for now, then in zip(counts(), before))

    one()
    before = counts()
    for _ in range(100):
        one()
    # The kernel forgets a thread a moment after it has been joined.
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline and not leaves_nothing():
        time.sleep(0.001)
    assert leaves_nothing(), (before, counts())


class Recorder:
    def __init__(self) -> None:
        self.bumps: list[tuple[str, str, float]] = []

    def __len__(self) -> int:
        return len(self.bumps)  # That it is false at first must not matter.

    def bump_avg(self, key: str, value: float) -> None:
        self.bumps.append(("avg", key, value))

    def bump_sum(self, key: str, value: float) -> None:
        self.bumps.append(("sum", key, value))

    def bump_histogram(self, key: str, value: float) -> None:
        self.bumps.append(("histogram", key, value))

    def bump_time(self, key: str, value: float) -> None:
        self.bumps.append(("time", key, value))


def test_events_of_a_plain_stop_all_arrive() -> None:
    stats, clock = Recorder(), MockClock()
    phases: list[Phase] = []
    states: list[tuple[int, ConnState]] = []
    logs: list[tuple[LogLevel, str]] = []
    peers: set[httpdown.Address] = set()

    def handler(request: Request) -> None:
        peers.add(request.peer)
        assert request.conn_id == 0
        if request.path != "/forgotten":
            request.reply(200)

    def on_conn_state(_: Server, conn: int, state: ConnState, peer: httpdown.Address) -> None:
        peers.add(peer)
        states.append((conn, state))

    with Server(
        handler,
        any_address(),
        clock=clock,
        stats=stats,
        on_conn_state=on_conn_state,
        on_phase=lambda server, phase: phases.append(phase),
        on_log=lambda level, text: logs.append((level, text)),
    ) as server:
        with contextlib.closing(connect(server)) as connection:
            for path in ("/", "/forgotten"):
                connection.request("GET", path)
                connection.getresponse().read()
            clock.wait_for_timers(1)
            clock.advance(60)
            clock.wait_for_timers(1)
            server.stop()
    assert phases == [Phase.SERVING, Phase.QUIESCING, Phase.DRAINING, Phase.STOPPED]
    assert states[:3] == [(0, ConnState.NEW), (0, ConnState.ACTIVE), (0, ConnState.IDLE)]
    assert states[-1] == (0, ConnState.CLOSED)
    assert len(peers) == 1
    assert logs == [(LogLevel.ERROR, "a handler did not answer /forgotten")]
    keys = {(kind, key) for kind, key, _ in stats.bumps}
    assert keys == {
        ("sum", "serve"),
        ("sum", "handler.error"),
        ("sum", "conn.closed"),
        ("sum", "stop"),
        ("histogram", "stop.conn.count"),
        ("time", "stop.time"),
        ("avg", "http-state.new"),
        ("avg", "http-state.active"),
        ("avg", "http-state.idle"),
        ("avg", "http-state.total"),
    }
    assert ("histogram", "stop.conn.count", 1.0) in stats.bumps
    assert server.report().events_dropped == 0


def test_an_observer_that_raises_or_stops(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Phase] = []

    def on_phase(server: Server, phase: Phase) -> None:
        seen.append(phase)
        if phase == Phase.SERVING:
            server.stop()  # Begins it, and raises.
        raise ZeroDivisionError

    with Server(hello, any_address(), on_phase=on_phase) as server:
        server.wait(LONG)
    assert seen[-1] == Phase.STOPPED
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [
        httpdown.WouldDeadlock,
        *[ZeroDivisionError] * (len(seen) - 1),
    ]


def test_run_is_for_the_main_thread() -> None:
    with Server(hello, any_address()) as server:
        with pytest.raises(ValueError, match="main thread"):
            in_thread(server.run).result(LONG)


def test_the_clock() -> None:
    clock = MockClock()
    for bad in (-1, math.nan, math.inf, 1e30, "1", True):
        with pytest.raises((ValueError, TypeError)):
            clock.advance(bad)  # type: ignore[arg-type]
    for bad in (-1, 1.5, True):
        with pytest.raises((ValueError, TypeError)):
            clock.wait_for_timers(bad)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        clock.wait_for_timers(1, timeout=0)
