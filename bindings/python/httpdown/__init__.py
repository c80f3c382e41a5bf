"""An HTTP server that stops without dropping a request.

import httpdown

def hello(request):
    request.reply(200, "Hello, World!")

httpdown.run(hello, "127.0.0.1:8080")  # until SIGTERM or SIGINT
"""

from ._clock import MockClock
from ._errors import (
    AddressInUse,
    AddressInvalid,
    AlreadyReplied,
    BadBody,
    Busy,
    Forked,
    Gone,
    HttpdownError,
    InvalidArgument,
    IOFailed,
    Killed,
    OutOfResources,
    PermissionDenied,
    RestartFailed,
    Status,
    Stopped,
    TimedOut,
    TlsError,
    TooLarge,
    TooSlow,
    Unanswered,
    Unsupported,
    WouldDeadlock,
)
from ._ffi import VERSION as __version__
from ._ffi import ConnState, LogLevel, Phase, RequestEnd, RestartState
from ._record import RequestRecord
from ._request import Address, Credentials, Headers, Query, Reply, Request, content_type
from ._restart import Restart, RestartInfo, no_notify, restart_info, restart_ready
from ._server import Report, Server, Stats, run, run_all
from ._stream import Stream
from ._tls import Certificate, Tls, TlsInfo

__all__ = [
    "Address",
    "AddressInUse",
    "AddressInvalid",
    "AlreadyReplied",
    "BadBody",
    "Busy",
    "Certificate",
    "ConnState",
    "Credentials",
    "Forked",
    "Gone",
    "Headers",
    "HttpdownError",
    "IOFailed",
    "InvalidArgument",
    "Killed",
    "LogLevel",
    "MockClock",
    "OutOfResources",
    "PermissionDenied",
    "Phase",
    "Query",
    "Reply",
    "Report",
    "Request",
    "RequestEnd",
    "RequestRecord",
    "Restart",
    "RestartFailed",
    "RestartInfo",
    "RestartState",
    "Server",
    "Stats",
    "Status",
    "Stopped",
    "Stream",
    "TimedOut",
    "Tls",
    "TlsError",
    "TlsInfo",
    "TooLarge",
    "TooSlow",
    "Unanswered",
    "Unsupported",
    "WouldDeadlock",
    "__version__",
    "content_type",
    "no_notify",
    "restart_info",
    "restart_ready",
    "run",
    "run_all",
]
