"""Connections that a handler has taken over: Request.upgrade."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from . import _arguments, _ffi, _reports
from ._errors import HttpdownError, Status, Stopped

if TYPE_CHECKING:
    from ._server import Server

# The most bytes that one read gives.
_PIECE = 64 << 10


class Stream:
    """A connection that a handler has taken over: `Request.upgrade`.

    Any thread may use it, several at once; so one thread can read while another one writes. It is a
    context manager, which closes the connection; so does the garbage collector. A stop waits until
    it is closed: `on_drain` tells that it should be. The time limits for requests do not apply to
    it. A kill resets it.
    """

    def __init__(self, pointer: int, server: Server) -> None:
        self.server = server
        # What `on_drain` has set, until it is called. The server's lock guards it.
        self._calls: list[tuple[_ffi.Ready, Callable[[], object]]] = []
        self._lock = threading.Lock()
        self._pointer: int | None = pointer
        # How many calls use the pointer. The last of them frees it, if it is to be freed.
        self._users = 0
        self._is_closed = False

    def read(self, n: int = _PIECE, timeout: float | None = None) -> bytes:
        """The next bytes, at most `n`; b"" at the end. Blocks until some are there.

        Raises TimeoutError if nothing has come for `timeout` seconds (with 0 it never blocks), Gone
        if the connection has failed, Killed, and Stopped if the stream is closed.
        """
        capacity = min(_arguments.number("n", n, 1, 2**63 - 1), _PIECE)
        buffer = ctypes.create_string_buffer(capacity)
        count = ctypes.c_size_t()
        with _Use(self) as pointer:
            _arguments.in_slices(
                lambda ms: _ffi.httpdown_stream_read(
                    pointer, buffer, capacity, ms, ctypes.byref(count)
                ),
                timeout,
            )
        return ctypes.string_at(buffer, count.value)

    def write(self, data: _arguments.Data, timeout: float | None = None) -> int:
        """Sends bytes; text is UTF-8. Blocks while the kernel has no room for them.

        Returns how many bytes were taken: all of them, unless there is a `timeout` (in seconds, 0
        never blocks); then it may be fewer, and you write the rest again. Raises TimeoutError if
        nothing was taken in time; otherwise like `read`.
        """
        rest = memoryview(_arguments.data(data))
        total, taken = 0, ctypes.c_size_t()
        with _Use(self) as pointer:
            while True:
                piece = bytes(rest[total : total + _PIECE])

                def send(ms: int, piece: bytes = piece) -> None:
                    _ffi.httpdown_stream_write(
                        pointer, piece, len(piece), ms, ctypes.byref(taken)
                    )

                _arguments.in_slices(send, timeout)
                total += taken.value
                if timeout is not None or total == len(rest):
                    return total

    def shutdown(self, timeout: float | None = None) -> None:
        """Says that no more bytes follow, when all that was written is sent.

        The client's bytes can still be read. Raises TimeoutError if not all of it is sent in time;
        otherwise like `read`.
        """
        with _Use(self) as pointer:
            _arguments.in_slices(
                lambda ms: _ffi.httpdown_stream_shutdown(pointer, ms), timeout
            )

    def on_drain(self, call: Callable[[], object]) -> None:
        """Has `call()` called once, when the server drains: the stream should end now.

        `call` is called in another thread, while other threads may read and write: like
        `httpdown.Request.on_drain`. It is not called after `close`, nor at a kill. Raises Stopped,
        TypeError.
        """
        _reports.plain("on_drain", call)
        with _Use(self) as pointer:
            self.server._watch(pointer, self, _ffi.Ready.DRAINING, call)
            self._order()

    def _order(self) -> None:
        """Asks C to tell when the server drains."""
        with contextlib.suppress(HttpdownError), _Use(self) as pointer:
            _ffi.httpdown_stream_notify(pointer, int(_ffi.Ready.DRAINING), None, None, None)

    _order_again = _order

    def fileno(self) -> int:
        """The socket's descriptor, for those who read and write it by themselves.

        It is non-blocking, and belongs to the stream: do not close it. Blocks until the answer has
        left. Raises Unsupported with TLS, or if bytes that have come before were not read yet;
        otherwise like `read`.
        """
        descriptor = ctypes.c_int()
        with _Use(self) as pointer:
            _arguments.in_slices(
                lambda ms: _ffi.httpdown_stream_fd(pointer, ms, ctypes.byref(descriptor)), None
            )
        return descriptor.value

    def close(self) -> None:
        """Closes the connection. Calls of other threads end first. Does not fail, nor block.

        What was written is sent, and reaches a client that still sends: the connection ends like
        after a last answer (`linger_timeout`), and a stop waits for that.
        """
        with self._lock:
            self._is_closed = True
            free = self._take_unused()
        free()

    def _take_unused(self) -> Callable[[], None]:
        """Frees the stream, if it is closed and nobody uses it. The lock is held."""
        pointer = self._pointer
        if pointer is None or self._users > 0 or not self._is_closed:
            return lambda: None
        self._pointer = None
        return lambda: self._free(pointer)

    def _free(self, pointer: int) -> None:
        if self._calls:
            self.server._unwatch(pointer, self)
        _ffi.httpdown_stream_free(pointer)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Nobody can use it any more. Without the lock, which this thread may hold.
        pointer, self._pointer = getattr(self, "_pointer", None), None
        if pointer is not None:
            self._free(pointer)


class _Use:
    """While a call uses the pointer of a stream, nobody frees it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __enter__(self) -> int:
        stream = self._stream
        with stream._lock:
            if stream._is_closed or stream._pointer is None:
                raise Stopped(Status.STOPPED, "the stream is closed")
            stream._users += 1
            return stream._pointer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stream._lock:
            self._stream._users -= 1
            free = self._stream._take_unused()
        free()
