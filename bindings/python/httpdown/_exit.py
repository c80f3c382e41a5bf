"""The interpreter's exit: stops servers while everything that their handlers need still exists."""

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
    """Arranges that the server is stopped when the interpreter exits, if it still runs then."""
    _serving.add(server)
    _hook()
    # We register again each time, so that `_stop_all` runs before the functions that were
    # registered when this server was started. The server may need what those functions close.
    atexit.unregister(_stop_all)
    atexit.register(_stop_all)


def _hook() -> None:
    """Arranges that `_stop_unheld` is called as soon as the main thread has ended.

    Functions that are registered with `atexit` are called only after all threads have been joined
    and the executors have been shut down. Of the functions that are registered here, the last is
    called first. So we import the executors before, even if the program never does.
    """
    global _hooked
    if _hooked:
        return
    _hooked = True
    # RuntimeError: nothing can be registered any more. ImportError: this Python has no processes.
    with contextlib.suppress(ImportError, RuntimeError):
        for name in ("thread", "process"):
            importlib.import_module(f"concurrent.futures.{name}")
    # This is not a public name. Without it, `atexit` still works.
    with contextlib.suppress(AttributeError, RuntimeError):
        threading._register_atexit(_stop_unheld)  # type: ignore[attr-defined]


def _stop_unheld() -> None:
    """Stops the servers that no other thread uses.

    A thread that uses a server is joined later, and goes on until then.
    """
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
