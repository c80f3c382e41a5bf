"""The server for asyncio: requests are taken, read and answered on the loop's thread.

import asyncio, signal
import httpdown.aio

async def echo(request):
    reply = request.start(200)
    async for piece in request:
        await reply.write(piece)
    reply.finish()

async def main():
    async with httpdown.aio.Server("127.0.0.1:8080") as server:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, server.stop_begin)
        await server.serve(echo)  # until the server has stopped

asyncio.run(main())

Nothing here blocks the loop, and no other thread runs Python code, except the callables of a
Restart. The loop needs `add_reader`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any, Callable

from . import _arguments, _ffi, _reports, _request, _restart, _server, _stream
from ._errors import (
    AlreadyReplied,
    BadBody,
    Gone,
    HttpdownError,
    Killed,
    Status,
    Stopped,
    TooLarge,
    TooSlow,
    Unanswered,
    WouldDeadlock,
)
from ._request import Address, Credentials, Headers, Query
from ._restart import Restart
from ._server import Report
from ._tls import Tls, TlsInfo

__all__ = ["Reply", "Request", "Server", "Stream"]

_GONE, _DRAINING, _OVERDUE = _ffi.Ready.GONE, _ffi.Ready.DRAINING, _ffi.Ready.OVERDUE
# The most bytes that one write gives C. It takes no more at a time.
_PIECE = 256 << 10
_ITEMS_AT_ONCE = 16
_EVENTS_AT_ONCE = 64
# If so many requests wait for an `async for`, and none waits for an event, the others stay in C.
_MOST_WAITING = 100


class _Subject:
    """What tasks wait for events of: a request or a stream."""

    server: Server
    """The server that the request came to."""

    def __init__(self, server: Server) -> None:
        self.server = server
        # What tasks wait for, and what C was asked to tell (None: nothing).
        self._waiters: list[tuple[_ffi.Ready, asyncio.Future[_ffi.Ready]]] = []
        self._asked: _ffi.Ready | None = None

    def _alive(self) -> int:
        """C's pointer. Raises if there is nothing left to happen."""
        raise NotImplementedError

    def _notify(self, wanted: _ffi.Ready) -> None:
        """Has C tell when one of these things happens."""
        raise NotImplementedError

    async def _wait(self, wanted: _ffi.Ready) -> _ffi.Ready:
        """Waits until one of these things has happened, or that the subject is gone."""
        self._alive()
        waiter: asyncio.Future[_ffi.Ready] = asyncio.get_running_loop().create_future()
        entry = (wanted, waiter)
        self._waiters.append(entry)
        try:
            self._ask()
            return await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(entry)

    def _ask(self) -> None:
        """Has C tell what tasks wait for. An order that was given before may stand for more."""
        wanted = _ffi.Ready(0)
        for each, waiter in self._waiters:
            if not waiter.done():
                wanted |= each
        if self._asked is not None and not wanted & ~self._asked:
            return
        # That the subject is gone is always told.
        self._notify(wanted & ~_GONE)
        self._asked = wanted | _GONE
        self.server._watch(self)

    def _happened(self, ready: _ffi.Ready) -> None:
        """C has told this."""
        self._asked = None
        for wanted, waiter in self._waiters:
            if ready & (wanted | _GONE) and not waiter.done():
                waiter.set_result(ready)
        if any(not waiter.done() for _, waiter in self._waiters):
            self._ask()

    def _end(self, status: Status) -> None:
        """Nobody may go on waiting."""
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(_ffi.failure(status))


class Request(_Subject):
    """A request, and the means to answer it exactly once: like httpdown.Request, for asyncio.

    What waits for the client is a coroutine: `read`, `body`, `Reply.write`, `wait_cancelled`,
    `wait_draining`. Several tasks may use a request at once, all on the loop of its server.

    As an async context manager, it ends the request at the end of the block, also when the task is
    cancelled: without an answer the client gets a 500, and sees an answer cut that has begun. A
    request that nobody has any more ends, too.

    After the request has been answered or aborted, its methods raise AlreadyReplied, but its head
    and its connection's data can still be read.
    """

    def __init__(self, inner: _request.Request, server: Server) -> None:
        super().__init__(server)
        self._inner = inner
        # What `body` has read, and whether that is the whole body.
        self._came = bytearray()
        self._is_whole = False

    @property
    def method(self) -> str:
        """The method as the client sent it: "GET"."""
        return self._inner.method

    @property
    def target(self) -> str:
        """The target as the client sent it: mostly path and query, "/a%20b?c=d"."""
        return self._inner.target

    @property
    def path(self) -> str:
        """The path of the target, not decoded: "/a%20b"."""
        return self._inner.path

    @property
    def query(self) -> Query:
        """The query, after the question mark in the target: `request.query.get("name")`."""
        return self._inner.query

    @property
    def scheme(self) -> str:
        """The scheme by which the request came: "http", or, by TLS, "https"."""
        return self._inner.scheme

    @property
    def version(self) -> int:
        """The version of HTTP times ten: 10 or 11."""
        return self._inner.version

    @property
    def headers(self) -> Headers:
        """The header fields."""
        return self._inner.headers

    @property
    def trailers(self) -> Headers:
        """The trailer fields of the body, once its end has been read; before, there are none."""
        return self._inner.trailers

    @property
    def peer(self) -> Address:
        """The client's address."""
        return self._inner.peer

    @property
    def proxy(self) -> Address | None:
        """The address of the proxy that has connected: like `httpdown.Request.proxy`."""
        return self._inner.proxy

    @property
    def client_addr(self) -> str:
        """The address of the client, as far as that is to be believed.

        Like `httpdown.Request.client_addr`.
        """
        return self._inner.client_addr

    @property
    def client_scheme(self) -> str:
        """How the client has asked, "http" or "https": as a trusted proxy says, or `scheme`."""
        return self._inner.client_scheme

    @property
    def client_host(self) -> str:
        """The host that the client has asked for: as a trusted proxy says, or the field Host."""
        return self._inner.client_host

    @property
    def local(self) -> Address:
        """The server's address that the client connected to."""
        return self._inner.local

    @property
    def peer_credentials(self) -> Credentials | None:
        """The process that has connected, if it has by a Unix socket."""
        return self._inner.peer_credentials

    @property
    def tls(self) -> TlsInfo | None:
        """What the TLS handshake of the request's connection has agreed on; None without TLS."""
        return self._inner.tls

    @property
    def conn_id(self) -> int:
        """The number of the request's connection, the same as in `on_conn_state`."""
        return self._inner.conn_id

    @property
    def cancelled(self) -> bool:
        """Whether an answer is useless by now: like `httpdown.Request.cancelled`."""
        return self._inner.cancelled

    @property
    def overdue(self) -> bool:
        """Whether the program has had the request for longer than `handler_timeout`.

        Like `httpdown.Request.overdue`.
        """
        return self._inner.overdue

    async def read(self, n: int = 64 << 10) -> bytes:
        """The next bytes of the body, at most `n`; b"" at its end. Waits until some are there.

        Raises Gone (the client has left), BadBody (the client has broken the protocol; without an
        answer it gets a 400), TooSlow (the client was waited for too long; without an answer it
        gets a 408), Killed, and AlreadyReplied (also when the client has its whole answer, and more
        of the body does not come).
        """
        _arguments.number("n", n, 1, 2**63 - 1)
        if not self._came:
            return b"" if self._is_whole else await self._read(n)
        piece = bytes(self._came[:n])
        del self._came[:n]
        return piece

    async def _read(self, n: int) -> bytes:
        ready = _ffi.Ready(0)
        while True:
            try:
                return self._inner.read(n, timeout=0)
            except TimeoutError:
                if ready & _GONE:
                    # The answer is complete. It would be told again and again.
                    raise _ffi.failure(Status.ALREADY_REPLIED) from None
            ready = await self._wait(_ffi.Ready.READABLE)

    async def body(self, limit: int = 1 << 20) -> bytes:
        """The whole body, if it has at most `limit` bytes. Waits until the whole body is there.

        A second call gives the same bytes. Bytes that `read` took before are missing. Raises
        TooLarge (nothing is lost: ask again, or read the body in pieces), and like `read`.
        """
        _arguments.number("limit", limit, 0, 2**63 - 1)
        while not self._is_whole and len(self._came) <= limit:
            piece = await self._read(64 << 10)
            self._came += piece
            self._is_whole = not piece
        if len(self._came) > limit:
            raise _ffi.failure(Status.TOO_LARGE)
        return bytes(self._came)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, piece by piece, like `read`."""
        while piece := await self.read():
            yield piece

    async def wait_cancelled(self) -> None:
        """Waits until an answer is useless (see `cancelled`).

        Raises AlreadyReplied when another task ends the request.
        """
        await self._wait(_GONE)

    async def wait_draining(self) -> bool:
        """Waits until the server drains (True), or an answer is useless (False).

        When the server drains, an answer without an end should end. That is after the lame duck; at
        a stop, `drain_rate` requests a second are told. Raises like `wait_cancelled`.
        """
        return bool(await self._wait(_DRAINING) & _DRAINING)

    async def wait_overdue(self) -> bool:
        """Waits until the request is overdue (True), or an answer is useless (False).

        An overdue request (see `overdue`) is not cut, and its answer is as useful as before. Raises
        like `wait_cancelled`.
        """
        return bool(await self._wait(_OVERDUE) & _OVERDUE)

    def reply(
        self,
        status: int = 200,
        body: _arguments.Data = b"",
        headers: _arguments.Headers | None = None,
    ) -> None:
        """Answers, and ends the request: like `httpdown.Request.reply`. Never blocks."""
        try:
            self._inner.reply(status, body, headers)
        finally:
            self._settle()

    def reply_file(
        self,
        file: _arguments.Path | _arguments.Descriptor,
        headers: _arguments.Headers | None = None,
    ) -> None:
        """Answers with a file, or with what the client asks for of it.

        Like `httpdown.Request.reply_file`. Waits neither for the client nor to read the file; only
        to open it may take a while where the disk is slow.
        """
        try:
            self._inner.reply_file(file, headers)
        finally:
            self._settle()

    def reply_fd(
        self,
        file: _arguments.Descriptor,
        status: int = 200,
        headers: _arguments.Headers | None = None,
        *,
        offset: int = 0,
        length: int | None = None,
    ) -> None:
        """Answers with bytes of an open file: like `httpdown.Request.reply_fd`. Never blocks."""
        try:
            self._inner.reply_fd(file, status, headers, offset=offset, length=length)
        finally:
            self._settle()

    def start(self, status: int = 200, headers: _arguments.Headers | None = None) -> Reply:
        """Begins an answer whose body follows in pieces: like `httpdown.Request.start`."""
        return Reply(self, self._inner.start(status, headers))

    @property
    def asks_for_upgrade(self) -> bool:
        """Whether the client asks for another protocol (Upgrade), or for a tunnel (CONNECT)."""
        return self._inner.asks_for_upgrade

    def upgrade(self, headers: _arguments.Headers | None = None) -> Stream:
        """Takes the connection over, and ends the request: like `httpdown.Request.upgrade`."""
        try:
            return Stream(self._inner.upgrade(headers), self.server)
        finally:
            self._settle()

    def abort(self) -> None:
        """Ends the request without an answer: with a 500, or a cut answer. Never blocks."""
        try:
            self._inner.abort()
        finally:
            self._settle()

    def _alive(self) -> int:
        return self._inner._alive()

    def _notify(self, wanted: _ffi.Ready) -> None:
        _ffi.httpdown_request_notify(self._alive(), int(wanted), None, None, None)

    def _settle(self) -> None:
        """If the request has ended, nobody may go on waiting."""
        if self._inner._pointer is None:
            self._end(Status.ALREADY_REPLIED)

    async def __aenter__(self) -> Request:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._inner._pointer is not None:
            self.abort()

    def __repr__(self) -> str:
        return repr(self._inner).replace("httpdown.", "httpdown.aio.")


class Reply:
    """An answer that has begun, from `Request.start`.

    As an async context manager, it finishes the answer at the end of the block, and aborts the
    answer at an exception, also when the task is cancelled.
    """

    def __init__(self, request: Request, inner: _request.Reply) -> None:
        self.request = request
        self._inner = inner

    async def write(self, data: _arguments.Data) -> None:
        """Sends more of the body, as soon as the client takes it; a str as UTF-8.

        Waits while too many bytes wait to be sent (256 KiB, less if many clients are slow at once).
        Two tasks must not write at once, or their pieces mix. Raises Gone, TooSlow, Killed, AlreadyReplied (also if the answer has no
        body: it is to HEAD, or a 204, 205 or 304), and InvalidArgument if the body exceeds the
        Content-Length.
        """
        data = _arguments.data(data)
        at = 0
        while True:
            try:
                at += self._inner.write(data[at : at + _PIECE], timeout=0)
            except TimeoutError:
                await self.request._wait(_ffi.Ready.WRITABLE)
            else:
                if at == len(data):
                    return

    def set_trailers(self, trailers: _arguments.Headers) -> None:
        """Sets the trailer fields: like `httpdown.Reply.set_trailers`."""
        self._inner.set_trailers(trailers)

    def finish(self) -> None:
        """Ends the answer, and the request: like `httpdown.Reply.finish`. Never blocks."""
        try:
            self._inner.finish()
        finally:
            self.request._settle()

    def abort(self) -> None:
        """Ends the request. The client sees the answer cut."""
        self.request.abort()

    async def __aenter__(self) -> Reply:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.request._inner._pointer is None:
            return  # Ended within.
        if error is None:
            self.finish()
        else:
            self.abort()


class Stream(_Subject):
    """A connection that a handler has taken over: like `httpdown.Stream`, for asyncio.

    One task may read while another one writes, on the loop of the server. As an async context
    manager, it closes the connection at the end of the block. A stop waits until it is closed:
    `wait_draining` tells that it should be.
    """

    def __init__(self, inner: _stream.Stream, server: Server) -> None:
        super().__init__(server)
        self._inner = inner

    async def read(self, n: int = 64 << 10) -> bytes:
        """The next bytes, at most `n`; b"" at the end. Waits until some are there.

        Raises Gone if the connection has failed, Killed, and Stopped if the stream is closed.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                return self._inner.read(n, timeout=0)
            await self._wait_anew(_ffi.Ready.READABLE)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes, piece by piece, like `read`."""
        while piece := await self.read():
            yield piece

    async def write(self, data: _arguments.Data) -> None:
        """Sends all of the bytes; a str as UTF-8. Waits while the kernel has no room for them.

        Two tasks must not write at once, or their pieces mix. Raises like `read`.
        """
        rest = memoryview(_arguments.data(data))
        while True:
            try:
                rest = rest[self._inner.write(rest[:_PIECE], timeout=0) :]
            except TimeoutError:
                await self._wait_anew(_ffi.Ready.WRITABLE)
            else:
                if not rest:
                    return

    async def shutdown(self) -> None:
        """Says that no more bytes follow, when all that was written is sent.

        The client's bytes can still be read. Raises like `read`.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                return self._inner.shutdown(timeout=0)
            await self._wait_anew(_ffi.Ready.WRITABLE)

    async def wait_draining(self) -> bool:
        """Waits until the server drains (True), or a kill has cut the connection (False).

        When the server drains, the stream should end. That is after the lame duck; at a stop,
        `drain_rate` streams and requests a second are told. Raises Stopped, also when another task
        closes the stream.
        """
        return not await self._wait(_DRAINING) & _GONE

    def fileno(self) -> int:
        """The socket's descriptor: like `httpdown.Stream.fileno`."""
        return self._inner.fileno()

    def close(self) -> None:
        """Closes the connection: like `httpdown.Stream.close`. Does not fail, nor block."""
        self._inner.close()
        self._end(Status.STOPPED)

    async def _wait_anew(self, wanted: _ffi.Ready) -> None:
        """Waits after a call that would block. Such a call makes C forget what it was asked for."""
        self._asked = None
        await self._wait(wanted)

    def _alive(self) -> int:
        pointer = self._inner._pointer
        if pointer is None:
            raise _ffi.failure(Status.STOPPED)
        return pointer

    def _notify(self, wanted: _ffi.Ready) -> None:
        _ffi.httpdown_stream_notify(self._alive(), int(wanted), None, None, None)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _WithoutThreads(_server.Server):
    """A server whose requests and events are taken on a loop."""

    def _begin(self, handle: _server._Handle) -> None:
        pass


class Server:
    """A server for asyncio. It serves from its construction until it is stopped.

    It is an async context manager. Within the block, either `serve` a handler, or take requests:

        async for request in server:
            ...  # answer it, or give it to a task

    The iteration ends when the server has stopped, and all requests have come out. Several tasks
    may iterate at once. So a stop loses nothing: have a signal handler of the loop call
    `stop_begin`, and go on until the iteration has ended, and the tasks, too.

    The end of the block begins the stop, if nobody has, and waits for the server's end. Requests
    that nobody has taken by then get a 503, because nobody would. If the waiting is cancelled, the
    requests that are left are cut (`kill_begin`).

    `bind` and the options are those of httpdown.Server, without a handler, `threads` and
    `on_error`. The observers (`on_phase`, for example) are called on the loop's thread.

    Raises like httpdown.Server. Blocks only while a host name is looked up.
    """

    def __init__(self, bind: str | None = None, **options: Any) -> None:
        for name in ("handler", "threads", "on_error"):
            if name in options:
                raise TypeError(f"httpdown.aio.Server has no {name}")
        self._is_entered = False
        # The block has been left, or the queue has come to its end: nothing comes out any more.
        self._is_left = self._is_over = False
        self._waiting: collections.deque[Request] = collections.deque()
        self._takers: collections.deque[asyncio.Future[None]] = collections.deque()
        # The requests and streams that C is to tell something, by their pointers.
        self._watched: weakref.WeakValueDictionary[
            tuple[type[_Subject], int | None], _Subject
        ] = weakref.WeakValueDictionary()
        self._items = (_ffi.Item * _ITEMS_AT_ONCE)()
        self._event = _ffi.Event(struct_size=ctypes.sizeof(_ffi.Event))
        self._is_listening = False
        self._inner = _WithoutThreads(_server._nobody, bind, **options)

    # The loop.

    async def __aenter__(self) -> Server:
        """Raises RuntimeError the second time."""
        if self._is_entered:
            raise RuntimeError("the block of a server can be entered only once")
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._queue_fd = self._descriptor(_ffi.httpdown_queue_fd)
        self._event_fd = self._descriptor(_ffi.httpdown_event_fd)
        self._is_entered = True
        self._loop.add_reader(self._event_fd, self._take_events)
        self._listen()
        return self

    def _descriptor(self, get: Callable[..., object]) -> int:
        fd = ctypes.c_int()
        get(self._pointer(), ctypes.byref(fd))
        return fd.value

    def _pointer(self) -> int | None:
        handle = self._inner._handle
        if handle is None:
            raise _ffi.failure(Status.STOPPED)
        return handle.pointer

    def _listen(self) -> None:
        if not self._is_listening and not self._is_over:
            self._is_listening = True
            self._loop.add_reader(self._queue_fd, self._take)

    def _pause(self) -> None:
        if self._is_listening:
            self._is_listening = False
            self._loop.remove_reader(self._queue_fd)

    def _take(self) -> None:
        """The queue is readable."""
        count = ctypes.c_size_t()
        try:
            _ffi.httpdown_next_item(
                self._pointer(), _ffi.NOW, self._items, _ITEMS_AT_ONCE, ctypes.byref(count)
            )
        except TimeoutError:
            return
        except Stopped:
            self._is_over = True
            self._pause()
            self._wake(len(self._takers))
            return
        for item in self._items[: count.value]:
            if item.ready == _ffi.Ready.NEW:
                self._waiting.append(Request(_request.Request(item.request, self._inner), self))
            else:
                key = (Stream, item.stream) if item.stream else (Request, item.request)
                subject = self._watched.pop(key, None)
                if subject is not None:
                    subject._happened(_ffi.Ready(item.ready))
        if self._is_left:
            self._refuse()
        self._wake(len(self._waiting))
        if len(self._waiting) >= _MOST_WAITING and not self._watched:
            self._pause()

    def _wake(self, count: int) -> None:
        """Wakes so many of those who wait for a request."""
        while count > 0 and self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                count -= 1

    def _watch(self, subject: _Subject) -> None:
        self._pointer()  # Raises if the server has ended: nobody would be told.
        self._watched[type(subject), subject._alive()] = subject
        # If the queue has come to its end, it goes on for this.
        self._is_over = False
        self._listen()

    def _refuse(self) -> None:
        while self._waiting:
            request = self._waiting.popleft()
            with contextlib.suppress(HttpdownError):
                request.reply(503)

    def _take_events(self) -> None:
        """Events wait, or the server has ended."""
        for _ in range(_EVENTS_AT_ONCE):
            try:
                _ffi.httpdown_next_event(self._pointer(), _ffi.NOW, ctypes.byref(self._event))
            except TimeoutError:
                return
            except Stopped:
                break
            told, observer, arguments = self._inner._observer(self._event, self)
            try:
                _reports.returned(told, observer(*arguments))
            except Exception as error:
                _reports.observer_failed(told, error)
        else:
            return
        with contextlib.suppress(TimeoutError, WouldDeadlock):
            try:
                self._inner.wait(0)
            except (TimeoutError, WouldDeadlock):
                raise
            except HttpdownError:
                pass  # `wait` tells it.
            self._loop.remove_reader(self._event_fd)
            self._ended.set()

    # Requests.

    def __aiter__(self) -> Server:
        return self

    async def __anext__(self) -> Request:
        self._check_entered()
        while not self._waiting:
            if self._is_over or self._is_left:
                raise StopAsyncIteration
            taker = self._loop.create_future()
            self._takers.append(taker)
            try:
                await taker
            except BaseException:
                # Somebody else may have what this task was woken for.
                if taker.done() and not taker.cancelled():
                    self._wake(1)
                raise
        request = self._waiting.popleft()
        self._listen()
        return request

    async def serve(
        self, handler: Callable[[Request], Awaitable[object]], limit: int = 1000
    ) -> None:
        """Answers all requests by `await handler(request)`, each in a task of its own.

        At most `limit` of them at a time; the others wait. Returns when the server has stopped, and
        all handlers have returned. If the call is cancelled, the handlers are cancelled, and their
        requests end; those that nobody has taken stay.

        If a handler raises, or returns without an answer, the client gets a 500, or sees the answer
        cut, and the logger "httpdown" gets an error. It is no failure if the client has left.
        """
        _arguments.number("limit", limit, 1, 2**31 - 1)
        tasks: set[asyncio.Task[None]] = set()
        try:
            async for request in self:
                task = self._loop.create_task(_answer(handler, request))
                del request
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                while len(tasks) >= limit:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    # The queries and orders of the program.

    def _check_entered(self) -> None:
        if not self._is_entered:
            raise RuntimeError("a server is used within its block: async with server: ...")

    @property
    def addresses(self) -> list[Address]:
        """The addresses that the server listens (or listened) on: of `fds`, then of `bind`."""
        return self._inner.addresses

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self._inner.address

    @property
    def phase(self) -> _ffi.Phase:
        """The server's phase. Never blocks."""
        return self._inner.phase

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome: False after a stop has begun. Never blocks."""
        return self._inner.ready

    def report(self) -> Report:
        """The current counts. Never blocks."""
        return self._inner.report()

    def reload_tls(self, tls: Tls | None = None) -> None:
        """Like `httpdown.Server.reload_tls`. Blocks only to read the files."""
        self._inner.reload_tls(tls)

    def stop_begin(self) -> None:
        """Begins the stop and returns at once. A second call does nothing."""
        self._inner.stop_begin()

    def kill_begin(self) -> None:
        """Goes straight to the kill, whether a stop has begun or not, and returns at once."""
        self._inner.kill_begin()

    async def restart(self, restart: Restart | None = None) -> int:
        """Restarts the program without a loss: like `httpdown.Server.restart`.

        The loop goes on meanwhile. If the call is cancelled, the restart goes on.
        """
        self._check_entered()
        attempt = _restart.Attempt(self._inner, restart, self._vetoed)
        return await asyncio.wrap_future(attempt.result)

    def _vetoed(self, text: str) -> None:
        # Observers are called on the loop, unless it was closed meanwhile.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._inner._vetoed, text)

    async def stop(self) -> Report:
        """Begins the stop, and waits like `wait`. Other tasks must go on and take the requests."""
        self.stop_begin()
        return await self.wait()

    async def wait(self) -> Report:
        """Waits until the server has ended completely, no matter who has stopped it.

        A task that has requests to answer would wait for itself. Returns the counts. Raises Killed,
        TimedOut and IOFailed like `httpdown.Server.stop`.
        """
        self._check_entered()
        await self._ended.wait()
        return self._inner.wait(0)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops. An exception of the block has priority over an exception of the stop."""
        self._is_left = True
        self._refuse()
        self._wake(len(self._takers))
        self._listen()
        self.stop_begin()
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.is_set():
            try:
                await self._ended.wait()
            except asyncio.CancelledError as again:
                cancelled = again
                self.kill_begin()
        self._pause()
        self._inner._handle = None
        if cancelled is not None:
            raise cancelled
        if error is None:
            self._inner.wait(0)

    def __del__(self) -> None:
        inner = getattr(self, "_inner", None)
        if inner is not None and inner._handle is not None and not inner._is_in_child():
            warnings.warn(f"{self!r} was not stopped", ResourceWarning, source=self, stacklevel=2)
            inner.kill_begin()

    def __repr__(self) -> str:
        return f"<httpdown.aio.Server {self.address} {self.phase.name}>"


async def _answer(handler: Callable[[Request], Awaitable[object]], request: Request) -> None:
    """The life of a task that `Server.serve` has made."""
    inner = request._inner
    inner._name()
    async with request:
        try:
            await handler(request)
            if inner._is_owed():
                begun = "finishing its answer" if inner._begun else "an answer"
                raise Unanswered(f"the handler returned without {begun}")
        except Exception as error:
            _reports.handler_failed(inner, error, None)
