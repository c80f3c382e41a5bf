"""The interpreter's exit: servers are stopped while what their handlers need is still there."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._errors import Forked

if TYPE_CHECKING:
    from ._server import Server

_serving: weakref.WeakSet[Server] = weakref.WeakSet()
_hooked = False


def stop_at_exit(server: Server) -> None:
    """Has the server stopped when the interpreter exits, if it has not been by then."""
    _serving.add(server)
    _hook()
    # Anew each time: before what was there when the server was started, and may be needed by it.
    atexit.unregister(_stop_all)
    atexit.register(_stop_all)


def _hook() -> None:
    """Has `_stop_unheld` called as soon as the main thread has ended.

    What is registered with `atexit` is called only after all threads have been joined, and the
    executors have been shut down. What is registered here last is called first: so executors are
    imported before, whether or not the program ever does it.
    """
    global _hooked
    if _hooked:
        return
    _hooked = True
    # None can be registered any more (RuntimeError); or this Python has no processes.
    with contextlib.suppress(ImportError, RuntimeError):
        for name in ("thread", "process"):
            importlib.import_module(f"concurrent.futures.{name}")
    # It is no public name: without it there is still `atexit`.
    with contextlib.suppress(AttributeError, RuntimeError):
        threading._register_atexit(_stop_unheld)  # type: ignore[attr-defined]


def _stop_unheld() -> None:
    """Stops those that no other thread is busy with: it will be joined, and shall go on."""
    _stop(server for server in _serving if not _is_held(server))


def _stop_all() -> None:
    _stop(_serving)


def _is_held(server: Server) -> bool:
    return any(
        thread.is_alive() and not thread.daemon and thread is not threading.main_thread()
        for thread in tuple(server._holders)
    )


def _stop(servers: Iterable[Server]) -> None:
    stopped = list(servers)
    with contextlib.suppress(Forked):
        for server in stopped:
            server.stop_begin()
        for server in stopped:
            server.close()
