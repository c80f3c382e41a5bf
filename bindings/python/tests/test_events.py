"""What happens to a request is told to handlers in threads; reads and writes with a time limit."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from typing import Callable

import pytest
from conftest import LONG, Gate, any_address, dial, fetch, in_thread

import httpdown

CHUNKED = b"POST / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def leave(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def until(connection: socket.socket, end: bytes) -> bytes:
    text = b""
    while not text.endswith(end):
        piece = connection.recv(1 << 16)
        assert piece, text
        text += piece
    return text


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"


def test_a_handler_is_told_that_its_client_has_left() -> None:
    begun, left, told = Gate(), Gate(), []

    def handler(request: httpdown.Request) -> None:
        request.on_cancel(lambda: told.append(threading.current_thread()))
        request.on_cancel(left.open)
        request.on_drain(lambda: told.append(None))
        begun.open()
        left.wait()
        assert request.cancelled
        with pytest.raises(httpdown.Gone):
            request.reply(200)
        told.append(threading.current_thread())

    # All its threads are busy: there is one more for this.
    with httpdown.Server(handler, any_address(), threads=1) as server:
        connection = dial(server.address)
        connection.sendall(GET)
        begun.wait()
        leave(connection)
        left.wait()
        assert server.stop().gone == 1
    assert len(told) == 2 and told[0] is not told[1] and None not in told


def test_handlers_are_told_to_end_when_the_server_drains() -> None:
    def handler(request: httpdown.Request) -> None:
        drains = threading.Event()
        request.on_drain(drains.set)
        request.on_cancel(lambda: None)
        with request.start() as reply:
            reply.write("begun")
            assert drains.wait(LONG)
            reply.write("bye")

    with httpdown.Server(handler, any_address(), threads=3) as server:
        connections = [dial(server.address) for _ in range(3)]
        for connection in connections:
            connection.sendall(GET)
            until(connection, b"begun\r\n")
        assert server.stop().served == 3
        for connection in connections:
            assert until(connection, b"0\r\n\r\n").endswith(b"3\r\nbye\r\n0\r\n\r\n")
            connection.close()


def test_a_handler_is_told_that_its_request_is_overdue() -> None:
    told: list[bool] = []
    records: list[httpdown.RequestRecord] = []

    def handler(request: httpdown.Request) -> None:
        late, drains = threading.Event(), threading.Event()
        request.on_drain(drains.set)
        request.on_overdue(late.set)
        assert late.wait(LONG)
        told.append(request.overdue and not request.cancelled and not drains.is_set())
        request.reply(200, "late")
        with pytest.raises(httpdown.AlreadyReplied):
            request.on_overdue(late.set)

    with httpdown.Server(
        handler, any_address(), threads=1, handler_timeout=0.05, on_done=records.append
    ) as server:
        assert [fetch(server).body for _ in range(2)] == [b"late"] * 2
        report = server.stop()
    assert (report.served, report.overdue) == (2, 2)
    assert told == [True, True]
    assert [record.overdue for record in records] == [True, True]
    assert '"overdue":true' in records[0].json()


def test_no_request_is_overdue_by_default() -> None:
    seen: list[bool] = []

    def handler(request: httpdown.Request) -> None:
        request.on_overdue(lambda: seen.append(True))
        time.sleep(0.01)
        seen.append(request.overdue)
        request.reply(200)

    with httpdown.Server(handler, any_address()) as server:
        assert fetch(server).status == 200
        assert server.stop().overdue == 0
    assert seen == [False]


def test_no_more_handlers_run_than_there_are_threads() -> None:
    running, most = 0, 0
    lock, begun, left = threading.Lock(), Gate(), Gate()

    def handler(request: httpdown.Request) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if request.path == "/first":
            request.on_cancel(left.open)
            begun.open()
            left.wait()
        else:
            request.reply(200, "late")
        with lock:
            running -= 1

    with httpdown.Server(handler, any_address(), threads=1) as server:
        first = dial(server.address)
        first.sendall(GET.replace(b"/", b"/first", 1))
        begun.wait()
        others = [in_thread(fetch, server) for _ in range(5)]
        wait_for(lambda: len(server._waiting) == 5)
        leave(first)
        for other in others:
            assert other.result(LONG).body == b"late"  # type: ignore[attr-defined]
        assert server.stop().served == 5
    assert most == 1


def test_requests_that_wait_are_cut_by_a_kill() -> None:
    begun, cancelled = Gate(), Gate()
    seen = []

    def handler(request: httpdown.Request) -> None:
        seen.append(request.path)
        request.on_cancel(cancelled.open)
        begun.open()
        cancelled.wait()

    server = httpdown.Server(handler, any_address(), threads=1)
    connections = []
    for path in (b"/first", b"/second"):
        connections.append(dial(server.address))
        connections[-1].sendall(GET.replace(b"/", path, 1))
        begun.wait()
    wait_for(lambda: server._waiting)
    server.kill_begin()
    with pytest.raises(httpdown.Killed):
        server.wait(LONG)
    assert seen == ["/first"] and server.report().killed == 2
    for connection in connections:
        connection.close()


def test_what_is_told_while_another_thread_reads_does_not_wait_for_it() -> None:
    told, read = Gate(), Gate()

    def handler(request: httpdown.Request) -> None:
        request.on_drain(told.open)
        request.on_cancel(lambda: None)
        assert request.read() == b"hello"
        read.open()
        request.reply(200)

    with httpdown.Server(handler, any_address()) as server:
        with dial(server.address) as connection:
            connection.sendall(CHUNKED)
            wait_for(lambda: server._watched)
            server.stop_begin()
            told.wait()
            connection.sendall(b"5\r\nhello\r\n0\r\n\r\n")
            read.wait()
            assert server.wait(LONG).served == 1


def test_exceptions_of_callbacks_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    left = Gate()

    def fails() -> None:
        raise ValueError("no reason")

    def handler(request: httpdown.Request) -> None:
        request.on_cancel(fails)
        request.on_cancel(left.open)
        left.wait()

    with httpdown.Server(handler, any_address()) as server:
        connection = dial(server.address)
        connection.sendall(GET)
        wait_for(lambda: server._watched)
        leave(connection)
        left.wait()
    assert [r.levelno for r in caplog.records if "on_cancel" in r.message] == [logging.ERROR]
    assert "no reason" in caplog.text


def test_wrong_callbacks_are_refused() -> None:
    async def asynchronous() -> None: ...

    def handler(request: httpdown.Request) -> None:
        for wrong in (None, asynchronous):
            with pytest.raises(TypeError):
                request.on_cancel(wrong)  # type: ignore[arg-type]
        request.reply(200, "ok")
        for on in (request.on_cancel, request.on_drain):
            with pytest.raises(httpdown.AlreadyReplied):
                on(lambda: None)

    with httpdown.Server(handler, any_address()) as server:
        assert fetch(server).status == 200
        assert not server._is_spare_started


def test_reading_and_writing_have_a_time_limit() -> None:
    full = Gate()

    def handler(request: httpdown.Request) -> None:
        for timeout in (0, 0.001):
            with pytest.raises(TimeoutError):
                request.read(timeout=timeout)
            with pytest.raises(TimeoutError):
                request.body(timeout=timeout)
        with pytest.raises(TypeError):
            request.read(timeout="1")  # type: ignore[arg-type]
        reply = request.start(200)
        assert reply.write("ü") == 2
        with pytest.raises(TimeoutError):
            while reply.write(b"x" * (1 << 20), timeout=0) > 0:
                pass
        with pytest.raises(TimeoutError):
            while reply.write(b"x" * (1 << 20), timeout=0.001) > 0:
                pass
        full.open()
        assert reply.write("end") == 3
        reply.finish()

    with httpdown.Server(handler, any_address()) as server:
        with dial(server.address) as connection:
            connection.sendall(CHUNKED)
            full.wait()
            until(connection, b"3\r\nend\r\n0\r\n\r\n")
        assert server.stop().served == 1


def test_trailers_go_both_ways() -> None:
    def handler(request: httpdown.Request) -> None:
        assert len(request.trailers) == 0
        assert request.body() == b"abc"
        assert request.trailers.pairs == [("x-sum", "3"), ("x-sum", "4")]
        reply = request.start(200, {"trailer": "x-sum"})
        reply.write("def")
        with pytest.raises(ValueError):
            reply.set_trailers({"x sum": "5"})
        reply.set_trailers({"x-sum": "none"})
        reply.set_trailers([("x-sum", b"5")])
        reply.finish()
        with pytest.raises(httpdown.AlreadyReplied):
            reply.set_trailers({})

    with httpdown.Server(handler, any_address()) as server:
        with dial(server.address) as connection:
            connection.sendall(CHUNKED + b"3\r\nabc\r\n0\r\nX-Sum: 3\r\nX-Sum: 4\r\n\r\n")
            until(connection, b"3\r\ndef\r\n0\r\nx-sum: 5\r\n\r\n")
        assert server.stop().served == 1
