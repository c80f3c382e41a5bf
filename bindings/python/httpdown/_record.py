"""What became of a request, and lines of an access log."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from . import _ffi
from ._errors import Status
from ._ffi import LogFormat, RequestEnd
from ._request import Address


@dataclass(frozen=True)
class RequestRecord:
    """What became of one request: `on_done` of Server is called with it.

    The durations are in seconds, and count from `began`; None: it has not come to that.
    """

    end: RequestEnd
    """How the request has ended: its column in the Report."""
    status: int
    """The status of the answer; 0 if there was no answer."""
    version: int
    """The version of HTTP times ten; 0 if a kill cut the request before its head was complete."""
    tls: bool
    """Whether the connection has TLS."""
    conn_id: int
    """The number of the request's connection, the same as in `on_conn_state`."""
    number: int
    """The number of the request on its connection, from 1."""
    received: int
    """How many bytes of the request's body came before the end of the answer.

    Of a body in chunks, only those count that were read. The head does not count.
    """
    sent: int
    """How many bytes of the answer's body were given to the connection, without the head.

    If the request was not served, some of these bytes may not have left.
    """
    began: float
    """When the first byte of the request came: seconds since 1970, like `time.time`."""
    head: float | None
    """Until the head was complete."""
    called: float | None
    """Until a thread took the request, to call the handler."""
    answered: float | None
    """Until the answer began."""
    flushed: float | None
    """Until the kernel had the last byte of the answer."""
    acknowledged: float | None
    """Until the acknowledgement of the last byte was seen. Only a stop looks for it."""
    ended: float
    """Until the end of the request was known."""
    peer: Address
    """The client's address."""
    method: str
    """The method. Empty if a kill cut the request before its head was complete."""
    target: str
    """The target as the client sent it: mostly path and query, "/a%20b?c=d"."""
    referer: str | None
    """The first Referer header, decoded as Latin-1."""
    user_agent: str | None
    """The first User-Agent header, decoded as Latin-1."""
    overdue: bool
    """Whether the program had the request for longer than `handler_timeout`."""

    def common_log(self) -> str:
        """The record as a line in the Common Log Format, without a line end.

        A quote and a backslash have a backslash before them, and bytes that are not visible ASCII
        are written as \\xHH. So a client cannot forge a line. The time is in UTC.
        """
        return self._line(LogFormat.COMMON)

    def combined_log(self) -> str:
        """The line of `common_log`, followed by Referer and User-Agent in quotes."""
        return self._line(LogFormat.COMBINED)

    def json(self) -> str:
        """The record as a JSON object in one line, without a line end.

        Durations are in microseconds. Bytes that are not UTF-8 are replaced by U+FFFD.
        """
        return self._line(LogFormat.JSON)

    def _line(self, form: LogFormat) -> str:
        owned = {
            "peer": str(self.peer).encode("utf-8", "replace"),
            "method": self.method.encode("latin-1", "replace"),
            "target": self.target.encode("latin-1", "replace"),
            "referer": _bytes(self.referer),
            "user_agent": _bytes(self.user_agent),
        }
        raw = _ffi.RequestRecord(
            struct_size=ctypes.sizeof(_ffi.RequestRecord),
            end=self.end,
            status_code=self.status,
            version=self.version,
            tls=self.tls,
            conn_id=self.conn_id,
            number=self.number,
            received=self.received,
            sent=self.sent,
            began_us=_micros(self.began),
            head_us=_micros(self.head),
            called_us=_micros(self.called),
            answered_us=_micros(self.answered),
            flushed_us=_micros(self.flushed),
            acknowledged_us=_micros(self.acknowledged),
            ended_us=_micros(self.ended),
            overdue=self.overdue,
            **{name: _ffi.lend(text) for name, text in owned.items() if text is not None},
        )
        length = ctypes.c_size_t()
        size = 512
        while True:
            buffer = ctypes.create_string_buffer(size)
            status = _ffi.httpdown_log_line(
                ctypes.byref(raw), form, buffer, size, ctypes.byref(length)
            )
            if status == Status.OK:
                return buffer.raw[: length.value].decode()
            if status != Status.TOO_LARGE:
                raise _ffi.failure(status)
            size = length.value + 1

    @classmethod
    def _of(cls, raw: _ffi.RequestRecord) -> RequestRecord:
        return cls(
            end=RequestEnd(raw.end),
            status=raw.status_code,
            version=raw.version,
            tls=bool(raw.tls),
            conn_id=raw.conn_id,
            number=raw.number,
            received=raw.received,
            sent=raw.sent,
            began=raw.began_us / 1_000_000,
            head=_seconds(raw.head_us),
            called=_seconds(raw.called_us),
            answered=_seconds(raw.answered_us),
            flushed=_seconds(raw.flushed_us),
            acknowledged=_seconds(raw.acknowledged_us),
            ended=raw.ended_us / 1_000_000,
            peer=Address.parse(_ffi.copy(raw.peer).decode()),
            method=_ffi.copy(raw.method).decode("latin-1"),
            target=_ffi.copy(raw.target).decode("latin-1"),
            referer=_text(raw.referer),
            user_agent=_text(raw.user_agent),
            overdue=bool(raw.overdue),
        )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("latin-1", "replace")


def _text(borrowed: _ffi.Bytes) -> str | None:
    return None if borrowed.data is None else _ffi.copy(borrowed).decode("latin-1")


def _micros(seconds: float | None) -> int:
    return -1 if seconds is None else round(seconds * 1_000_000)


def _seconds(us: int) -> float | None:
    return None if us < 0 else us / 1_000_000
