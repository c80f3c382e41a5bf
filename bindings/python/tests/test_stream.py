"""Connections that a handler takes over."""

from __future__ import annotations

import queue
import socket
import threading

import pytest
from conftest import LONG, any_address, dial

import httpdown

UPGRADE = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"


def take_over(request: httpdown.Request) -> httpdown.Stream:
    assert request.asks_for_upgrade
    return request.upgrade({"upgrade": "echo"})


def head(client: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, data
        data += byte
    return data


def exactly(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = client.recv(length - len(data))
        assert piece, data
        data += piece
    return data


def upgraded(server: httpdown.Server, early: bytes = b"") -> socket.socket:
    client = dial(server.address)
    client.sendall(UPGRADE + early)
    assert head(client).startswith(b"HTTP/1.1 101 ")
    return client


def test_bytes_go_both_ways() -> None:
    def echo(request: httpdown.Request) -> None:
        with take_over(request) as stream:
            while data := stream.read():
                assert stream.write(data) == len(data)
            stream.shutdown()

    with httpdown.Server(echo, any_address()) as server:
        with upgraded(server, b"early") as client:
            assert exactly(client, 5) == b"early"
            sender = threading.Thread(target=client.sendall, args=(bytes(1 << 20),))
            sender.start()
            assert exactly(client, 1 << 20) == bytes(1 << 20)
            sender.join(LONG)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        report = server.stop()
    assert (report.served, report.conns_closed) == (1, 1)


@pytest.fixture
def streams() -> queue.Queue[httpdown.Stream]:
    return queue.Queue()


def test_nothing_waits_longer_than_it_should(streams: queue.Queue[httpdown.Stream]) -> None:
    with httpdown.Server(lambda request: streams.put(take_over(request)), any_address()) as server:
        with upgraded(server) as client:
            with streams.get(timeout=LONG) as stream:
                for timeout in (0, 0.01):
                    with pytest.raises(TimeoutError):
                        stream.read(timeout=timeout)
                written = 0
                with pytest.raises(TimeoutError):
                    while True:
                        count = stream.write(bytes(1 << 20), timeout=0)
                        assert 0 < count <= 1 << 20
                        written += count
                client.sendall(b"x")
                assert stream.read(1) == b"x"
            assert exactly(client, written) == bytes(written)
            for call in (stream.read, stream.shutdown, stream.fileno, lambda: stream.write(b"x")):
                with pytest.raises(httpdown.Stopped):
                    call()
            stream.close()


def test_a_stream_is_not_freed_while_it_is_used(streams: queue.Queue[httpdown.Stream]) -> None:
    with httpdown.Server(lambda request: streams.put(take_over(request)), any_address()) as server:
        client = upgraded(server)
        stream = streams.get(timeout=LONG)
        results: queue.Queue[bytes] = queue.Queue()
        reads = threading.Thread(target=lambda: results.put(stream.read()))
        reads.start()
        while stream._users == 0:
            pass
        stream.close()
        client.sendall(b"late")
        assert results.get(timeout=LONG) == b"late"
        reads.join(LONG)
        # Now it is closed.
        assert client.recv(1) == b""
        client.close()


def test_the_socket_can_be_used(streams: queue.Queue[httpdown.Stream]) -> None:
    with httpdown.Server(lambda request: streams.put(take_over(request)), any_address()) as server:
        with upgraded(server) as client, streams.get(timeout=LONG) as stream:
            family = socket.AF_INET if server.address.port is not None else socket.AF_UNIX
            ours = socket.socket(family, fileno=stream.fileno())
            ours.send(b"direct")
            assert exactly(client, 6) == b"direct"
            ours.detach()


def test_a_stop_tells_streams_that_are_read_meanwhile() -> None:
    def serve(request: httpdown.Request) -> None:
        with take_over(request) as stream:
            stream.on_drain(lambda: stream.write(b"bye"))
            while data := stream.read():
                stream.write(data)

    with httpdown.Server(serve, any_address(), threads=5) as server:
        clients = [upgraded(server, b"early") for _ in range(5)]
        for client in clients:
            assert exactly(client, 5) == b"early"
        server.stop_begin()
        for client in clients:
            assert exactly(client, 3) == b"bye"
            client.sendall(b"answer")
            assert exactly(client, 6) == b"answer"
            client.close()
        report = server.wait()
    assert (report.served, report.conns_closed, report.killed) == (5, 5, 0)


def test_a_closed_stream_is_told_nothing(streams: queue.Queue[httpdown.Stream]) -> None:
    told: queue.Queue[str] = queue.Queue()
    with httpdown.Server(lambda request: streams.put(take_over(request)), any_address()) as server:
        clients = [upgraded(server) for _ in range(3)]
        closed, dropped, kept = (streams.get(timeout=LONG) for _ in clients)
        for name, stream in (("closed", closed), ("dropped", dropped), ("kept", kept)):
            stream.on_drain(lambda name=name: told.put(name))  # type: ignore[misc]
        with pytest.raises(TypeError):
            kept.on_drain(None)  # type: ignore[arg-type]
        closed.close()
        with pytest.raises(httpdown.Stopped):
            closed.on_drain(print)
        del dropped, stream
        server.stop_begin()
        assert told.get(timeout=LONG) == "kept"
        # The server drains already.
        kept.on_drain(lambda: told.put("again"))
        assert told.get(timeout=LONG) == "again"
        kept.close()
        server.wait()
        for client in clients:
            client.close()
    assert told.empty()


def test_it_is_no_failure_if_the_client_of_a_stream_leaves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def serve(request: httpdown.Request) -> None:
        with take_over(request) as stream:
            while True:
                stream.write(bytes(1 << 16))

    with httpdown.Server(serve, any_address()) as server:
        upgraded(server).close()
        server.stop()
    assert not caplog.records, caplog.text


def test_a_kill_ends_a_stream(streams: queue.Queue[httpdown.Stream]) -> None:
    server = httpdown.Server(lambda request: streams.put(take_over(request)), any_address())
    with upgraded(server):
        stream = streams.get(timeout=LONG)
        server.kill_begin()
        with pytest.raises(httpdown.Killed):
            stream.read()
        del stream
        with pytest.raises(httpdown.Killed):
            server.wait()


def test_what_does_not_fit_is_refused() -> None:
    def handler(request: httpdown.Request) -> None:
        headers = {"upgrade": "echo"} if request.path == "/plain" else {}
        assert request.asks_for_upgrade == (request.path != "/plain")
        with pytest.raises(httpdown.InvalidArgument):
            request.upgrade(headers)

    with httpdown.Server(handler, any_address()) as server:
        for request in (b"GET /plain HTTP/1.1\r\nHost: test\r\n\r\n", UPGRADE):
            with dial(server.address) as client:
                client.sendall(request)
                assert head(client).startswith(b"HTTP/1.1 500 ")
