"""The server on a loop: no threads, nothing that blocks it, and a stop that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any, Callable, TypeVar

import pytest
from conftest import LONG, PYTHON, any_address, dial

import httpdown
import httpdown.aio as aio

T = TypeVar("T")
CHUNKED = b"POST / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(main(), LONG)

    return asyncio.run(bounded())


class Client:
    """A connection, on the same loop as the server."""

    def __init__(self, server: aio.Server) -> None:
        self.socket = dial(server.address)
        self.socket.setblocking(False)
        self.received = b""

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def until(self, end: bytes) -> bytes:
        """What has come, when `end` has; b"": everything."""
        loop = asyncio.get_running_loop()
        while not end or end not in self.received:
            piece = await loop.sock_recv(self.socket, 1 << 16)
            if not piece:
                break
            self.received += piece
        return self.received

    def leave(self) -> None:
        """With a reset, which the server notices at once."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@contextlib.asynccontextmanager
async def serving(handler: Callable[[aio.Request], Awaitable[object]], **options: Any) -> Any:
    """A server whose handler runs in tasks."""
    async with aio.Server(any_address(), **options) as server:
        task = asyncio.ensure_future(server.serve(handler))
        try:
            yield server
            server.stop_begin()
            await task
        finally:
            task.cancel()


async def echo(request: aio.Request) -> None:
    async with request.start(200) as reply:
        async for piece in request:
            await reply.write(piece)


def test_many_slow_clients_are_served_at_once() -> None:
    async def main() -> None:
        threads = threading.active_count()
        async with serving(echo) as server:
            clients = [Client(server) for _ in range(20)]
            for client in clients:
                await client.send(CHUNKED + b"5\r\nhello\r\n")
            for client in clients:
                await client.until(b"hello")
            assert threading.active_count() == threads
            for client in reversed(clients):
                await client.send(b"1\r\n!\r\n0\r\n\r\n")
            for client in clients:
                assert (await client.until(b"0\r\n\r\n")).endswith(b"1\r\n!\r\n0\r\n\r\n")
                client.socket.close()
        assert server.report().served == 20

    run(main)


def test_a_client_that_does_not_read_holds_up_only_its_task() -> None:
    much = os.urandom(8 << 20)

    async def main() -> None:
        full = asyncio.Event()

        async def handler(request: aio.Request) -> None:
            if request.path == "/much":
                reply = request.start(200, {"content-length": str(len(much))})
                asyncio.get_running_loop().call_soon(full.set)
                await reply.write(much)
                reply.finish()
            else:
                request.reply(200, "small")

        async with serving(handler) as server:
            with Client(server) as slow, Client(server) as quick:
                await slow.send(GET.replace(b"/ ", b"/much ", 1))
                await full.wait()
                await quick.send(GET)
                assert (await quick.until(b"")).endswith(b"small")
                assert (await slow.until(b"")).endswith(much)

    run(main)


def test_a_body_comes_whole_or_in_pieces() -> None:
    async def handler(request: aio.Request) -> None:
        with pytest.raises(httpdown.TooLarge):
            await request.body(3)
        if request.path == "/pieces":
            pieces = [await request.read(2), await request.read(1)]
            while piece := await request.read():
                pieces.append(piece)
            request.reply(200, b"|".join(pieces))
        else:
            assert await request.body(4) == b"body" == await request.body()
            assert request.trailers["x-sum"] == "4"
            reply = request.start(200, {"trailer": "x-sum"})
            await reply.write("text")
            reply.set_trailers({"x-sum": "5"})
            reply.finish()

    async def main() -> None:
        async with serving(handler) as server:
            with Client(server) as client:
                await client.send(CHUNKED + b"2\r\nbo\r\n")
                await client.send(b"2\r\ndy\r\n0\r\nX-Sum: 4\r\n\r\n")
                assert (await client.until(b"x-sum: 5\r\n\r\n")).endswith(
                    b"4\r\ntext\r\n0\r\nx-sum: 5\r\n\r\n"
                )
            with Client(server) as client:
                head = b"POST /pieces HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n"
                await client.send(head + b"body")
                assert (await client.until(b"\r\n\r\nbo|d|y")).endswith(b"\r\n\r\nbo|d|y")

    run(main)


def test_a_task_learns_that_its_client_has_left() -> None:
    async def main() -> None:
        left: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def handler(request: aio.Request) -> None:
            await request.start(200).write("begun")
            assert not request.cancelled
            drains = asyncio.ensure_future(request.wait_draining())
            await request.wait_cancelled()
            left.set_result(request.cancelled and not await drains)
            with pytest.raises(httpdown.Gone):
                await request.read()

        async with serving(handler) as server:
            client = Client(server)
            await client.send(GET)
            await client.until(b"begun")
            client.leave()
            assert await left
        assert server.report().gone == 1

    run(main)


def test_a_task_is_told_that_its_request_is_overdue() -> None:
    async def handler(request: aio.Request) -> None:
        assert await request.wait_overdue()
        assert request.overdue and not request.cancelled
        request.reply(200, "late")
        with pytest.raises(httpdown.AlreadyReplied):
            await request.wait_overdue()

    async def main() -> None:
        async with serving(handler, handler_timeout=0.05) as server:
            with Client(server) as client:
                await client.send(GET)
                assert (await client.until(b"late")).endswith(b"\r\n\r\nlate")
        report = server.report()
        assert (report.served, report.overdue) == (1, 1)

    run(main)


def test_streams_end_when_the_server_drains() -> None:
    async def handler(request: aio.Request) -> None:
        async with request.start(200) as reply:
            await reply.write("begun")
            assert await request.wait_draining()
            await reply.write("bye")

    async def main() -> None:
        async with aio.Server(any_address()) as server:
            served = asyncio.ensure_future(server.serve(handler))
            with Client(server) as one, Client(server) as two:
                for client in (one, two):
                    await client.send(GET)
                    await client.until(b"begun")
                report = await server.stop()
                assert report.served == 2
                await served
                for client in (one, two):
                    assert (await client.until(b"")).endswith(b"3\r\nbye\r\n0\r\n\r\n")

    run(main)


def test_a_cancelled_task_ends_its_request() -> None:
    async def main() -> None:
        taken: asyncio.Queue[aio.Request] = asyncio.Queue()

        async def hold(request: aio.Request) -> None:
            async with request:
                if request.path == "/begun":
                    await request.start(200).write("begun")
                taken.put_nowait(request)
                await request.wait_cancelled()

        async with aio.Server(any_address()) as server:
            with Client(server) as one, Client(server) as two:
                await one.send(GET)
                await two.send(GET.replace(b"/ ", b"/begun ", 1))
                tasks = [asyncio.ensure_future(hold(await server.__anext__())) for _ in "12"]
                for _ in tasks:
                    await taken.get()
                for task in tasks:
                    task.cancel()
                assert (await one.until(b"")).startswith(b"HTTP/1.1 500 ")
                assert not (await two.until(b"")).endswith(b"0\r\n\r\n")
        assert (server.report().served, server.report().failed) == (1, 1)

    run(main)


def test_a_request_that_nobody_has_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with aio.Server(any_address()) as server:
            with Client(server) as client:
                await client.send(GET)
                request = await server.__anext__()
                waits = asyncio.ensure_future(request.wait_cancelled())
                await asyncio.sleep(0)
                waits.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waits
                del request, waits
                gc.collect()
                assert (await client.until(b"")).startswith(b"HTTP/1.1 500 ")

    run(main)
    assert "dropped without an answer" in caplog.text


def test_who_waits_is_told_that_another_task_has_answered() -> None:
    async def main() -> None:
        async with aio.Server(any_address()) as server:
            with Client(server) as client:
                await client.send(CHUNKED)
                request = await server.__anext__()
                reads = asyncio.ensure_future(request.read())
                waits = asyncio.ensure_future(request.wait_draining())
                await asyncio.sleep(0)
                request.reply(200)
                for task in (reads, waits):
                    with pytest.raises(httpdown.AlreadyReplied):
                        await task
                with pytest.raises(httpdown.AlreadyReplied):
                    await request.wait_cancelled()
                assert request.method == "POST" and "ended" in repr(request)

    run(main)


def test_several_tasks_take_requests() -> None:
    async def main() -> None:
        async with aio.Server(any_address()) as server:

            async def take() -> int:
                count = 0
                async for request in server:
                    request.reply(200, "taken")
                    count += 1
                return count

            takers = [asyncio.ensure_future(take()) for _ in range(3)]
            quitter = asyncio.ensure_future(server.__anext__())
            await asyncio.sleep(0)
            quitter.cancel()
            for _ in range(10):
                with Client(server) as client:
                    await client.send(GET)
                    assert (await client.until(b"")).endswith(b"taken")
            server.stop_begin()
            assert sum(await asyncio.gather(*takers)) == 10

    run(main)


def test_failures_of_handlers_are_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: aio.Request) -> None:
        if request.path == "/raises":
            raise ValueError("no reason")

    async def main() -> None:
        async with serving(handler) as server:
            for path in (b"/raises", b"/returns"):
                with Client(server) as client:
                    await client.send(GET.replace(b"/", path, 1))
                    assert (await client.until(b"")).startswith(b"HTTP/1.1 500 ")

    run(main)
    assert "GET /raises: the handler failed" in caplog.text and "no reason" in caplog.text
    assert "GET /returns: the handler returned without an answer" in caplog.text


def test_requests_that_nobody_takes_are_refused_when_the_block_ends() -> None:
    async def main() -> None:
        async with aio.Server(any_address()) as server:
            client = Client(server)
            await client.send(GET)
            while not server._waiting:
                await asyncio.sleep(0)
        with client:
            assert (await client.until(b"")).startswith(b"HTTP/1.1 503 ")
        with pytest.raises(StopAsyncIteration):
            await server.__anext__()

    run(main)


def test_a_kill_is_an_error_with_the_counts() -> None:
    async def main() -> None:
        with pytest.raises(httpdown.Killed) as raised:
            async with aio.Server(any_address(), stop_timeout=0) as server:
                with Client(server) as client:
                    await client.send(GET)
                    request = await server.__anext__()
                    server.stop_begin()
                    await request.wait_cancelled()
                    with pytest.raises(httpdown.Killed):
                        request.reply(200)
                    with pytest.raises(httpdown.Killed):
                        await server.wait()
        assert raised.value.report is not None and raised.value.report.killed == 1

    run(main)


def test_cancelling_the_block_kills_what_is_left() -> None:
    async def main() -> None:
        held: list[aio.Request] = []

        async def serve() -> None:
            async with aio.Server(any_address()) as server:
                address.set_result(server)
                held.append(await server.__anext__())
                entered.set()
                await asyncio.sleep(LONG)

        address: asyncio.Future[aio.Server] = asyncio.get_running_loop().create_future()
        entered = asyncio.Event()
        task = asyncio.ensure_future(serve())
        with Client(await address) as client:
            await client.send(GET)
            await entered.wait()
            task.cancel()
            await held[0].wait_draining()
            task.cancel()
            await held[0].wait_cancelled()
            held[0].abort()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await address).report().killed == 1

    run(main)


def test_observers_are_called_on_the_loop() -> None:
    phases: list[tuple[object, httpdown.Phase, int]] = []

    async def main() -> None:
        def on_phase(server: Any, phase: httpdown.Phase) -> None:
            phases.append((server, phase, threading.get_ident()))

        async with aio.Server(any_address(), on_phase=on_phase) as server:
            assert server.ready and server.phase == httpdown.Phase.SERVING
            assert server.addresses[0] == server.address and "SERVING" in repr(server)
        assert {(told, thread) for told, _, thread in phases} == {(server, threading.get_ident())}
        assert phases[-1][1] == httpdown.Phase.STOPPED and not server.ready

    run(main)


def test_wrong_uses_are_told() -> None:
    async def main() -> None:
        for name in ("handler", "threads", "on_error"):
            with pytest.raises(TypeError, match=name):
                aio.Server(any_address(), **{name: None})
        server = aio.Server(any_address())
        with pytest.raises(RuntimeError):
            await server.__anext__()
        async with server:
            with pytest.raises(httpdown.Unsupported):
                server.reload_tls()
            with pytest.raises(ValueError):
                await server.serve(echo, limit=0)
        with pytest.raises(RuntimeError):
            await server.__aenter__()
        forgotten = aio.Server(any_address())
        with pytest.warns(ResourceWarning, match="was not stopped"):
            del forgotten
            gc.collect()

    run(main)


def test_the_head_of_a_request_is_that_of_the_other_server() -> None:
    of_threads = {"body", "wait_cancelled", "defer", "on_cancel", "on_drain", "on_overdue"}
    ours = {name for name in vars(aio.Request) if not name.startswith("_")}
    theirs = {name for name in vars(httpdown.Request) if not name.startswith("_")}
    assert theirs - ours <= of_threads
    assert ours - theirs == {"wait_draining", "wait_overdue"}


UPGRADE = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"


def take_over(request: aio.Request) -> aio.Stream:
    assert request.asks_for_upgrade
    return request.upgrade({"upgrade": "echo"})


def test_streams_are_served_until_the_drain() -> None:
    async def echo(request: aio.Request) -> None:
        async with take_over(request) as stream:

            async def say_goodbye() -> None:
                assert await stream.wait_draining()
                await stream.write("bye")

            goodbye = asyncio.create_task(say_goodbye())
            async for piece in stream:
                await stream.write(piece)
            await stream.shutdown()
            if stream.server.phase == httpdown.Phase.SERVING:
                goodbye.cancel()
            else:
                await goodbye

    async def main() -> None:
        async with serving(echo) as server, contextlib.AsyncExitStack() as stack:
            clients = [stack.enter_context(Client(server)) for _ in range(20)]
            for client in clients:
                await client.send(UPGRADE + b"early")
            for client in reversed(clients):
                await client.until(b"early")
                await client.send(b"later")
                assert (await client.until(b"later")).startswith(b"HTTP/1.1 101 ")
            leaver = clients.pop()
            leaver.socket.shutdown(socket.SHUT_WR)
            await leaver.until(b"")
            big = bytes(5_000_000) + b"end"
            sender = asyncio.create_task(clients[0].send(big))
            assert big in await clients[0].until(b"end")
            await sender
            server.stop_begin()
            for client in clients:
                await client.until(b"bye")
                await client.send(b"answer")
                client.socket.shutdown(socket.SHUT_WR)
                assert (await client.until(b"")).endswith(b"byeanswer")
            report = await server.wait()
        assert (report.served, report.conns_closed, report.killed) == (20, 20, 0)

    run(main)


def test_a_stream_that_is_closed_or_killed_ends_all_waits() -> None:
    async def main() -> None:
        server = aio.Server(any_address())
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(pytest.raises(httpdown.Killed))
            await stack.enter_async_context(server)
            for kill in (False, True):
                client = stack.enter_context(Client(server))
                await client.send(UPGRADE)
                stream = take_over(await server.__anext__())
                waits = [
                    asyncio.create_task(wait) for wait in (stream.read(), stream.wait_draining())
                ]
                await asyncio.sleep(0)
                if kill:
                    server.kill_begin()
                    with pytest.raises(httpdown.Killed):
                        await waits[0]
                    await waits[1]  # True if the drain, which the kill passes, was told first
                    with pytest.raises(StopAsyncIteration):
                        await server.__anext__()
                    # Though no request can come any more.
                    assert await stream.wait_draining() is False
                    stream.close()
                else:
                    stream.close()
                    for wait in waits:
                        with pytest.raises(httpdown.Stopped):
                            await wait
                    with pytest.raises(httpdown.Stopped):
                        await stream.write(b"x")

    run(main)


def test_the_program_of_the_readme(program: Any) -> None:
    texts = re.findall(r"```python\n(.*?)```", (PYTHON / "README.md").read_text("utf-8"), re.DOTALL)
    (text,) = (text for text in texts if "import asyncio" in text)
    tells = """
def on_phase(server, phase):
    print(server.address if phase == httpdown.Phase.SERVING else phase, flush=True)

"""
    started = program(tells + text.replace('"127.0.0.1:8080"', '"127.0.0.1:0", on_phase=on_phase'))
    host, _, port = started.line().rpartition(":")
    with socket.create_connection((host, int(port)), LONG) as client:
        client.sendall(CHUNKED + b"5\r\nhello\r\n")
        with client.makefile("rb") as answer:
            assert b"hello\r\n" in iter(answer.readline, b"")
            started.signal(signal.SIGTERM)
            assert "DRAINING" in iter(started.line, "")
            client.sendall(b"4\r\nbye!\r\n0\r\n\r\n")
            assert answer.read() == b"4\r\nbye!\r\n0\r\n\r\n"
    assert started.end() == (0, "STOPPED\n", "")


def test_a_signal_stops_the_program_and_nothing_is_lost(program: Any) -> None:
    started = program("""
import asyncio
import httpdown.aio

async def handler(request):
    async with request.start() as reply:
        await reply.write("begin")
        await request.wait_draining()
        await reply.write("x" * 50000)

async def main():
    async with httpdown.aio.Server("127.0.0.1:0") as server:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop_begin)
        print(server.address, flush=True)
        await server.serve(handler)
    print(server.report().served, server.report().killed)

asyncio.run(main())
""")
    address = started.line()
    responses = []
    for _ in range(5):
        connection = started.connect(address)
        connection.request("GET", "/")
        responses.append(connection.getresponse())
        assert responses[-1].read(5) == b"begin"
    started.signal(signal.SIGTERM)
    for response in responses:
        assert response.read() == b"x" * 50000
    assert started.end() == (0, "5 0\n", "")
