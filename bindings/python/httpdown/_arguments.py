"""Checks the arguments of programs, and turns them into what C takes."""

from __future__ import annotations

import ctypes
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, Union

from . import _ffi

Headers = Union[Mapping[str, Union[str, bytes]], Iterable[tuple[str, Union[str, bytes]]]]
Data = Union[bytes, bytearray, memoryview, str]
Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]


class HasDescriptor(Protocol):
    """An open file, or anything else with a descriptor."""

    def fileno(self) -> int:
        """The number of the descriptor."""


Descriptor = Union[int, HasDescriptor]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

# A call that waits comes back this often, in seconds, so that Python can handle signals.
SLICE = 0.1


def number(name: str, value: int, least: int, most: int) -> int:
    """A whole number within bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")
    return value


def count(name: str, value: int | None) -> int:
    """A number for the options: None is C's default."""
    return 0 if value is None else number(name, value, 1, (1 << 32) - 1)


def threads(name: str, value: int | None) -> int:
    """A number of threads for the options: None is C's default."""
    return 0 if value is None else number(name, value, 1, 1 << 16)


def size(name: str, value: int | None) -> int:
    """A number of bytes for the options: None is C's default."""
    return 0 if value is None else number(name, value, 1, (1 << 64) - 1)


def seconds(name: str, value: float) -> float:
    """A duration in seconds; `math.inf` is allowed."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, nor NaN: {value}")
    return value


def milliseconds(name: str, value: float | None) -> int:
    """A duration for the options: None is C's default, 0 is no time, `math.inf` is no limit."""
    if value is None:
        return 0
    value = seconds(name, value)
    if value == math.inf:
        return _ffi.FOREVER
    if value > 4_294_967:
        raise ValueError(f"{name} must be at most 4,294,967 seconds, or math.inf: {value}")
    return math.ceil(value * 1000) or _ffi.NOW


def in_slices(call: Callable[[int], object], timeout: float | None) -> None:
    """Repeats a call that takes milliseconds, while it raises TimeoutError, until `timeout`.

    Between the calls, Python handles signals. So Ctrl-C works in the main thread.
    """
    deadline = math.inf if timeout is None else time.monotonic() + seconds("timeout", timeout)
    while True:
        now = time.monotonic()
        left = deadline - now
        ms = math.ceil(max(0.0, min(left, SLICE)) * 1000)
        try:
            call(ms)
            return
        except TimeoutError:
            # The call failed before its own timeout, so there is nothing to wait for.
            if left <= SLICE or time.monotonic() < now + ms / 1000:
                raise


def text(name: str, value: str) -> bytes:
    """A text for C: NUL-terminated UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError(f"{name} contains a NUL")
    return value.encode()


def optional_text(name: str, value: str | None) -> bytes | None:
    """A text for the options: None is C's default."""
    return None if value is None else text(name, value)


def path(name: str, value: str | os.PathLike[str] | None) -> str | None:
    """The path of a file with PEM; None if there is none."""
    if value is None:
        return None
    found = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(found, str):
        raise TypeError(f"{name} must be a str or os.PathLike, not {type(found).__name__}")
    if "-----BEGIN " in found:
        # Not shown: it may be a key.
        raise ValueError(f"{name} must be the path of a file, not what is in the file")
    if "\0" in found:
        raise ValueError(f"{name} contains a NUL")
    return found


def file_path(value: Path) -> bytes:
    """The path of a file to be sent, for C."""
    path = os.fsencode(value)
    if b"\0" in path:
        raise ValueError("the path contains a NUL")
    return path


def descriptor(value: Descriptor) -> int:
    """The descriptor of an open file, which stays its owner's."""
    if not isinstance(value, int) and not hasattr(value, "fileno"):
        raise TypeError(f"a file must be open, or a path, not {type(value).__name__}")
    found = value if isinstance(value, int) else value.fileno()
    return number("a descriptor", found, 0, 2**31 - 1)


def pem(name: str, value: bytes | str) -> bytes:
    """A PEM text in memory; b"" if there is none."""
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise TypeError(f"{name} must be bytes or str, not {type(value).__name__}")
    return value


def choice(name: str, value: str | None, choices: Mapping[str, object]) -> str | None:
    """One of several words; None is C's default."""
    if value is None:
        return None
    words = " or ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {words} or None, not {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be {words} or None, not {value!r}")
    return value


def data(value: Data) -> bytes:
    """Bytes of a body; text is UTF-8."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise TypeError(f"a body must be bytes or str, not {type(value).__name__}")


def status_code(value: int) -> int:
    """A response's status."""
    return number("status", value, 200, 999)


def header_pairs(headers: Headers | None) -> list[tuple[bytes, bytes]]:
    """Header fields, checked so that no name or value can smuggle in another field."""
    if headers is None:
        return []
    if isinstance(headers, Mapping):
        headers = headers.items()
    return [(_header_name(name), _header_value(name, value)) for name, value in headers]


def _header_name(name: str) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"a header's name must be a str, not {type(name).__name__}")
    # A character that is not ASCII becomes a question mark, which no name may contain.
    encoded = name.encode("ascii", "replace")
    if not _TOKEN.fullmatch(encoded):
        raise ValueError(f"not a header's name: {name!r}")
    return encoded


def _header_value(name: str, value: str | bytes) -> bytes:
    if isinstance(value, str):
        try:
            value = value.encode("latin-1")
        except UnicodeEncodeError as error:
            hint = "only Latin-1 can be sent; encode it yourself"
            raise ValueError(f"the value of header {name!r} is {value!r}: {hint}") from error
    elif not isinstance(value, bytes):
        kind = type(value).__name__
        raise TypeError(f"the value of header {name!r} must be a str or bytes, not {kind}")
    if not _FIELD.fullmatch(value):
        raise ValueError(f"the value of header {name!r} has a control character: {value!r}")
    return value


def header_array(pairs: list[tuple[bytes, bytes]]) -> ctypes.Array[_ffi.Header]:
    """Header fields as C takes them. The array keeps the memory alive that it points to."""
    array = (_ffi.Header * len(pairs))()
    memory = ctypes.create_string_buffer(b"".join(name + value for name, value in pairs))
    at = ctypes.addressof(memory)
    for header, (name, value) in zip(array, pairs):
        header.name.data, header.name.len = at, len(name)
        at += len(name)
        header.value.data, header.value.len = at, len(value)
        at += len(value)
    array.memory = memory  # type: ignore[attr-defined]
    return array
