"""What can go wrong, as exceptions."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._server import Report


class Code(IntEnum):
    """A number from C that prints as its name in every version of Python."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


class Status(Code):
    """The result of a call of the C library, and of a stop: `Report.status`."""

    OK = 0
    INVALID_ARGUMENT = 1
    UNSUPPORTED = 2
    ADDR_INVALID = 3
    ADDR_IN_USE = 4
    PERMISSION_DENIED = 5
    IO = 6
    TIMED_OUT = 7
    STOPPED = 8
    WOULD_DEADLOCK = 9
    ALREADY_REPLIED = 10
    OUT_OF_RESOURCES = 11
    WOULD_BLOCK = 12
    GONE = 13
    KILLED = 14
    FORKED = 15
    TOO_LARGE = 16
    NOT_FOUND = 17
    BAD_BODY = 18
    TLS = 19
    TOO_SLOW = 20
    RESTART_FAILED = 21
    BUSY = 22
    PANIC = 99


class HttpdownError(Exception):
    """An error that httpdown reports. `status` is the number, `text` is the reason.

    If the error is the result of a server's stop (raised by `stop`, `wait` and `run`), `report` has
    the server's counts; otherwise `report` is None. Only a timeout that the caller has set is not
    an HttpdownError: it raises the built-in `TimeoutError`.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.report: Report | None = None

    def __str__(self) -> str:
        return self.text


class InvalidArgument(HttpdownError, ValueError):
    """An argument makes no sense."""


class Unsupported(HttpdownError):
    """The loaded library does not know what was asked for."""


class AddressInvalid(HttpdownError):
    """An address could not be parsed or resolved."""


class AddressInUse(HttpdownError):
    """Another socket already listens on this address."""


class PermissionDenied(HttpdownError):
    """The operating system does not permit this (mostly: to listen on a port below 1024)."""


class IOFailed(HttpdownError):
    """Another error of the operating system."""


class TimedOut(HttpdownError):
    """The kill timeout passed while handlers were still running. They were abandoned."""


class Stopped(HttpdownError):
    """The server has stopped, so this call came too late."""


class WouldDeadlock(HttpdownError):
    """The call would wait for its own thread, or for a request that this thread holds."""


class AlreadyReplied(HttpdownError):
    """The request has been ended already, or its answer has begun."""


class OutOfResources(HttpdownError):
    """The system had no more threads, descriptors or memory."""


class Gone(HttpdownError):
    """The client has left."""


class Killed(HttpdownError):
    """The stop timeout passed, or a kill was asked for, and requests were cut."""


class Forked(HttpdownError):
    """This process is a forked child of the process that has the server.

    Neither this process nor its own children can start a server. A child can start a server only if
    all servers of the parent had been closed before the fork.
    """


class TooLarge(HttpdownError):
    """A body is longer than the given limit."""


class BadBody(HttpdownError):
    """The client has broken the protocol in the body of its request."""


class TooSlow(HttpdownError):
    """The client was too slow with its request's body, or in taking its answer.

    The options `body_timeout` and `write_timeout` say how long it may take.
    """


class RestartFailed(HttpdownError):
    """The program could not be restarted; this process goes on as before.

    The text says why, with what the new process has said.
    """


class Busy(HttpdownError):
    """Not now: something of the kind is under way, as the text says."""


class TlsError(HttpdownError):
    """A certificate, a key or something else of the TLS settings cannot be used."""


class Unanswered(RuntimeError):
    """A handler returned, but its request has no answer, or an unfinished answer.

    This is never raised. It is passed to `on_error`.
    """


CLASSES: dict[int, type[HttpdownError]] = {
    Status.INVALID_ARGUMENT: InvalidArgument,
    Status.UNSUPPORTED: Unsupported,
    Status.ADDR_INVALID: AddressInvalid,
    Status.ADDR_IN_USE: AddressInUse,
    Status.PERMISSION_DENIED: PermissionDenied,
    Status.IO: IOFailed,
    Status.TIMED_OUT: TimedOut,
    Status.STOPPED: Stopped,
    Status.WOULD_DEADLOCK: WouldDeadlock,
    Status.ALREADY_REPLIED: AlreadyReplied,
    Status.OUT_OF_RESOURCES: OutOfResources,
    Status.GONE: Gone,
    Status.KILLED: Killed,
    Status.FORKED: Forked,
    Status.TOO_LARGE: TooLarge,
    Status.BAD_BODY: BadBody,
    Status.TLS: TlsError,
    Status.TOO_SLOW: TooSlow,
    Status.RESTART_FAILED: RestartFailed,
    Status.BUSY: Busy,
}


def error(status: int, text: str) -> Exception:
    """The exception for a status other than OK."""
    if status == Status.WOULD_BLOCK:
        return TimeoutError(text)
    return CLASSES.get(status, HttpdownError)(status, text)
