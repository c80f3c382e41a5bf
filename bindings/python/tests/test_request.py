"""Requests: read, answered, ended."""

from __future__ import annotations

import contextlib
import gc
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest
from conftest import BY_UNIX, LONG, Gate, any_address, connect, dial, fetch, in_thread, is_client

import httpdown
from httpdown import Gone, Request, Server

# What was written may have arrived or not.
CUT = (http.client.IncompleteRead, ConnectionResetError)

Handler = Callable[[Request], object]


@contextlib.contextmanager
def serving(handler: Handler, **options: Any) -> Iterator[Server]:
    with Server(handler, any_address(), threads=4, **options) as server:
        yield server


def answer(handler: Handler, *arguments: Any, **headers: str) -> Any:
    """The whole response to one request, answered by this handler."""
    with serving(handler) as server:
        return fetch(server, *arguments, **headers)


@pytest.mark.parametrize("half", [0, 4])
def test_what_a_request_says(half: int) -> None:
    seen: dict[str, Any] = {}

    def handler(request: Request) -> None:
        names = ("method", "target", "path", "query", "version", "headers")
        names += ("peer", "local", "peer_credentials", "scheme", "tls")
        # Some before the answer, and all behind it.
        for name in names[:half]:
            seen[name] = getattr(request, name)
        request.reply(200)
        for name in names:
            assert seen.setdefault(name, getattr(request, name)) == getattr(request, name)

    with serving(handler) as server, contextlib.closing(connect(server)) as connection:
        connection.putrequest("PATCH", "/a%20b?c=d%26&e", skip_accept_encoding=True)
        connection.putheader("X-Latin", b"caf\xe9")
        connection.putheader("X-Many", "one")
        connection.putheader("x-many", "two")
        connection.endheaders()
        peer, local = connection.sock.getsockname() or ("", None), server.address
        connection.getresponse().read()
    assert (seen["peer"], seen["local"]) == (peer, local)
    who = (os.getpid(), os.geteuid(), os.getegid()) if BY_UNIX else None
    assert seen["peer_credentials"] == who
    assert (seen["scheme"], seen["tls"]) == ("http", None)
    assert (seen["method"], seen["target"]) == ("PATCH", "/a%20b?c=d%26&e")
    assert (seen["path"], str(seen["query"]), seen["version"]) == ("/a%20b", "c=d%26&e", 11)
    headers = seen["headers"]
    assert headers["X-LATIN"] == "caf\xe9"
    assert headers["x-many"] == "one"
    assert headers.get_all("X-Many") == ["one", "two"]
    assert ("x-many", "two") in headers.pairs
    assert "HOST" in headers and "cookie" not in headers and headers.get("Cookie") is None
    assert sorted(headers) == ["host", "x-latin", "x-many"] and len(headers) == 3


def test_a_query() -> None:
    seen: list[httpdown.Query] = []

    def handler(request: Request) -> None:
        seen.append(request.query)
        assert request.query is seen[-1]
        request.reply(200)

    with serving(handler) as server:
        rich = "?a=1&b=%20+%2B&&a=2&c&=x&d=%&n=%00"
        for query in ("", "?", rich, "?%61=b", "?u=%C3%BC&v=%FF"):
            fetch(server, "/" + query)
    none, empty, query, encoded, utf8 = seen
    for nothing in (none, empty):
        assert not nothing and "a" not in nothing and nothing.get("a") is None
        assert (nothing.raw, nothing.pairs, nothing.get_all("a")) == ("", [], [])
    assert dict(query) == {"a": "1", "b": "  +", "c": "", "": "x", "d": "%", "n": "\0"}
    assert query.get_all("a") == ["1", "2"] and len(query) == 6 and len(query.pairs) == 7
    assert list(query) == ["a", "b", "c", "", "d", "n"]
    assert repr(query) == "Query('a=1&b=%20+%2B&&a=2&c&=x&d=%&n=%00')"
    with pytest.raises(KeyError):
        query["z"]
    assert dict(encoded) == {"a": "b"}
    assert dict(utf8) == {"u": "\xfc", "v": "\ufffd"}


def test_many_headers() -> None:
    def handler(request: Request) -> None:
        request.reply(200, str(len(request.headers.pairs)))

    # Of which 64 are taken at once, and http.client adds two.
    for count in (62, 63, 90):
        response = answer(handler, **{f"x-{i}": str(i) for i in range(count)})
        assert response.body == str(count + 2).encode()


def test_a_big_body_comes_back() -> None:
    # What the sockets take of an answer while the client still sends.
    big = os.urandom(100_000 if BY_UNIX else 5_000_000)

    def whole(request: Request) -> None:
        body = request.body(limit=len(big))
        assert request.body(limit=len(big)) == body
        request.reply(200, body)

    def pieces(request: Request) -> None:
        with request.start(200) as out:
            for piece in request:
                out.write(memoryview(bytearray(piece)))
        with pytest.raises(httpdown.AlreadyReplied):
            request.read()

    def reads(request: Request) -> None:
        read = []
        while piece := request.read(10_000):
            assert len(piece) <= 10_000
            read.append(piece)
        assert request.read() == b""
        request.reply(200, bytearray(b"".join(read)))

    for handler in (whole, pieces, reads):
        assert answer(handler, "/", "POST", big).body == big


def test_a_body_that_is_too_large() -> None:
    def handler(request: Request) -> None:
        for _ in range(2):
            with pytest.raises(httpdown.TooLarge):
                request.body(limit=3)
        request.reply(413, request.body(limit=4))

    for body in b"four", iter([b"fo", b"ur"]):
        response = answer(handler, "/", "POST", body)
        assert (response.status, response.body) == (413, b"four")


def test_answers() -> None:
    def text(request: Request) -> None:
        request.reply(201, "gr\xfc\xdfe", {"X-One": "\xfc"})

    response = answer(text)
    assert (response.status, response.body.decode()) == (201, "gr\xfc\xdfe")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-one"] == "\xfc"

    def fields(request: Request) -> None:
        pairs = [("Content-Type", "text/html"), ("set-cookie", "a=1"), ("Set-Cookie", b"b=2")]
        request.reply(200, "<p>", pairs)

    response = answer(fields)
    assert response.headers.get_all("content-type") == ["text/html"]
    assert response.headers.get_all("set-cookie") == ["a=1", "b=2"]

    def nothing(request: Request) -> None:
        request.reply(http.HTTPStatus.NO_CONTENT)

    assert answer(nothing).status == 204

    def measured(request: Request) -> None:
        with request.start(200, {"content-length": "4"}) as out:
            out.write("four")

    response = answer(measured)
    assert (response.headers["content-length"], response.body) == ("4", b"four")

    def by_hand(request: Request) -> None:
        out = request.start()
        out.write(b"one")
        out.write(b"")
        out.write("two")
        out.finish()

    assert answer(by_hand).body == b"onetwo"


@pytest.mark.parametrize("status", [204, 205, 304])
def test_an_answer_without_content_has_no_content_type(status: int) -> None:
    response = answer(lambda request: request.reply(status, ""))
    assert (response.status, response.headers["content-type"]) == (status, None)


NOT_AN_ANSWER: list[tuple[Any, ...]] = [
    (99,),
    (100,),
    (199,),
    (1000,),
    (-1,),
    (1 << 80,),
    (True,),
    ("200",),
    (200.0,),
    (None,),
    (200, 5),
    (200, None),
    (200, ["body"]),
    (200, "\ud800"),
    (200, b"", {"x-a": "b\r\nx-c: d"}),
    (200, b"", {"x-a": "b\nx-c: d"}),
    (200, b"", {"x-a": "b\0"}),
    (200, b"", {"x-a": b"\x7f"}),
    (200, b"", {"x-a": "\u20ac"}),
    (200, b"", {"x-a": 5}),
    (200, b"", {"x-a": None}),
    (200, b"", {"": "b"}),
    (200, b"", {"x a": "b"}),
    (200, b"", {"x-a:": "b"}),
    (200, b"", {"x-a\r\n": "b"}),
    (200, b"", {"x-\xe9": "b"}),
    (200, b"", {5: "b"}),
    (200, b"", {b"x-a": "b"}),
    (200, b"", ["x-a"]),
    (200, b"", [("x-a",)]),
    (200, b"", 5),
]


@pytest.mark.parametrize("arguments", NOT_AN_ANSWER, ids=ascii)
def test_answers_that_make_no_sense(arguments: tuple[Any, ...]) -> None:
    def handler(request: Request) -> None:
        with pytest.raises((ValueError, TypeError)) as error:
            request.reply(*arguments)
        assert str(error.value)
        if len(arguments) != 2:
            with pytest.raises((ValueError, TypeError)):
                request.start(arguments[0], *arguments[2:])
        request.reply(200, "sense")

    assert answer(handler).body == b"sense"


def test_what_the_library_refuses_says_why() -> None:
    def handler(request: Request) -> None:
        with pytest.raises(httpdown.InvalidArgument, match="Content-Length is not one number"):
            request.start(200, {"content-length": "ten"})
        request.reply(299, b"")

    assert answer(handler).status == 299


def test_a_wrong_length_is_a_500() -> None:
    def handler(request: Request) -> None:
        with pytest.raises(httpdown.InvalidArgument):
            request.reply(200, b"four", {"content-length": "5"})

    assert answer(handler).status == 500


def test_arguments_of_reading_that_make_no_sense() -> None:
    def handler(request: Request) -> None:
        for bad in (-1, 0, True, 1.5, "5", None, 1 << 70):
            with pytest.raises((ValueError, TypeError)):
                request.read(bad)  # type: ignore[arg-type]
        for bad in (-1, True, 1.5, "5", None, 1 << 70):
            with pytest.raises((ValueError, TypeError)):
                request.body(bad)  # type: ignore[arg-type]
        for bad in (-1, float("nan"), "5", True):
            with pytest.raises((ValueError, TypeError)):
                request.wait_cancelled(bad)  # type: ignore[arg-type]
        out = request.start()
        for bad in (5, None, ["x"]):
            with pytest.raises(TypeError):
                out.write(bad)  # type: ignore[arg-type]
        out.write("sense")
        out.finish()

    assert answer(handler).body == b"sense"


def test_a_handler_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    errors = [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()]

    def handler(request: Request) -> None:
        if request.path != "/fine":
            raise errors[int(request.path[1:])]
        request.reply(200)

    # One thread: it must survive.
    with Server(handler, any_address(), threads=1) as server:
        for number in range(len(errors)):
            assert fetch(server, f"/{number}").status == 500
        assert fetch(server, "/fine").status == 200
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == errors
    assert server.report().served == 5


def test_a_handler_that_raises_within_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    def handler(request: Request) -> None:
        with request.start(200) as out:
            out.write("begun")
            raise RuntimeError

    with serving(handler) as server:
        with pytest.raises(CUT):
            fetch(server)
    assert [record.getMessage() for record in caplog.records] == ["GET /: the handler failed"]
    assert server.report().failed == 1


def test_a_handler_that_forgets() -> None:
    assert answer(lambda request: None).status == 500
    assert answer(lambda request: request.abort()).status == 500

    def unfinished(request: Request) -> None:
        request.start(200).write("begun")

    with serving(unfinished) as server, pytest.raises(CUT):
        fetch(server)


def test_use_after_the_end() -> None:
    def uses(request: Request, out: httpdown.Reply | None) -> None:
        calls: list[Callable[[], object]] = [
            request.body,
            request.read,
            request.reply,
            request.start,
            request.abort,
            request.defer,
            request.wait_cancelled,
            lambda: request.cancelled,
            lambda: request.overdue,
            lambda: next(iter(request)),
        ]
        if out:
            calls += [lambda: out.write(b"x"), out.finish, out.abort]
        for call in calls:
            with pytest.raises(httpdown.AlreadyReplied):
                call()
        assert (request.method, request.version) == ("GET", 11)
        assert "host" in request.headers and is_client(request.peer)

    def replied(request: Request) -> None:
        request.reply(200)
        uses(request, None)

    def finished(request: Request) -> None:
        with request.start() as out:
            out.finish()
        uses(request, out)

    def aborted(request: Request) -> None:
        out = request.start()
        out.write("begun")
        for call in (request.reply, request.start):
            with pytest.raises(httpdown.AlreadyReplied):
                call()
        out.abort()
        uses(request, out)

    assert answer(replied).status == 200
    assert answer(finished).status == 200
    with pytest.raises(CUT):
        answer(aborted)


def test_use_after_the_server_is_gone() -> None:
    kept: list[Request] = []
    got = Gate()

    def handler(request: Request) -> None:
        request.defer()
        kept.append(request)
        got.open()

    server = Server(handler, any_address(), stop_timeout=0, kill_timeout=0)
    client = in_thread(fetch, server)
    got.wait()
    with pytest.raises(httpdown.TimedOut):
        server.stop()
    server.close()
    assert client.exception(LONG)
    (request,) = kept
    assert request.cancelled and request.wait_cancelled()
    assert request.path == "/"
    with pytest.raises(httpdown.Killed):
        request.reply(200)
    assert is_client(request.peer) and request.target == "/"


def test_an_answer_from_another_thread() -> None:
    def handler(request: Request) -> None:
        request.defer()
        threading.Thread(target=request.reply, args=(200, "later")).start()

    with serving(handler) as server:
        for _ in range(20):
            assert fetch(server).body == b"later"  # type: ignore[attr-defined]


def test_a_deferred_request_that_nobody_keeps() -> None:
    with serving(lambda request: request.defer()) as server:
        client = in_thread(fetch, server)
        while not client.done():
            gc.collect()
        assert client.result().status == 500


def test_many_threads_at_one_request() -> None:
    outcomes: list[str] = []

    def use(call: Callable[[], object]) -> None:
        try:
            call()
            outcomes.append("answered")
        except httpdown.AlreadyReplied:
            outcomes.append("late")

    def handler(request: Request) -> None:
        def ask() -> None:
            while not request.wait_cancelled(0) and not request.cancelled:
                pass

        request.defer()
        calls = [request.reply, request.wait_cancelled, ask, request.reply, request.abort]
        for call in calls:
            threading.Thread(target=use, args=(call,)).start()

    with serving(handler) as server:
        for _ in range(10):
            assert fetch(server).status in (200, 500)
        server.stop()
    while len(outcomes) < 50:
        threading.Event().wait(0.001)
    assert outcomes.count("answered") == 10


def test_a_client_that_leaves(caplog: pytest.LogCaptureFixture) -> None:
    begun, noticed = Gate(), Gate()

    def handler(request: Request) -> None:
        with request.start() as out:
            out.write("begun")
            assert not request.cancelled
            assert not request.wait_cancelled(0.01)
            begun.open()
            assert request.wait_cancelled(LONG) and request.cancelled
            try:
                out.write("too late")
            except Gone:
                noticed.open()
                raise

    with serving(handler) as server:
        with dial(server.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            begun.wait()
        noticed.wait()
    assert server.report().gone == 1
    assert caplog.records == []  # A client may leave: nobody need be told.


def test_nothing_is_waited_for_when_the_answer_is_complete() -> None:
    def handler(request: Request) -> None:
        out = request.start(200, {"content-length": "4"})
        out.write("four")
        assert request.wait_cancelled(LONG) is False
        out.finish()

    assert answer(handler).body == b"four"


def test_a_malformed_body_is_a_400(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bool] = []

    def handler(request: Request) -> None:
        try:
            request.body()
        except httpdown.BadBody as error:
            seen.append(error.status == httpdown.Status.BAD_BODY)
            raise

    with (
        serving(handler) as server,
        dial(server.address) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno\r\n")
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
    assert seen == [True]
    assert not caplog.records  # It is not the handler's fault.


def test_a_client_that_leaves_within_its_body() -> None:
    begun, noticed = Gate(), Gate()

    def handler(request: Request) -> None:
        begun.open()
        with pytest.raises(Gone):
            request.body()
        noticed.open()

    with serving(handler) as server:
        with dial(server.address) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nhalf")
            begun.wait()
        noticed.wait()


def test_who_asks_behind_proxies() -> None:
    seen: list[tuple[object, ...]] = []

    def handler(request: Request) -> None:
        client = (request.client_addr, request.client_scheme, request.client_host)
        seen.append((request.peer, request.local, request.proxy, *client))
        request.reply(200)

    get = b"GET / HTTP/1.1\r\nHost: a\r\n"
    options = {"proxy_protocol_from": "127.0.0.1, unix:", "trusted_proxies": "192.0.2.1"}
    with serving(handler, forwarded_by="forwarded", **options) as server:
        with dial(server.address) as client:
            client.sendall(b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 80\r\n" + get)
            client.sendall(b'Forwarded: for="[2001:db8::1]";proto=https;host=b\r\n\r\n')
            assert client.recv(12) == b"HTTP/1.1 200"
        with dial(server.address) as client:
            client.sendall(b"PROXY UNKNOWN\r\n" + get + b"Forwarded: for=1.1.1.1\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
    (peer, local, proxy, *client_), (own, _, none, addr, scheme, host) = seen
    assert (str(peer), str(local)) == ("192.0.2.1:4660", "198.51.100.2:80")
    assert isinstance(proxy, httpdown.Address) and is_client(proxy)
    assert client_ == ["2001:db8::1", "https", "b"]
    assert (str(own), None, "http", "a") == (addr, none, scheme, host)
