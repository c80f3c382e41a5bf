"""What is told of the program's own code that fails: by `logging`, unless the program wants it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from ._errors import AlreadyReplied, Gone, Killed, Unanswered

if TYPE_CHECKING:
    from ._request import Request

_C = TypeVar("_C", bound=Callable[..., Any])

_log = logging.getLogger("httpdown")


def plain(name: str, value: _C) -> _C:
    """A callable whose call does its work; that of an `async def` only makes a coroutine."""
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
    """Why there is no answer from a handler that has returned this."""
    for is_one in (inspect.iscoroutine, inspect.isasyncgen, inspect.isgenerator):
        if is_one(result):
            if not inspect.isasyncgen(result):
                result.close()  # type: ignore[attr-defined]  # Or Python warns of it.
            kind = type(result).__name__
            return Unanswered(f"the handler returned a {kind}, which nobody runs, and no answer")
    if request._begun:
        return Unanswered("the handler returned without finishing its answer")
    return Unanswered("the handler returned without an answer")


def handler_failed(
    request: Request,
    error: BaseException,
    on_error: Callable[[Request, BaseException], object] | None,
) -> None:
    """Tells the program, or logs it.

    That a client has left is no failure, nor that its answer has no body.
    """
    if isinstance(error, (Gone, Killed, AlreadyReplied)) and request._is_lost():
        _write(logging.DEBUG, request, str(error), None)
        return
    if on_error is not None:
        try:
            on_error(request, error)
        except BaseException as failure:
            _log_handler(request, error)
            _write(logging.ERROR, request, "on_error failed", failure)
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
    """One record. Whatever the program's handlers and filters do, the thread goes on."""
    if request is not None:
        # As a client cannot forge lines, or what a terminal acts on.
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
