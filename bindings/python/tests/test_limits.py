"""What a client may send, and how much of the server it may have."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from conftest import BY_UNIX, any_address, dial

import httpdown
from httpdown import Request, Server


def status(client: socket.socket) -> int:
    with client.makefile("rb") as file:
        return int(file.readline().split()[1])


LIMITS: dict[str, Any] = {
    "max_headers": 3,
    "max_head_size": 200,
    "max_target_size": 20,
    "max_body_size": 10,
}
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"b: c\r\n" * 3 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nb: " + b"c" * 200 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413),
        (CHUNKED + b"b\r\n0123456789x\r\n", 413),
    ],
)
def test_a_client_is_told_what_is_too_much(request_: bytes, expected: int) -> None:
    failures: list[BaseException] = []

    def handler(request: Request) -> None:
        for _ in request:
            pass
        request.reply(200)

    def on_error(_: Request, error: BaseException) -> None:
        failures.append(error)

    with Server(handler, any_address(), on_error=on_error, **LIMITS) as server:
        with dial(server.address) as client:
            client.sendall(request_)
            assert status(client) == expected
    # That is no failure of the handler.
    assert failures == []


def test_reading_says_that_a_body_is_too_large() -> None:
    def handler(request: Request) -> None:
        with pytest.raises(httpdown.TooLarge):
            request.body()
        with pytest.raises(httpdown.TooLarge):
            request.read()
        request.reply(413, "mine")

    with Server(handler, any_address(), **LIMITS) as server, dial(server.address) as client:
        client.sendall(CHUNKED + b"b\r\n0123456789x\r\n")
        with client.makefile("rb") as file:
            assert file.read().endswith(b"mine")


def test_connections_and_requests_are_counted() -> None:
    options: dict[str, Any] = {"max_client_conns": 1, "max_conn_requests": 2, "max_queued": 100}
    get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with Server(lambda request: request.reply(200), any_address(), **options) as server:
        with dial(server.address) as first, first.makefile("rb") as file:
            first.sendall(get)
            assert file.readline().split()[1] == b"200"
            if not BY_UNIX:
                with dial(server.address) as second:
                    assert status(second) == 503
            first.sendall(get)
            assert b"connection: close" in file.read()


@pytest.mark.parametrize("name", ["max_headers", "max_conns", "max_body_size"])
def test_a_limit_is_a_number(name: str) -> None:
    for wrong in (0, -1, 1 << 64, True, 1.5):
        with pytest.raises((TypeError, ValueError)):
            Server(lambda _: None, any_address(), **{name: wrong})


def test_body_buffer_may_be_large() -> None:
    with Server(lambda request: request.reply(200), any_address(), body_buffer=1 << 20):
        pass


def test_sockets_can_be_set_up() -> None:
    options: dict[str, Any] = {"tcp_backlog": 9, "tcp_keepalive": 60, "tcp_user_timeout": 9.5}
    options |= {"receive_buffer": 100_000, "send_buffer": 100_000, "v6_only": True}
    with Server(lambda request: request.reply(200), any_address(), **options) as server:
        with dial(server.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert status(client) == 200
    with pytest.raises(httpdown.InvalidArgument, match="tcp_keepalive is 500ms"):
        Server(lambda _: None, any_address(), tcp_keepalive=0.5)
