"""Requests, and the answers to them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _arguments, _ffi, _reports, _tls
from ._errors import (
    AlreadyReplied,
    BadBody,
    Gone,
    HttpdownError,
    Killed,
    Status,
    TooLarge,
    TooSlow,
)
from ._stream import Stream
from ._tls import TlsInfo

if TYPE_CHECKING:
    from ._server import Server

# Answers with these statuses have no content, so they get no Content-Type.
_WITHOUT_CONTENT = frozenset((204, 205, 304))
# Answers with these statuses consist only of the head.
_WITHOUT_BODY = frozenset((204, 304))
# The most bytes of a body that one read gives.
_PIECE = 64 << 10
_HEADERS_AT_ONCE = 64


class Address(NamedTuple):
    """A host and a port. Its str has the form of a URL: "127.0.0.1:8080", "[::1]:8080".

    For a Unix socket, `host` is its path, "@name", or "" (most clients have no address), and `port`
    is None; the str is "unix:" and the host.
    """

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Address:
        if text.startswith("unix:"):
            return cls(text.removeprefix("unix:"), None)
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        if self.port is None:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Credentials(NamedTuple):
    """The process that has connected by a Unix socket.

    `pid` is 0 if the process is in another PID namespace that ours does not see; `uid` and `gid`
    are the process's effective user and group.
    """

    pid: int
    uid: int
    gid: int


class Headers(Mapping[str, str]):
    """The header fields of a request. Upper or lower case of names does not matter.

    Text is decoded as Latin-1, byte for byte.

    `headers[name]` is the first field with this name, `get_all` gives all of them. `pairs` has
    every field, with names in lower case; fields with the same name are in the order in which they
    came.
    """

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self._first = dict(reversed(pairs))

    def get_all(self, name: str) -> list[str]:
        """The values of all fields with this name."""
        name = name.lower()
        return [value for key, value in self.pairs if key == name]

    def __getitem__(self, name: str) -> str:
        return self._first[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._first

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.pairs))

    def __len__(self) -> int:
        return len(self._first)

    def __repr__(self) -> str:
        return f"Headers({self.pairs!r})"


class Query(Mapping[str, str]):
    """The query of a request: pairs of name and value, decoded like forms, by urllib.

    `query[name]` is the value of the first pair with this name, `get_all` gives all values of this
    name. `pairs` has every pair, in the order in which they came. `raw` is the query as it came,
    not decoded: "c=d"; mostly it is empty: "". A name without a "=" has the value "". Bytes that
    are not UTF-8 are replaced by U+FFFD.
    """

    def __init__(self, raw: str) -> None:
        self.raw = raw
        text = raw.encode("latin-1").decode("utf-8", "replace")
        self.pairs = urllib.parse.parse_qsl(text, keep_blank_values=True)
        self._first = dict(reversed(self.pairs))

    def get_all(self, name: str) -> list[str]:
        """The values of all pairs with this name."""
        return [value for key, value in self.pairs if key == name]

    def __getitem__(self, name: str) -> str:
        return self._first[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.pairs))

    def __len__(self) -> int:
        return len(self._first)

    def __str__(self) -> str:
        return self.raw

    def __repr__(self) -> str:
        return f"Query({self.raw!r})"


class _Lock:
    """Held during a call of C. Remembers whether a call failed because of the client or a kill."""

    __slots__ = ("_lock", "due", "lost")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.lost = False
        # What a thread that must not wait for this lock wants to be called while it is held.
        self.due: Callable[[], None] | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind in (Gone, BadBody, TooSlow, Killed):
            self.lost = True
        self._lock.release()
        self.settle()

    def settle(self) -> None:
        """Calls what is due, unless another thread has the lock: then that thread does it.

        `due` is set before the lock is tried, and looked at after its release, so none is missed.
        """
        while self.due is not None and self._lock.acquire(blocking=False):
            due, self.due = self.due, None
            try:
                if due is not None:
                    due()
            finally:
                self._lock.release()


class Request:
    """A request, and the means to answer it exactly once.

    Answer either with `reply`, or in pieces with `start`. If a handler returns without an answer,
    and has not called `defer`, the client gets a 500, or a cut answer if an answer has begun; this
    failure is logged, or passed to `on_error`. Any thread may use a request. While another thread
    uses the request, only `cancelled`, `overdue` and `wait_cancelled` run at once; other calls wait
    for their turn.

    After the request has been answered or aborted, its methods raise AlreadyReplied, but its head
    and its connection's data can still be read. In a forked child: Forked.
    """

    server: Server
    """The server that the request came to."""

    data: Any
    """The program's own data of the request: any object. None at first."""

    def __init__(self, pointer: int, server: Server) -> None:
        self.server = server
        self.data = None
        # None after the request has been ended.
        self._pointer: int | None = pointer
        # The pointer after the end: the request can only be read.
        self._ended: int | None = None
        self._begun = False
        self._deferred = False
        # Whether the answer that has begun has no body, and whether a writer has been told so.
        self._bodyless = False
        self._body_refused = False
        # The fields of the request's head that have been asked for.
        self._fields: dict[str, Any] = {}
        self._buffer: ctypes.Array[ctypes.c_char] | None = None
        # Held during each call of C, except those that any thread may make: `_cancel_lock`.
        # The thread that ends the request holds both, so that no other thread is in C with a
        # pointer that becomes invalid.
        self._lock = _Lock()
        self._cancel_lock = threading.Lock()
        self._ending = False
        # What `on_cancel` and the like have set, until it is called. The server's lock guards it.
        self._calls: list[tuple[_ffi.Ready, Callable[[], object]]] = []
        # The connection was taken over.
        self._upgraded = False

    @property
    def method(self) -> str:
        """The method as the client sent it: "GET"."""
        return self._text("method", _ffi.httpdown_request_method)

    @property
    def target(self) -> str:
        """The target as the client sent it: mostly path and query, "/a%20b?c=d"."""
        return self._text("target", _ffi.httpdown_request_target)

    @property
    def path(self) -> str:
        """The path of the target, not decoded: "/a%20b"."""
        return self._text("path", _ffi.httpdown_request_path)

    @property
    def query(self) -> Query:
        """The query, after the question mark in the target: `request.query.get("name")`."""
        query: Query = self._field("query", _read_query)
        return query

    @property
    def scheme(self) -> str:
        """The scheme by which the request came: "http", or, by TLS, "https"."""
        return self._text("scheme", _ffi.httpdown_request_scheme)

    @property
    def version(self) -> int:
        """The version of HTTP times ten: 10 or 11."""
        version: int = self._field("version", _ffi.httpdown_request_version)
        return version

    @property
    def headers(self) -> Headers:
        """The header fields."""
        headers: Headers = self._field("headers", _read_headers)
        return headers

    @property
    def peer(self) -> Address:
        """The address from which the connection comes.

        If a header of the PROXY protocol says whose connection it is (`proxy_protocol_from`), this
        is the address in the header.
        """
        return self._address("peer_addr", _ffi.httpdown_request_peer_addr)

    @property
    def local(self) -> Address:
        """The server's address that the client connected to."""
        return self._address("local_addr", _ffi.httpdown_request_local_addr)

    @property
    def proxy(self) -> Address | None:
        """The address of the proxy that has connected, if its header says whose connection it is.

        That is a header of the PROXY protocol (`proxy_protocol_from`).
        """
        found: Address | None = self._field("proxy", _read_proxy)
        return found

    @property
    def client_addr(self) -> str:
        """The address of the client that has sent the request, as far as that is to be believed.

        Without `trusted_proxies`, it is `str(peer)`. Otherwise it is what these proxies say:
        "192.0.2.1" or "2001:db8::1" if no port is known; "unknown", or a name that begins with an
        underscore, if they do not say the address.
        """
        return self._text("client_addr", _ffi.httpdown_request_client_addr)

    @property
    def client_scheme(self) -> str:
        """How the client has asked, "http" or "https": as a trusted proxy says, or `scheme`."""
        return self._text("client_scheme", _ffi.httpdown_request_client_scheme)

    @property
    def client_host(self) -> str:
        """The host that the client has asked for: as a trusted proxy says, or the field Host.

        It may have a port, and is "" without one.
        """
        return self._text("client_host", _ffi.httpdown_request_client_host)

    @property
    def peer_credentials(self) -> Credentials | None:
        """The process that has connected, as the kernel knew it at the time of the connect.

        None if the client has not connected by a Unix socket.
        """
        found: Credentials | None = self._field("peer_credentials", _read_credentials)
        return found

    @property
    def tls(self) -> TlsInfo | None:
        """What the TLS handshake of the request's connection has agreed on; None without TLS."""
        found: TlsInfo | None = self._field("tls", _tls.read)
        return found

    @property
    def conn_id(self) -> int:
        """The number of the request's connection, the same as in `on_conn_state`."""
        number: int = self._field("conn_id", _ffi.httpdown_request_conn_id)
        return number

    def body(self, limit: int = 1 << 20, timeout: float | None = None) -> bytes:
        """The whole body, if it has at most `limit` bytes. Blocks until the whole body is there.

        A second call gives the same bytes. Bytes that `read` took before are missing. Raises
        TooLarge (nothing is lost: ask again, or read the body in pieces), Gone (the client has
        left), BadBody (the client has broken the protocol; without an answer it gets a 400),
        TooSlow (the client was waited for too long; without an answer it gets a 408), Killed, and
        TimeoutError after `timeout` seconds (nothing is lost).
        """
        _arguments.number("limit", limit, 0, 2**63 - 1)
        body = _ffi.Bytes()
        with self._lock:
            pointer = self._alive()
            _within(
                timeout,
                lambda ms: _ffi.httpdown_request_body(pointer, limit, ms, ctypes.byref(body)),
            )
            return _ffi.copy(body)

    def read(self, n: int = _PIECE, timeout: float | None = None) -> bytes:
        """The next bytes of the body, at most `n`; b"" at its end. Blocks until some are there.

        Raises Gone (the client has left), BadBody and TooSlow (like `body`), Killed, TooLarge (the
        client has sent more than `max_body_size`; without an answer it gets a 413), and
        TimeoutError if nothing has come for `timeout` seconds; with 0 it never blocks.
        """
        capacity = min(_arguments.number("n", n, 1, 2**63 - 1), _PIECE)
        count = ctypes.c_size_t()
        with self._lock:
            pointer = self._alive()
            if self._buffer is None or len(self._buffer) < capacity:
                self._buffer = ctypes.create_string_buffer(capacity)
            buffer = self._buffer
            try:
                _within(
                    timeout,
                    lambda ms: _ffi.httpdown_request_read(
                        pointer, buffer, capacity, ms, ctypes.byref(count)
                    ),
                )
            except TooLarge:
                self._lock.lost = True
                raise
            return ctypes.string_at(buffer, count.value)

    @property
    def trailers(self) -> Headers:
        """The trailer fields of the body, once its end has been read; before, there are none."""
        with self._lock:
            return Headers(_read_fields(_ffi.httpdown_request_trailers, self._alive()))

    def __iter__(self) -> Iterator[bytes]:
        """The body, piece by piece, like `read`."""
        return iter(self.read, b"")

    @property
    def cancelled(self) -> bool:
        """Whether an answer is useless by now.

        The client has left, a kill has begun, or the answer is complete. An answer without a body
        is complete soon after its head.
        """
        with self._cancel_lock:
            return bool(_ffi.httpdown_request_cancelled(self._alive()))

    @property
    def overdue(self) -> bool:
        """Whether the program has had the request for longer than `handler_timeout`.

        This is advice, and an answer is as useful as before: for a handler that computes, and would
        rather send a part of its result, or say that it is busy. False without that option.
        """
        with self._cancel_lock:
            return bool(_ffi.httpdown_request_overdue(self._alive()))

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Sleeps for `timeout` seconds, or until an answer is useless (see `cancelled`).

        True if an answer is useless; False if the time has passed: go on. Raises AlreadyReplied if
        another thread ends the request during this call. A client that has only closed its own half
        of the connection may still read, and has not left.
        """
        try:
            _arguments.in_slices(self._wait_cancelled, timeout)
        except TimeoutError:
            return False
        except (Gone, TooSlow, Killed):
            pass
        except AlreadyReplied:
            if self._ending:
                raise
        return True

    def _wait_cancelled(self, milliseconds: int) -> None:
        if self._ending:
            raise _already_replied()
        with self._cancel_lock:
            _ffi.httpdown_request_wait_cancelled(self._alive(), milliseconds)

    def on_cancel(self, call: Callable[[], object]) -> None:
        """Has `call()` called once, as soon as an answer is useless (see `cancelled`).

        So a handler that waits for something else can be told to give up:
        `request.on_cancel(connection.cancel)`. If an answer is useless already, `call` is called
        soon. It is not called after the end of the request. What it raises is logged.

        `call` is called in another thread than the handler's, while the handler may go on: in one
        of the server's threads that has nothing to do. When the first request asks for this, the
        server starts one more thread, which runs no handlers while `threads` others do; so there
        always is one. `call` should be short, because meanwhile other requests are told nothing.

        Raises AlreadyReplied, TypeError.
        """
        self._on(_ffi.Ready.GONE, "on_cancel", call)

    def on_drain(self, call: Callable[[], object]) -> None:
        """Has `call()` called once, when the server drains: an endless answer should end now.

        That is after the lame duck; at a stop, `drain_rate` requests a second are told. Otherwise
        like `on_cancel`.
        """
        self._on(_ffi.Ready.DRAINING, "on_drain", call)

    def on_overdue(self, call: Callable[[], object]) -> None:
        """Has `call()` called once, when the request is overdue (see `overdue`).

        Otherwise like `on_cancel`.
        """
        self._on(_ffi.Ready.OVERDUE, "on_overdue", call)

    def _on(self, what: _ffi.Ready, name: str, call: Callable[[], object]) -> None:
        _reports.plain(name, call)
        with self._lock:
            pointer = self._alive()
            self.server._watch(pointer, self, what, call)
            self._order()

    def _order(self) -> None:
        """Asks C to tell what this request waits for. The lock is held."""
        pointer, wanted = self._pointer, _ffi.Ready(0)
        for what, _ in tuple(self._calls):
            wanted |= what
        if pointer is not None and wanted:
            # That the request is gone is always told.
            wanted &= _ffi.Ready.DRAINING | _ffi.Ready.OVERDUE
            with contextlib.suppress(HttpdownError):
                _ffi.httpdown_request_notify(pointer, int(wanted), None, None, None)

    def _order_again(self) -> None:
        """Like `_order`, for a thread that must not wait for another one that reads or writes."""
        self._lock.due = self._order
        self._lock.settle()

    def defer(self) -> None:
        """Keeps the request after the handler's return. Any thread can answer it later.

        If nobody answers, the client gets a 500 when the request is garbage-collected, and the
        logger "httpdown" gets an error with the request's method and path; `on_error` is not
        called. A thread that has deferred requests to answer must not wait for the server to stop,
        because the server waits for these answers.
        """
        with self._lock:
            self._alive()
            self._deferred = True

    @property
    def asks_for_upgrade(self) -> bool:
        """Whether the client asks for another protocol (Upgrade), or for a tunnel (CONNECT)."""
        with self._lock:
            return bool(_ffi.httpdown_request_asks_for_upgrade(self._alive()))

    def upgrade(self, headers: _arguments.Headers | None = None) -> Stream:
        """Takes the connection over, and ends the request.

        The client gets a 101 with these headers, which must have the field Upgrade, or, to CONNECT,
        a 200. What the client has sent behind its request is not lost: the stream begins with it.
        Does not block. Raises InvalidArgument if the client asks for no upgrade (it gets a 500);
        otherwise like `reply`.
        """
        pairs = _arguments.header_pairs(headers)
        array = _arguments.header_array(pairs)
        stream = ctypes.c_void_p()
        self._end(_ffi.httpdown_upgrade, array, len(pairs), ctypes.byref(stream), begun=False)
        assert stream.value is not None
        self._upgraded = True
        return Stream(stream.value, self.server)

    def reply(
        self,
        status: int = 200,
        body: _arguments.Data = b"",
        headers: _arguments.Headers | None = None,
    ) -> None:
        """Answers, and ends the request. Does not wait for the client; the body is copied.

        `status` is from 200 to 999. The library sets Content-Length and Date. For a body that is a
        str (sent as UTF-8) it also sets the Content-Type, unless you set it or `status` is 204, 205
        or 304. A 204 or 205 has no body: a given body is not sent, nor is a given Content-Length
        (for 205, it is 0).

        Raises Gone or Killed if the client cannot get the answer any more, and AlreadyReplied.
        Raises ValueError and TypeError for arguments that make no sense. Then the request is as
        before, except after a wrong Content-Length or any Transfer-Encoding: the client gets a 500.
        """
        code = _arguments.status_code(status)
        pairs = _arguments.header_pairs(headers)
        typed = code in _WITHOUT_CONTENT or any(
            name.lower() == b"content-type" for name, _ in pairs
        )
        if isinstance(body, str) and not typed:
            pairs.append((b"content-type", b"text/plain; charset=utf-8"))
        data = _arguments.data(body)
        array = _arguments.header_array(pairs)
        self._end(_ffi.httpdown_reply, code, array, len(pairs), data, len(data), begun=False)

    def reply_fd(
        self,
        file: _arguments.Descriptor,
        status: int = 200,
        headers: _arguments.Headers | None = None,
        *,
        offset: int = 0,
        length: int | None = None,
    ) -> None:
        """Answers with bytes of an open file, and ends the request.

        `file` is a file object, or a descriptor. It stays yours, and you may close it at once; its
        position is neither used nor changed. `length` bytes from `offset` on are sent, None: all to
        the end. They are read in pieces, when the client takes them, and are never all in memory.
        If the file becomes shorter meanwhile, or cannot be read, the client sees the answer cut. So
        replace a file by renaming another one to its name. Does not wait for the client.

        Raises like `reply`, and OSError for a descriptor that is not open. Raises InvalidArgument
        if the descriptor is not a regular file that is open for reading, or the file does not have
        all these bytes; then the client gets a 500.
        """
        code = _arguments.status_code(status)
        pairs = _arguments.header_pairs(headers)
        first = _arguments.number("offset", offset, 0, 2**63 - 1)
        count = _ffi.TO_END
        if length is not None:
            count = _arguments.number("length", length, 0, 2**63 - 1)
        array = _arguments.header_array(pairs)

        def call(pointer: int, copy: int) -> None:
            _ffi.httpdown_reply_fd(pointer, code, array, len(pairs), copy, first, count)

        self._end_with(call, file)

    def reply_file(
        self,
        file: _arguments.Path | _arguments.Descriptor,
        headers: _arguments.Headers | None = None,
    ) -> None:
        """Answers a GET or HEAD with a file, or with what the client asks for of it.

        `file` is a path, or a file that is open already: a file object or a descriptor, which stays
        yours. Ranges and conditional requests are answered, and an ETag and Last-Modified are sent,
        unless `headers` have their own. The Content-Type is that of `content_type`, unless
        `headers` have another; an open file has none, because its name is not known. A file that is
        not there is a 404, one that may not be read a 403, another method a 405: these are answers,
        too. Otherwise like `reply_fd`. Opening a file may take a while where the disk is slow.

        Never make a path from a request's target without a check that it stays in its folder.

        Raises like `reply_fd`, and IOFailed and OutOfResources if the file cannot be opened for
        another reason. Raises InvalidArgument also if `headers` have a Content-Length or
        Content-Range, or a malformed ETag or Last-Modified. Then the client gets a 500.
        """
        pairs = _arguments.header_pairs(headers)
        array = _arguments.header_array(pairs)
        if isinstance(file, (str, bytes, os.PathLike)):
            path = _arguments.file_path(file)
            self._end(_ffi.httpdown_reply_file, path, array, len(pairs), begun=False)
            return

        def call(pointer: int, copy: int) -> None:
            _ffi.httpdown_reply_open_file(pointer, copy, array, len(pairs))

        self._end_with(call, file)

    def _end_with(self, call: Callable[[int, int], None], file: _arguments.Descriptor) -> None:
        """Makes the call that ends the request, with a copy of a descriptor, which C takes over."""
        copy: int | None = os.dup(_arguments.descriptor(file))

        def give(pointer: int) -> None:
            nonlocal copy
            given, copy = copy, None
            assert given is not None
            call(pointer, given)

        try:
            self._end(give, begun=False)
        finally:
            if copy is not None:
                os.close(copy)

    def start(self, status: int = 200, headers: _arguments.Headers | None = None) -> Reply:
        """Begins an answer whose body follows in pieces, chunked unless there is a Content-Length.

        The head is sent at once. Never blocks. Raises like `reply`; then the request is as before.
        """
        code = _arguments.status_code(status)
        pairs = _arguments.header_pairs(headers)
        array = _arguments.header_array(pairs)
        bodyless = code in _WITHOUT_BODY or self.method == "HEAD"
        with self._lock:
            pointer = self._alive()
            _ffi.httpdown_reply_start(pointer, code, array, len(pairs))
            self._begun, self._bodyless = True, bodyless
        return Reply(self)

    def abort(self) -> None:
        """Ends the request without an answer.

        The client gets a 500 or, if an answer has begun, sees the answer cut. Never blocks, except
        while another thread reads or writes.
        """
        self._end(_ffi.httpdown_reply_abort, begun=None)

    def _alive(self) -> int:
        if self._pointer is None:
            raise _already_replied()
        return self._pointer

    def _end(self, call: Callable[..., object], *arguments: object, begun: bool | None) -> None:
        """Makes the call that ends the request.

        `begun` says whether the answer must have begun (True), must not (False), or may (None).
        """
        with self._lock:
            self._alive()
            if begun not in (None, self._begun):
                raise _already_replied()
            # Threads that wait for a cancellation leave C, and do not enter it again.
            self._ending = True
            with self._cancel_lock:
                pointer = self._alive()
                # Without this, C would free the head, too.
                _ffi.httpdown_request_retain(pointer)
                self._pointer, self._ended = None, pointer
                if self._calls:
                    self.server._unwatch(pointer, self)
                call(pointer, *arguments)

    def _name(self) -> None:
        """Reads the names for a log record early, because the record may come in a forked child."""
        self._text("method", _ffi.httpdown_request_method)
        self._text("path", _ffi.httpdown_request_path)

    def _is_owed(self) -> bool:
        """Whether the handler, which has returned, should have answered."""
        if self._pointer is None or self._deferred:
            return False
        return not self._bodyless and not self._is_lost()

    def _leave(self) -> None:
        """The handler has returned."""
        if not self._deferred:
            # Another thread may have ended the request before.
            with contextlib.suppress(AlreadyReplied):
                self.abort()

    def _is_no_failure(self, error: BaseException) -> bool:
        """Whether this exception of the handler is no failure of the handler.

        The client has left, has broken the protocol, has sent too much, was too slow, or was cut;
        or the handler wrote to an answer that has no body.
        """
        if isinstance(error, AlreadyReplied):
            return self._body_refused
        lost = (Gone, BadBody, TooLarge, TooSlow, Killed)
        return isinstance(error, lost) and (self._upgraded or self._is_lost())

    def _is_lost(self) -> bool:
        """Whether the client cannot get an answer, or has got all of it."""
        if self._lock.lost:
            return True
        try:
            return self.cancelled
        except AlreadyReplied:
            return False

    def _field(self, name: str, get: Callable[[int], Any]) -> Any:
        if name not in self._fields:
            with self._lock:
                pointer = self._ended if self._pointer is None else self._pointer
                if pointer is None:
                    raise _already_replied()
                self._fields[name] = get(pointer)
        return self._fields[name]

    def _text(self, name: str, get: Callable[[int], _ffi.Bytes]) -> str:
        text: str = self._field(name, lambda pointer: _decode(get(pointer)))
        return text

    def _address(self, name: str, get: Callable[[int], _ffi.Bytes]) -> Address:
        address: Address = self._field(
            name, lambda pointer: Address.parse(_ffi.copy(get(pointer)).decode())
        )
        return address

    def __del__(self) -> None:
        # Nobody else has this request any more, so no lock is needed; and a fork may have left the
        # lock locked.
        if self._pointer is not None:
            if self._calls:
                self.server._unwatch(self._pointer, self)
            with contextlib.suppress(HttpdownError):
                cancelled = _ffi.httpdown_request_cancelled(self._pointer)
                if not (cancelled or self._bodyless or self._lock.lost):
                    _reports.dropped(self)
                _ffi.httpdown_reply_abort(self._pointer)
        elif self._ended is not None:
            _ffi.httpdown_request_release(self._ended)

    def __repr__(self) -> str:
        state = "ended" if self._pointer is None else "begun" if self._begun else "unanswered"
        return f"<httpdown.Request {state}>"


class Reply:
    """An answer that has begun, from `Request.start`.

    As a context manager, it finishes the answer at the end of the block, and aborts the answer at
    an exception.
    """

    def __init__(self, request: Request) -> None:
        self.request = request

    def write(self, data: _arguments.Data, timeout: float | None = None) -> int:
        """Sends more of the body, as soon as the client takes it; a str as UTF-8. `data` is copied.

        Blocks while too many bytes wait to be sent (256 KiB, less if many clients are slow at once):
        a slow client slows the writer down.
        Returns how many bytes were taken: all of them, unless there is a `timeout` (in seconds, 0
        never blocks); then it may be fewer, and you write the rest again.

        Raises Gone, TooSlow, Killed, AlreadyReplied (also if the answer has no body: it is to HEAD,
        or a 204, 205 or 304), InvalidArgument if the body exceeds the Content-Length, and
        TimeoutError if nothing was taken in time.
        """
        data = _arguments.data(data)
        taken = ctypes.c_size_t()
        with self.request._lock:
            pointer = self.request._alive()
            try:
                _within(
                    timeout,
                    lambda ms: _ffi.httpdown_reply_write(
                        pointer, data, len(data), ms, ctypes.byref(taken)
                    ),
                )
            except AlreadyReplied:
                self.request._body_refused = True
                raise
        return taken.value

    def set_trailers(self, trailers: _arguments.Headers) -> None:
        """Sets the trailer fields, instead of those that were set before; `finish` sends them.

        They reach only a client that has asked for them (TE: trailers), and only those that the
        answer's header field Trailer has named, in an answer without a Content-Length. Never
        blocks. Raises AlreadyReplied, ValueError, TypeError.
        """
        pairs = _arguments.header_pairs(trailers)
        array = _arguments.header_array(pairs)
        with self.request._lock:
            _ffi.httpdown_reply_trailers(self.request._alive(), array, len(pairs))

    def finish(self) -> None:
        """Ends the answer, and the request. Does not wait for the client.

        Raises Gone or Killed if the client cannot get the whole answer any more, and
        AlreadyReplied.
        """
        self.request._end(_ffi.httpdown_reply_finish, begun=True)

    def abort(self) -> None:
        """Ends the request. The client sees the answer cut."""
        self.request.abort()

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.request._pointer is None:
            return  # Ended within.
        if error is None:
            self.finish()
        else:
            self.abort()


def content_type(path: _arguments.Path) -> str:
    """The content type of a file, by the extension of its name: "text/html; charset=utf-8".

    The types are those that web sites mostly need; all other files are "application/octet-stream".
    Only the name is looked at.
    """
    return _decode(_ffi.httpdown_content_type(_arguments.file_path(path)))


def _already_replied() -> Exception:
    return _ffi.failure(Status.ALREADY_REPLIED)


def _within(timeout: float | None, call: Callable[[int], object]) -> None:
    """Makes a call that takes milliseconds. Without a timeout, it waits in C."""
    if timeout is None:
        call(_ffi.FOREVER)
    elif timeout == 0:
        call(_ffi.NOW)
    else:
        _arguments.in_slices(lambda ms: call(ms or _ffi.NOW), timeout)


def _read_headers(pointer: int) -> Headers:
    return Headers(_read_fields(_ffi.httpdown_request_headers, pointer))


def _read_fields(get: Callable[..., object], pointer: int) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    fields = (_ffi.Header * _HEADERS_AT_ONCE)()
    count = ctypes.c_size_t(_HEADERS_AT_ONCE)
    while count.value == _HEADERS_AT_ONCE:
        get(pointer, len(pairs), fields, _HEADERS_AT_ONCE, ctypes.byref(count))
        for field in fields[: count.value]:
            pairs.append((_decode(field.name), _decode(field.value)))
    return pairs


def _read_proxy(pointer: int) -> Address | None:
    text = _ffi.copy(_ffi.httpdown_request_proxy_addr(pointer)).decode(errors="replace")
    return Address.parse(text) if text else None


def _read_credentials(pointer: int) -> Credentials | None:
    found = _ffi.Credentials()
    status = _ffi.httpdown_request_peer_credentials(pointer, ctypes.byref(found))
    if status == Status.NOT_FOUND:
        return None
    if status:
        raise _ffi.failure(status)
    return Credentials(found.pid, found.uid, found.gid)


def _read_query(pointer: int) -> Query:
    return Query(_decode(_ffi.httpdown_request_query(pointer)))


def _decode(borrowed: _ffi.Bytes) -> str:
    """A text of the request's head, byte for byte."""
    return _ffi.copy(borrowed).decode("latin-1")
