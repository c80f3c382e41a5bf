"""A clock for tests."""

from __future__ import annotations

import ctypes

from . import _arguments, _ffi

# The limit of one step, in seconds: 31 years. No test needs more.
_LONGEST = 1e9


class MockClock:
    """A clock that stands still until you move it, for the option `clock` of one or more servers.

    The timers of a stop run on this clock, so a test need not wait for them. Any thread may use the
    clock.
    """

    def __init__(self) -> None:
        pointer = ctypes.c_void_p()
        _ffi.httpdown_clock_new_mock(ctypes.byref(pointer))
        self._pointer = pointer

    def advance(self, seconds: float) -> None:
        """Moves the clock's time forward, and fires the timers that are due by then.

        Does not wait for the effects of these timers.
        """
        if _arguments.seconds("seconds", seconds) > _LONGEST:
            raise ValueError(f"seconds must be at most {_LONGEST}, not {seconds}")
        _ffi.httpdown_clock_advance(self._pointer, round(seconds * 1000))

    def wait_for_timers(self, count: int, timeout: float = 10.0) -> None:
        """Blocks until at least `count` timers are set: until the server waits for its clock.

        `timeout` is in seconds of real time; after that, raises TimeoutError. A server with `stats`
        always has one timer set.
        """
        _arguments.number("count", count, 0, 2**31)
        _arguments.in_slices(
            lambda ms: _ffi.httpdown_clock_wait_for_timers(self._pointer, count, ms), timeout
        )

    def __del__(self) -> None:
        if hasattr(self, "_pointer"):
            _ffi.httpdown_clock_free(self._pointer)
