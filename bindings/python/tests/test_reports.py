"""What is told of handlers and observers that fail, and how."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Callable

import pytest
from conftest import LONG, Gate, Program, any_address, dial, fetch, in_thread

import httpdown
from httpdown import Request, Server, Unanswered


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def raises(request: Request) -> None:
    raise RuntimeError("what it raised")


def answers_and_raises(request: Request) -> None:
    request.reply(200)
    raises(request)


def forgets(request: Request) -> None:
    pass


def leaves_it_unfinished(request: Request) -> None:
    request.start(200).write("begun")


@pytest.mark.parametrize("handler", [raises, answers_and_raises])
def test_what_a_handler_raises_is_logged_with_its_request(
    handler: Callable[[Request], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Server(handler, any_address()) as server:
        fetch(server, "/place?secret", "PUT")
    assert records(caplog) == [(logging.ERROR, "PUT /place: the handler failed")]
    (record,) = caplog.records
    assert record.name == "httpdown" and record.exc_info
    assert str(record.exc_info[1]) == "what it raised"


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (forgets, "the handler returned without an answer"),
        (leaves_it_unfinished, "the handler returned without finishing its answer"),
    ],
)
def test_a_handler_that_does_not_answer_is_logged(
    handler: Callable[[Request], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(handler, any_address()) as server, contextlib.suppress(Exception):
        fetch(server, "/place")
    assert records(caplog) == [(logging.ERROR, f"GET /place: {why}")]


def test_a_request_that_was_aborted_or_deferred_needs_no_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept: list[Request] = []

    def handler(request: Request) -> None:
        if request.path == "/abort":
            return request.abort()
        request.defer()
        kept.append(request)

    with Server(handler, any_address()) as server:
        assert fetch(server, "/abort").status == 500
        client = in_thread(fetch, server)
        while not kept:
            assert not client.done()
        kept[0].reply(200)
        assert client.result(LONG).status == 200
    assert records(caplog) == []


def test_a_path_cannot_forge_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with Server(forgets, any_address()) as server:
        with dial(server.address) as client:
            client.sendall(b"GET /\xc2\x85\xe2\x80\xa8x HTTP/1.0\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.0 400 ")
            while client.recv(1000):
                pass
        fetch(server, "/%C2%85%0Ax")
    ((_, message),) = records(caplog)
    assert message.isascii() and len(message.splitlines()) == 1


ON_STDERR = """
barrier = threading.Barrier(8)
def handler(request):
    barrier.wait()
    if request.path != "/forgets":
        raise RuntimeError("one", "two\\nthree")

with httpdown.Server(handler, "127.0.0.1:0") as server:
    print(server.address, flush=True)
    while server.report().requests < 8 or server.report().conns_active:
        time.sleep(0.001)
"""


def test_reports_on_stderr_are_whole_and_name_the_request(
    program: Callable[[str], Program],
) -> None:
    started = program(ON_STDERR)
    address = started.line()

    def get(number: int) -> int:
        connection = started.connect(address)
        connection.request("GET", "/forgets" if number == 0 else f"/{number}")
        response = connection.getresponse()
        response.read()
        return response.status

    clients = [in_thread(get, number) for number in range(8)]
    assert [client.result(LONG) for client in clients] == [500] * 8
    code, _, err = started.end()
    assert code == 0
    assert "Exception ignored" not in err
    assert "GET /forgets: the handler returned without an answer\n" in err
    for number in range(1, 8):
        report = err.split(f"GET /{number}: the handler failed\n")[1]
        assert report.startswith("Traceback (most recent call last):\n")
        assert "two\\nthree" in report.split("GET /")[0]


def test_on_error_is_told_instead_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, str, BaseException]] = []

    def handler(request: Request) -> None:
        if request.path != "/forgets":
            answers_and_raises(request)

    def on_error(request: Request, error: BaseException) -> None:
        told.append((request.method, request.path, error))

    with Server(handler, any_address(), on_error=on_error) as server:
        assert fetch(server, "/raises").status == 200
        assert fetch(server, "/forgets", "DELETE").status == 500
    (raised, forgot) = told
    assert raised[:2] == ("GET", "/raises") and type(raised[2]) is RuntimeError
    assert raised[2].__traceback__
    assert forgot[:2] == ("DELETE", "/forgets") and type(forgot[2]) is Unanswered
    assert records(caplog) == []


def test_on_error_may_answer(caplog: pytest.LogCaptureFixture) -> None:
    def on_error(request: Request, error: BaseException) -> None:
        request.reply(418, f"{error}")

    with Server(raises, any_address(), on_error=on_error) as server:
        response: Any = fetch(server)
    assert (response.status, response.body) == (418, b"what it raised")
    assert records(caplog) == []


def test_an_on_error_that_raises_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def on_error(request: Request, error: BaseException) -> None:
        raise SystemExit(3)

    # One thread: it must survive.
    with Server(raises, any_address(), threads=1, on_error=on_error) as server:
        for _ in range(2):
            assert fetch(server).status == 500
    assert (
        records(caplog)
        == [
            (logging.ERROR, "GET /: the handler failed"),
            (logging.ERROR, "GET /: on_error failed"),
        ]
        * 2
    )


def test_logging_that_fails_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise ZeroDivisionError

    logger = logging.getLogger("httpdown")
    filter = Filter()
    logger.addFilter(filter)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            with Server(raises, any_address(), threads=1) as server:
                for _ in range(2):
                    assert fetch(server).status == 500
    finally:
        logger.removeFilter(filter)
    assert "what it raised" in err.getvalue() and "ZeroDivisionError" in err.getvalue()


def test_what_an_observer_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def on_phase(server: Server, phase: httpdown.Phase) -> None:
        if phase == httpdown.Phase.SERVING:
            raise ZeroDivisionError

    with Server(raises, any_address(), on_phase=on_phase):
        pass
    assert records(caplog) == [(logging.ERROR, "on_phase failed")]
    (record,) = caplog.records
    assert record.exc_info and record.exc_info[0] is ZeroDivisionError


def reset_on_close(client: socket.socket) -> None:
    """A FIN alone would not say that the client has left."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def writes(request: Request) -> None:
    out = request.start(200)
    while True:
        out.write(b"x" * 100_000)


def writes_in_a_block(request: Request) -> None:
    with request.start(200) as out:
        while True:
            out.write(b"x" * 100_000)


def reads(request: Request) -> None:
    request.body()


def answers_late(request: Request) -> None:
    request.wait_cancelled(LONG)
    request.reply(200)


@pytest.mark.parametrize("handler", [writes, writes_in_a_block, reads, answers_late])
def test_a_client_that_left_is_no_error(
    handler: Callable[[Request], None], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[BaseException] = []
    caplog.set_level(logging.DEBUG, "httpdown")
    for on_error in (None, lambda request, error: told.append(error)):
        begun = Gate()

        def handle(request: Request, begun: Gate = begun) -> None:
            begun.open()
            handler(request)

        with Server(handle, any_address(), on_error=on_error) as server:
            with dial(server.address) as client:
                head = b"POST /gone HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nhalf"
                client.sendall(head)
                begun.wait()
                reset_on_close(client)
    assert told == []
    assert {level for level, _ in records(caplog)} <= {logging.DEBUG}
    assert all(record.exc_info is None for record in caplog.records)


def test_a_body_that_is_malformed_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with Server(reads, any_address()) as server:
        with dial(server.address) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nz\r\n")
            while client.recv(1000):
                pass
    assert records(caplog) == []


def test_that_the_client_of_another_request_left_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept: list[Request] = []
    begun = Gate()

    def handler(request: Request) -> None:
        if request.path == "/kept":
            request.defer()
            kept.append(request)
            begun.open()
        else:
            kept[0].wait_cancelled()
            kept[0].reply(200)

    with Server(handler, any_address()) as server:
        with dial(server.address) as client:
            client.sendall(b"GET /kept HTTP/1.1\r\nhost: x\r\n\r\n")
            begun.wait()
            reset_on_close(client)
        assert fetch(server).status == 500
    assert records(caplog) == [(logging.ERROR, "GET /: the handler failed")]


async def coroutine(*_: object) -> None: ...


async def stream(*_: object) -> AsyncIterator[bytes]:
    yield b""


def generator(*_: object) -> Iterator[bytes]:
    yield b""


class Awaitable:
    async def __call__(self, *_: object) -> None: ...

    async def method(self, *_: object) -> None: ...


NEVER_RUN = {
    "async def": coroutine,
    "async generator": stream,
    "generator": generator,
    "partial": functools.partial(coroutine, 1),
    "partial of a partial": functools.partial(functools.partial(coroutine, 1), 2),
    "object": Awaitable(),
    "partial of an object": functools.partial(Awaitable(), 1),
    "method": Awaitable().method,
}


@pytest.mark.parametrize("callee", NEVER_RUN.values(), ids=NEVER_RUN)
@pytest.mark.parametrize("name", ["handler", "on_phase", "on_log", "on_conn_state", "on_error"])
def test_what_a_call_would_not_run_is_refused(name: str, callee: Any) -> None:
    options = {"handler": forgets, "bind": any_address(), name: callee}
    with pytest.raises(TypeError, match=f"{name} must be a plain function"):
        Server(**options)


def test_statistics_that_a_call_would_not_run_are_refused() -> None:
    class Stats:
        bump_avg = bump_sum = bump_histogram = bump_time = Awaitable().method

    with pytest.raises(TypeError, match=r"stats\.bump_avg must be a plain function"):
        Server(forgets, any_address(), stats=Stats())


def test_plain_callables_of_any_kind_are_handlers() -> None:
    class Handler:
        def __init__(self, request: Request | None = None) -> None:
            if request:
                request.reply(200)

        def __call__(self, request: Request) -> None:
            request.reply(200)

        method = __call__

    @functools.wraps(coroutine)
    def runs(request: Request) -> None:
        asyncio.run(coroutine())
        request.reply(200)

    for handler in (Handler, Handler(), Handler().method, functools.partial(Handler()), runs):
        with Server(handler, any_address()) as server:
            assert fetch(server).status == 200


NEVER_RUN_RESULTS = {
    "coroutine": coroutine,
    "async_generator": stream,
    "generator": generator,
}


@pytest.mark.parametrize("kind", NEVER_RUN_RESULTS)
@pytest.mark.parametrize("answers", [False, True])
def test_a_coroutine_that_a_handler_returns_is_named(
    kind: str, answers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: Request) -> Any:
        if answers:
            request.reply(200)
        return NEVER_RUN_RESULTS[kind](request)

    with Server(handler, any_address()) as server:
        assert fetch(server).status == (200 if answers else 500)
    message = f"GET /: the handler returned a {kind}, which nobody runs"
    assert records(caplog) == [(logging.ERROR, message + ("" if answers else ", and no answer"))]


def test_what_a_handler_returns_in_the_place_of_an_answer_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Response: ...

    for result in ("Hello", Response(), 404):
        with Server(lambda request: result, any_address()) as server:  # noqa: B023
            assert fetch(server, "/place", "PUT").status == 500
    assert records(caplog) == [
        (logging.ERROR, f"PUT /place: the handler returned a {kind}, and no answer")
        for kind in ("str", "Response", "int")
    ]


def test_a_coroutine_that_an_observer_returns_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with Server(
        raises,
        any_address(),
        on_error=lambda request, error: coroutine(),
        on_phase=lambda server, phase: coroutine() if phase == httpdown.Phase.SERVING else None,
    ) as server:
        assert fetch(server).status == 500
    assert sorted(records(caplog)) == [
        (logging.ERROR, "GET /: on_error returned a coroutine, which nobody runs"),
        (logging.ERROR, "GET /: the handler failed"),
        (logging.ERROR, "on_phase returned a coroutine, which nobody runs"),
    ]


def test_a_deferred_request_that_is_dropped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: Request) -> None:
        request.defer()
        if request.path == "/begun":
            request.start(200, {"content-length": "3"})

    with Server(handler, any_address()) as server:
        assert fetch(server, "/place", "PUT").status == 500
        with contextlib.suppress(Exception):
            fetch(server, "/begun")
    text = "the request was deferred, and dropped without"
    assert records(caplog) == [
        (logging.ERROR, f"PUT /place: {text} an answer"),
        (logging.ERROR, f"GET /begun: {text} finishing its answer"),
    ]


def test_a_deferred_request_whose_client_has_left_is_dropped_silently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept: list[Request] = []
    begun = Gate()

    def handler(request: Request) -> None:
        request.defer()
        kept.append(request)
        begun.open()

    with Server(handler, any_address()) as server:
        with dial(server.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            begun.wait()
            reset_on_close(client)
        assert kept[0].wait_cancelled(LONG)
        kept.clear()
    assert records(caplog) == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204])
def test_an_answer_without_a_body_may_be_written_to_but_not_given_twice(
    method: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: Request) -> None:
        out = request.start(status)
        if request.path == "/unfinished":
            return
        if request.path == "/writes":
            with out:
                out.write("body")
            return
        request.reply(200)

    is_bodyless = method == "HEAD" or status == 204
    with Server(handler, any_address()) as server:
        for _ in range(50 if is_bodyless else 1):
            assert fetch(server, "/writes", method).status == status
            if is_bodyless:
                assert fetch(server, "/unfinished", method).status == status
        assert records(caplog) == []
        with contextlib.suppress(Exception):
            fetch(server, "/twice", method)
    assert records(caplog) == [(logging.ERROR, f"{method} /twice: the handler failed")]


def test_nothing_goes_to_the_unraisable_hook(
    unraisable: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    for error in (RuntimeError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()):

        def handler(request: Request, error: BaseException = error) -> None:
            raise error

        with Server(handler, any_address()) as server:
            assert fetch(server).status == 500
    assert unraisable == []
    assert records(caplog) == [(logging.ERROR, "GET /: the handler failed")] * 4
    assert sys.exc_info() == (None, None, None)


def test_what_the_library_says_goes_to_the_log(program: Callable[[str], Program]) -> None:
    started = program(
        """
import logging, resource

class Mend(logging.Handler):
    def emit(self, record):
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        print(record.levelname, record.getMessage(), flush=True)

logging.getLogger("httpdown").addHandler(Mend())
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
with httpdown.Server(lambda request: request.reply(200), "127.0.0.1:0") as server:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    print(server.address, flush=True)
    sys.stdin.read()
"""
    )
    connection = started.connect(started.line())
    connection.request("GET", "/")
    assert started.line().startswith("WARNING accepting pauses: ")
    assert connection.getresponse().status == 200
    connection.close()
    assert started.end() == (0, "", "")


def test_on_log_is_told_instead_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[httpdown.LogLevel, str]] = []
    with Server(forgets, any_address(), on_log=lambda *said: told.append(said)) as server:
        fetch(server, "/place")
    assert records(caplog) == [
        (logging.ERROR, "GET /place: the handler returned without an answer")
    ]
    assert told and "/place" in told[0][1]
