"""Reports failures of the program's own code, by `logging` unless the program handles them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from ._errors import Unanswered
from ._ffi import LogLevel

if TYPE_CHECKING:
    from ._request import Request

_C = TypeVar("_C", bound=Callable[..., Any])

_log = logging.getLogger("httpdown")
_last_said = ("", 0.0)
_LEVELS = {
    LogLevel.ERROR: logging.ERROR,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.INFO: logging.INFO,
}


def plain(name: str, value: _C) -> _C:
    """Checks that a call of `value` does the work; an `async def` would only make a coroutine."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")
    inner: Any = value
    while isinstance(inner, functools.partial):
        inner = inner.func
    # A class has the `__call__` of its metaclass, which makes an instance.
    for function in (inner, None if isinstance(inner, type) else type(inner).__call__):
        for kind, is_one in (
            ("an async def", inspect.iscoroutinefunction),
            ("an async generator", inspect.isasyncgenfunction),
            ("a generator", inspect.isgeneratorfunction),
        ):
            if is_one(function):
                raise TypeError(f"{name} must be a plain function, not {kind}: nobody would run it")
    return value


def unanswered(request: Request, result: object) -> Unanswered:
    """The reason why a handler that has returned `result` gave no answer."""
    kind = type(result).__name__
    if _discard(result):
        return Unanswered(f"the handler returned a {kind}, which nobody runs, and no answer")
    if request._begun:
        return Unanswered("the handler returned without finishing its answer")
    if result is not None:
        return Unanswered(f"the handler returned a {kind}, and no answer")
    return Unanswered("the handler returned without an answer")


def returned(name: str, result: object, request: Request | None = None) -> bool:
    """Whether a callable returned a coroutine or generator, which nobody runs. Logs it, too."""
    if not _discard(result):
        return False
    text = f"{name} returned a {type(result).__name__}, which nobody runs"
    _write(logging.ERROR, request, text, None)
    return True


def _discard(result: object) -> bool:
    """Whether `result` is a coroutine or a generator, which nobody will run."""
    if result is None:
        return False
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        # Without this, Python warns. The coroutine has not begun, so none of its code runs.
        with contextlib.suppress(BaseException):
            result.close()
        return True
    return inspect.isasyncgen(result)


def dropped(request: Request) -> None:
    """Logs that nobody has a deferred request any more, so nobody will answer it."""
    what = "finishing its answer" if request._begun else "an answer"
    text = f"the request was deferred, and dropped without {what}"
    _write(logging.ERROR, request, text, None)


def library_said(level: LogLevel, text: str) -> None:
    """Logs a message of C, except about failures of handlers: this module reports them better.

    A repeated message is logged every ten seconds: for example, accepting may pause many times a
    second.
    """
    global _last_said
    last, now = _last_said, time.monotonic()
    if text.startswith("a handler ") or (text == last[0] and now < last[1] + 10):
        return
    _last_said = (text, now)
    _write(_LEVELS[level], None, text, None)


def handler_failed(
    request: Request,
    error: BaseException,
    on_error: Callable[[Request, BaseException], object] | None,
) -> None:
    """Tells the program about the failure, or logs it."""
    if request._is_no_failure(error):
        _write(logging.DEBUG, request, str(error), None)
        return
    if on_error is not None:
        try:
            result = on_error(request, error)
        except BaseException as failure:
            _log_handler(request, error)
            _write(logging.ERROR, request, "on_error failed", failure)
        else:
            if returned("on_error", result, request):
                _log_handler(request, error)
        return
    _log_handler(request, error)


def observer_failed(name: str, error: BaseException) -> None:
    _write(logging.ERROR, None, f"{name} failed", error)


def _log_handler(request: Request, error: BaseException) -> None:
    if isinstance(error, Unanswered):
        _write(logging.ERROR, request, str(error), None)
    else:
        _write(logging.ERROR, request, "the handler failed", error)


def _write(level: int, request: Request | None, text: str, error: BaseException | None) -> None:
    """Writes one log record. Whatever the program's handlers and filters do, the thread goes on."""
    if request is not None:
        # Escaped, so that a client cannot forge lines or terminal commands.
        where = f"{request.method} {request.path}".encode("ascii", "backslashreplace").decode()
        text = f"{where}: {text}"
    try:
        _log.log(level, "%s", text, exc_info=error)
    except BaseException as failure:
        with contextlib.suppress(BaseException):
            lines = [f"{text}\n"]
            for told in filter(None, (error, failure)):
                lines += traceback.format_exception(type(told), told, told.__traceback__)
            sys.stderr.write("".join(lines))
