"""The server: its start, its queries and its stop."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import itertools
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import FrameType, TracebackType
from typing import Any, Protocol

from . import _arguments, _exit, _ffi, _reports, _restart, _tls
from ._clock import MockClock
from ._errors import HttpdownError, InvalidArgument, RestartFailed, Status, Stopped
from ._ffi import ConnState, EventKind, LogLevel, Phase, StatKind
from ._record import RequestRecord
from ._request import Address, Request
from ._restart import Restart
from ._stream import Stream
from ._tls import Tls

# The default of `stop_timeout` and `kill_timeout`, in seconds.
_DEFAULT_TIMEOUT = 60.0
_DEFAULT_SECOND_SIGNAL = 0.5
# How systemd, and a restart, tell a program of the sockets that they pass on.
_LISTEN = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "HTTPDOWN_RESTART")
# The most requests that wait in Python, and not in C, which could refuse them. (While there are so
# many, no request is told of events.)
_MOST_WAITING = 1000


class Stats(Protocol):
    """A client of a monitoring system. Called in the events thread, one call at a time.

    The keys are listed in httpdown.h, at `httpdown_stats`.
    """

    def bump_avg(self, key: str, value: float, /) -> object:
        """The monitoring system should take the mean of the values over a period."""

    def bump_sum(self, key: str, value: float, /) -> object:
        """A counter goes up by `value`."""

    def bump_histogram(self, key: str, value: float, /) -> object:
        """The monitoring system should keep the distribution of the values."""

    def bump_time(self, key: str, value: float, /) -> object:
        """A timed action has ended. `value` is its duration in seconds."""


@dataclass(frozen=True)
class Report:
    """The counts of what a server has done, and of what its stop has cost.

    When the server has stopped: requests = served + failed + gone + timed_out + killed, and
    connections = conns_closed + closed_idle + raced + conns_gone + conns_timed_out +
    conns_tls_failed + conns_tls_timed_out + conns_killed.
    """

    phase: Phase
    """The server's phase."""
    status: Status
    """The result of the stop; OK until the stop has ended."""
    stop_duration: float
    """How long the stop has taken so far, in seconds; 0 before the stop begins."""
    connections: int
    """Connections accepted."""
    conns_open: int
    """Connections open now: the sum of the next four, and conns_handshaking."""
    conns_new: int
    """Open connections on which no byte has come yet."""
    conns_active: int
    """Open connections with a request under way."""
    conns_idle: int
    """Open connections between two requests."""
    conns_hijacked: int
    """Open connections that a handler has taken over."""
    conns_closed: int
    """Connections that ended normally: closed by either side, or released by a handler."""
    closed_idle: int
    """Connections that the stop or the idle timeout closed while they were new or idle."""
    raced: int
    """Connections that the stop or the idle timeout closed while a request was on its way."""
    conns_gone: int
    """Connections whose client left in the middle of a request."""
    conns_timed_out: int
    """Connections that were closed because the client was too slow."""
    conns_killed: int
    """Connections that a kill cut."""
    requests: int
    """Requests whose head has been read, and requests that a kill cut before that."""
    served: int
    """Requests whose whole response the kernel has taken; during a stop, the client's kernel."""
    failed: int
    """Requests whose handler failed after the response had begun. The client saw it cut."""
    gone: int
    """Requests whose client left before its response was complete."""
    killed: int
    """Requests that a kill cut, or answered with 503 because nobody had begun to work on them."""
    abandoned: int
    """Requests whose handler still held them when the kill timeout had passed."""
    hijacked_killed: int
    """Connections that a handler had taken over, and that a kill cut."""
    unaccepted: int
    """Connections that still waited to be accepted when their socket had to be closed."""
    bytes_unacked: int
    """Bytes that clients had not acknowledged when their connections ended during the stop."""
    events_dropped: int
    """Events that were dropped because the callbacks were too slow."""
    conns_handshaking: int
    """Open connections whose TLS handshake is not done, or whose PROXY header is to come."""
    conns_tls_failed: int
    """Connections whose TLS handshake failed, or whose client left in it."""
    conns_tls_timed_out: int
    """Connections whose TLS handshake did not come to its end in time."""
    timed_out: int
    """Requests that ended because the client was too slow with the body, or in taking the answer."""
    overdue: int
    """Requests that the program has had for longer than `handler_timeout`; also counted above."""
    successor_pid: int
    """The process that has taken over, if the stop was the end of a restart; otherwise 0."""

    @classmethod
    def _of(cls, raw: _ffi.StopReport) -> Report:
        special = {
            "phase": Phase(raw.phase),
            "status": Status(raw.status),
            "stop_duration": raw.stop_duration_ms / 1000,
        }
        names = (field.name for field in fields(cls))
        return cls(**{n: special[n] if n in special else getattr(raw, n) for n in names})


class _Handle:
    """C's server. It is freed when nobody refers to it any more."""

    def __init__(self, pointer: int | None) -> None:
        self.pointer = pointer

    def __del__(self) -> None:
        _ffi.httpdown_free(self.pointer)


class Server:
    """A server. It serves from its construction until it is stopped, in its own threads.

    As a context manager, the server stops gracefully at the end of the block. A server that is not
    stopped goes on until the main thread ends, even if nobody has a reference to it. Then it is
    stopped gracefully, before `concurrent.futures` takes no more work. If another thread has
    started the server, waits for it, or is in its block, the server goes on until that thread ends,
    unless the thread is a daemon; after the main thread has ended, the server's handlers find
    executors shut down. Any thread may call the methods. In a forked child the methods raise
    Forked, and leaving the block does nothing. Such a child can have no server of its own, unless
    all servers of its parent had been closed before the fork.

    `handler` is called with each Request, in one of `threads` threads. If all threads are busy,
    requests wait. If the handler raises, or returns without an answer, the client gets a 500 (or
    sees the answer cut, if the answer has begun), and the logger "httpdown" gets an error with the
    request's method and path, and the traceback. The handler's result is ignored, except a
    coroutine or a generator, which is also logged as an error. It is no failure if the client has
    left (Gone) or was cut by a kill (Killed): this is logged for debugging, without a traceback. An
    `async def` or a generator function is a TypeError, here and for all other callables, because
    nobody would run it.

    `on_error(request, exception)` is called for each such failure instead of the logger, in the
    handler's thread, before the client gets its 500. So `on_error` may answer, if the handler has
    not. If a handler returns without an answer, the exception is Unanswered. If `on_error` itself
    raises, its exception is logged, and the handler's failure, too.

    `bind` is the address to listen on: "HOST:PORT", or a Unix socket. Several addresses are
    separated by commas. Put an IPv6 address in brackets. Without a host, the server listens on
    every address. With port 0, the kernel chooses the port. "unix:/run/app.sock" is a Unix socket
    at that path, of at most 107 bytes. A socket file on which nobody listens is replaced; a stop
    removes the file. After the path you can say who may connect:
    "unix:/run/app.sock?mode=0660&group=www-data" (the mode is octal; `user` and `group` are names
    or numbers). "unix:@name" is an abstract socket. Default: 127.0.0.1:8080, or nothing if there
    are `fds`.

    If the program was started with listening sockets by systemd's protocol (LISTEN_FDS, LISTEN_PID,
    LISTEN_FDNAMES), a socket that listens at the address of `bind` is taken, and nothing is bound.
    "fd:NAME" takes the socket of that name (FileDescriptorName= in a .socket unit), and never
    binds. A stop treats it as with `fds_shared`. The first server with a `bind` removes the
    variables from `os.environ`, so that no child takes the sockets for its own. A socket on which
    nobody listens is logged as an error, 10 seconds after the first server has started. A restart
    (`restart`) passes its sockets on in the same way, but a stop treats them as the server's own.

    `fds` are descriptors or sockets that already listen. The server owns them from now on, unless
    the constructor raises. `fds_shared`: these sockets outlive this server (systemd, or workers
    that are restarted one by one). The process that keeps a socket must go on accepting, or waiting
    clients are reset. A stop leaves the connections that wait in the sockets' queues to the other
    processes.

    `tls` is how the server speaks TLS, on every connection. A client that speaks HTTP without TLS
    then gets a 400, in plain text. Default: no TLS.

    Durations are in seconds; 0 is no time at all, `math.inf` is no limit:

    - `stop_timeout`: How long a stop waits for open requests to finish before it kills, counted
      from the end of the lame duck. Once half of this time has passed, or 30 seconds, responses say
      Connection: close even to a client that has already sent more requests, because a client that
      never stops pipelining would otherwise never come to its end. Default: 60.
    - `kill_timeout`: How long a kill waits for the handlers of cut requests to return, before it
      abandons these handlers. The end of the server waits as long, but at least a second and in
      real time, for the program's other code on the server's threads (destructors, for example).
      Default: 60.
    - `lame_duck`: How long a stop still accepts connections. During this time `ready` is false and
      responses say Connection: close, so that load balancers and clients go elsewhere. Default: 0.
    - `header_timeout`: How long a request's head may take, from its first byte to its last. After
      this time the client gets a 408, and the connection is closed. Default: 30.
    - `io_threads`: The number of threads that drive connections. Default: one for each processor
      that the process may use.
    - `idle_grace`: How long a stop leaves an idle connection (between two requests) open, so that a
      request that is already on its way is served, and answered with Connection: close. Set more
      than the round trip to the clients. The time starts when the client's kernel has the last
      answer. A new connection gets 4.5 seconds more for each retransmission that its handshake
      needed, because its client would repeat a lost request that late. Default: 1.
    - `quiesce_timeout`: How long a stop still accepts connections whose handshake had begun before.
      This time ends as soon as there are no such connections. It is a part of `stop_timeout`. The
      default gives a handshake that lost a segment two more chances (retransmissions come after 1 s
      and 3 s). Default: 4.
    - `linger_timeout`: How long a connection that the server has closed waits for the client to
      close its side. Without this wait, a reset could destroy the bytes that were sent last. If a
      client has not acknowledged everything that was sent to it, a stop waits longer, up to
      `stop_timeout`. Default: 2.
    - `ready_path`: A path, such as "/healthz", that the server answers itself, even when all
      handlers are busy: with 200 while `ready` is true, then with 503. The methods are GET, HEAD
      and OPTIONS; others get 405. The server compares this path with the path of a request's target
      byte for byte, without the query. Such a request counts like any other in the report. The path
      begins with "/", the rest is visible ASCII, without a query. Default: no path.
    - `lame_duck_min`: The minimum duration of the lame duck, even if no requests come
      (`lame_duck_quiet`). Set the time that a load balancer needs to notice: the interval of its
      checks, times the number of failures that it waits for. At most `lame_duck`. Default: 0.
    - `lame_duck_quiet`: Ends the lame duck early when no request has come for this time, because
      then nobody sends requests here any more. Requests for `ready_path` do not count, nor do
      connections without a request. At most `lame_duck`. Default: never early.
    - `idle_timeout`: How long a connection may be without a request while the server serves:
      between two requests, or before the first. Then the server closes the connection, at most one
      second later. Not 0. By default there is no limit, because a request may be on its way while
      the server closes; then this request is lost (`raced` in the Report). To avoid that, set more
      than the clients' own timeout (for example, a load balancer's timeout for idle connections),
      or tell the clients: `keep_alive_header`. Default: no limit.
    - `keep_alive_header`: True: responses announce the idle timeout, "Keep-Alive: timeout=N", so
      that clients that know this field close an idle connection before the server does. N is
      `idle_timeout` minus `idle_grace`, so that a request that was sent at the last moment still
      comes in time. N is in whole seconds, and at least 1. The field is not added when the
      connection ends, nor to a response that has its own Connection or Keep-Alive field. Default:
      False.
    - `second_signal`: For `run`: how long after the first signal another signal counts as the
      second, which goes straight to the kill; and how long after the second, as the third. A signal
      that comes sooner is taken for a repetition: a process manager signals the whole group, and a
      wrapper in the group forwards the signal, too. 0: at once; `math.inf`: never. If several
      servers run together, the longest of their times counts for all. Default: 0.5.
    - `reuse_port`: True: the sockets of `bind` have SO_REUSEPORT, so that several processes of the
      same user can each listen there with their own socket. The kernel spreads new clients over
      these sockets. A stop makes the kernel send new clients to the other sockets before it closes
      its own. So workers can be restarted one by one, and no client is lost. All processes that
      listen there must set this option, and none of them is told any more that the address is in
      use. It does not apply to `fds`, nor to inherited sockets: their creator sets SO_REUSEPORT.
      Default: False.
    - `reload_on_hup`: True: for `run`: SIGHUP reads the files of `tls` again (certificates, keys,
      CAs, revocation lists), and new connections get what was read. If anything cannot be used, all
      stays as it was, and the log says why. By default, SIGHUP does what it did before, so it
      mostly ends the program. Needs `tls`, with at least one file. Default: False.
    - `body_timeout`: How long a client may keep those waiting who read its request's body. Bytes
      give it time back, a second for each `least_rate` bytes, but never more than this time in all.
      So a client that sends nothing is cut after this time, and one that sends slowly, but at that
      rate, is not. Only the time counts in which somebody waits for the body. Then reading fails
      with TooSlow, the client gets a 408 if no answer has begun, and the connection is closed. Not
      0. Default: 30.
    - `write_timeout`: How long a client may leave its answer untaken, when the kernel can hold no
      more of it. Bytes that the client's kernel acknowledges give it time back, as for
      `body_timeout`. Then the connection is reset, and writing fails with TooSlow. Not 0. Default:
      30.
    - `least_rate`: How many bytes a second a client must send of a body, or take of an answer, so
      that it is not cut by `body_timeout` or `write_timeout`. Default: 240.
    - `body_buffer`: A request whose body is known to be shorter than so many bytes reaches its
      handler when the body is there, so that a slow client occupies no handler. Longer ones, those
      in chunks, and those that the client sends only when it is asked (Expect: 100-continue) reach
      it at once. At most 16 MiB. Default: 65,536.
    - `drain_rate`: How many requests a second are told that the server drains, of those that have
      asked to be told. So the clients of many endless answers do not all connect elsewhere at once.
      All are told before half of `stop_timeout` has passed. Default: 1,000.
    - `proxy_protocol_from`: The peers that must begin each connection with a header of the PROXY
      protocol, version 1 or 2, which says whose connection it is: IP addresses and networks with
      commas between them, and "unix:" for all clients of Unix sockets ("10.0.0.0/8, unix:"). The
      client's address of such a connection is the one in the header, and so is the server's. The
      header comes before TLS, within `header_timeout`. Without it the connection is closed, and the
      log says so. From other peers, such a header is no more than a malformed request. Default:
      nobody.
    - `trusted_proxies`: The proxies whose fields in a request's head are believed, as a list like
      that of `proxy_protocol_from`. Such fields say for whom a request was forwarded:
      `Request.client_addr`. Who asks the server directly could send the same fields, so believe
      only proxies that set them, or remove them. Default: nobody.
    - `forwarded_by`: The fields that `trusted_proxies` set. "x-forwarded": X-Forwarded-For,
      X-Forwarded-Proto and X-Forwarded-Host, which most proxies set; "forwarded": Forwarded (RFC
      7239); "x-real-ip": X-Real-IP. No others are believed, because a proxy passes on what it does
      not know as the client has sent it. Default: x-forwarded.
    - `max_body_size`: The maximum size of a request's body in bytes. If the head announces more,
      the client gets a 413 at once, and no handler sees the request. In chunks, a body is read
      until there is more of it: then reading fails with TooLarge, and the client gets a 413 if no
      answer has begun. Either way, the connection is closed. By default there is no limit, because
      what a body costs is decided where it is read: nothing is kept of it but `body_buffer`.
      Default: no limit.
    - `max_headers`: The maximum number of fields in a request's head. A client that sends more gets
      a 431, and the connection is closed. Another number than 100, which is the default of the
      parser, costs each request an allocation. At most 4,096. The trailers of a body may have as
      many; a body with more is malformed. Default: 100.
    - `max_head_size`: The maximum size of a request's head in bytes: its first line, its fields and
      its empty line. A client that sends more gets a 431, and the connection is closed. The
      trailers of a body may be as large; a body with larger ones is malformed, and so is a body
      with more than 16 KiB of chunk extensions. The default is twice what nginx and Kestrel take.
      At most 16 MiB. Default: 65,536.
    - `max_target_size`: The maximum length of a request's target in bytes, with its query. A client
      that sends more gets a 414, and the connection is closed. A target is a part of a head, so
      `max_head_size` limits it, too. RFC 9110 asks for at least 8,000; the default is about what
      nginx, Apache and Kestrel take. At most 65,534. Default: 8,192.
    - `max_conn_requests`: The number of requests after which a connection ends: the answer to this
      request says Connection: close. A client that has already sent more requests is answered up to
      twice this number. A limit spreads clients anew over the servers behind a balancer, and gives
      back what a connection has come to hold. Default: no limit.
    - `max_conns`: The maximum number of open connections. While so many are open, accepting pauses,
      and new clients wait in the kernel's queue; they are accepted when others end. A stop accepts
      them beyond this number, as always. Set less than the process has descriptors. With this
      limit, `idle_timeout` should be set, too, or idle clients keep others out. Default: no limit.
    - `max_client_conns`: The maximum number of open connections from one IP address; of IPv6, from
      one /64, because a client has mostly all of these. A connection beyond it gets a 503 with
      Retry-After at once, and is closed; with TLS it is closed without a word. Clients of Unix
      sockets are not limited. Many clients may share an address: behind one router, or one proxy.
      Default: no limit.
    - `max_queued`: The maximum number of requests that wait for a handler (pool), or to be taken
      (queue), while no thread is free. A request beyond it gets a 503 with Retry-After at once, and
      its connection goes on. By default all wait, and when more come than can be answered, all wait
      ever longer. Default: no limit.
    - `tcp_backlog`: How many connections may wait to be accepted, on each TCP socket of `bind`. The
      kernel caps the number at `net.core.somaxconn`, which is 4,096 since Linux 5.4. At most
      65,535. This and the options below do not apply to `fds`, nor to inherited sockets: their
      creator sets them up. Default: 4,096.
    - `v6_only`: True: a socket that listens on all addresses (`:8080`, `[::]:8080`) takes IPv6
      only. By default it takes IPv4, too. Set this if another socket is to take IPv4 on the same
      port. Default: False.
    - `tcp_keepalive`: After this silence, the kernel asks a client four times whether it is still
      there (SO_KEEPALIVE), and gives the connection up after as long again. So a connection whose
      client is gone without a word does not stay for ever, whatever is done with it (after an
      upgrade, say). From 1 second to 32,767 seconds, in whole seconds. Default: never.
    - `tcp_user_timeout`: How long what was sent may stay without an acknowledgement, before the
      kernel gives the connection up (TCP_USER_TIMEOUT). The system's own limit is about 15 minutes.
      `write_timeout` is mostly the better choice: it also cuts clients that acknowledge, and do not
      read. From 1 second to 32,767 seconds. Default: the system's.
    - `receive_buffer`: The size of a TCP connection's receive buffer (SO_RCVBUF). The kernel
      doubles the number, and caps it at `net.core.rmem_max`. A fixed buffer no longer grows with a
      fast client, so set it only to save memory. At most 1 GiB. Default: the system's, which grows.
    - `send_buffer`: The size of a TCP connection's send buffer (SO_SNDBUF), like `receive_buffer`;
      its cap is `net.core.wmem_max`. At most 1 GiB. Default: the system's, which grows.
    - `abort_on_close`: True: a client that has closed its side of the connection (a FIN; with TLS,
      `close_notify`) while its request is answered counts as gone. So a handler that waits for
      something else, as in a long poll, learns at once that its client has left, and not when it
      answers. By default such a client still gets its answer, because it may only have closed its
      half: `nc -N`, `socat` and some libraries do so after the request, browsers and curl never do.
      The option of this name in `haproxy` does the same, and nginx does it always. Default: False.
    - `handler_timeout`: How long a request may be with the program before it counts as overdue. Its
      time begins when it is handed over (to the pool, the queue, the handler or the service), so it
      has its wait for a thread in it, but not that for a short body (`body_buffer`). The time ends
      when the program has given the whole answer: an answer without an end is overdue, too. This is
      advice: nothing is cut, and the answer is as good as before. An overdue request is counted
      (`overdue` in the Report, the statistic `handler.overdue`), now and then logged with its
      method and target, and told to those who have asked. By default there is no limit, because
      none fits both a page and a long poll, and because it costs each request a clock and an
      allocation. Not 0. Default: never.
    - `trim_memory`: True: when most of many busy connections have come to rest or gone, the memory
      that they used goes back to the system: some seconds later, and at most once a minute, a
      thread of the server calls `malloc_trim`. By default this memory stays with the allocator of
      the process, which uses it for what comes next. The call looks through the whole heap of the
      process, and other threads that allocate may wait meanwhile: some 40 ms for 240 MB to give
      back, and up to a second in a heap of gigabytes that has many small holes. So set this in a
      program that mostly serves HTTP. Only with glibc. Default: False.
    - `canary`: The target of a request, such as "/healthz?deep", by which a new process proves at a
      restart that it works. Before it says that it is ready, and before any client comes, it sends
      itself a GET past the sockets, without TLS. An answer with a status below 400, complete, is a
      success; anything else makes the restart fail, and an answer that does not come does so when
      the time to get ready is over. Handlers see an ordinary request, from an unnamed Unix socket;
      the report counts it. Default: no request.

    The observers `stats`, `on_conn_state(server, conn_id, state, peer)`, `on_phase(server, phase)`,
    `on_log(level, text)` and `on_done(record)` are called for events, one after the other, in one
    thread, which serves no requests. So a slow observer delays only later events. (Only of a
    restart that was refused, another thread tells.) Exceptions of observers are logged. Without an
    `on_log`, the library's messages (for example, that accepting pauses because there are no
    descriptors) also go to the logger "httpdown".

    `on_done` is called with a RequestRecord for each request that has ended, for an access log:
    `on_done=lambda record: print(record.combined_log())`. Every request of the Report is told
    exactly once, unless the observers are so slow that events are dropped (`events_dropped`). So a
    probe of `ready_path` is told, and bytes that are no request (400, 408) are not. While the
    server serves, a request has ended when the kernel has the whole answer; in a stop, when the
    client's kernel has it, or the connection ends. A client that got its answer before a stop, and
    turns out in the stop not to have it all, was told as served, though the Report counts its
    request as gone or killed.

    `clock` is for tests: a MockClock for the stop, kill and lame-duck timers. All other durations
    are in real time, including `idle_grace`.

    Raises AddressInUse, AddressInvalid, PermissionDenied, IOFailed, OutOfResources, Forked; with
    `tls`, TlsError (a certificate or a key cannot be used), IOFailed and PermissionDenied (a file
    cannot be read), and Unsupported (the library was built without TLS); ValueError
    (InvalidArgument too) and TypeError; RuntimeError where gevent or eventlet has patched
    `threading`. Blocks only while a host name is looked up.
    """

    def __init__(
        self,
        handler: Callable[[Request], object],
        bind: str | None = None,
        *,
        fds: Iterable[int | socket.socket] = (),
        fds_shared: bool = False,
        tls: Tls | None = None,
        threads: int = 32,
        # options: begin parameters (made from src/options.toml by `make options`)
        stop_timeout: float | None = None,
        kill_timeout: float | None = None,
        lame_duck: float | None = None,
        header_timeout: float | None = None,
        io_threads: int | None = None,
        idle_grace: float | None = None,
        quiesce_timeout: float | None = None,
        linger_timeout: float | None = None,
        ready_path: str | None = None,
        lame_duck_min: float | None = None,
        lame_duck_quiet: float | None = None,
        idle_timeout: float | None = None,
        keep_alive_header: bool = False,
        second_signal: float | None = None,
        reuse_port: bool = False,
        reload_on_hup: bool = False,
        body_timeout: float | None = None,
        write_timeout: float | None = None,
        least_rate: int | None = None,
        body_buffer: int | None = None,
        drain_rate: int | None = None,
        proxy_protocol_from: str | None = None,
        trusted_proxies: str | None = None,
        forwarded_by: str | None = None,
        max_body_size: int | None = None,
        max_headers: int | None = None,
        max_head_size: int | None = None,
        max_target_size: int | None = None,
        max_conn_requests: int | None = None,
        max_conns: int | None = None,
        max_client_conns: int | None = None,
        max_queued: int | None = None,
        tcp_backlog: int | None = None,
        v6_only: bool = False,
        tcp_keepalive: float | None = None,
        tcp_user_timeout: float | None = None,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        abort_on_close: bool = False,
        handler_timeout: float | None = None,
        trim_memory: bool = False,
        canary: str | None = None,
        # options: end parameters
        on_error: Callable[[Request, BaseException], object] | None = None,
        stats: Stats | None = None,
        on_conn_state: Callable[[Server, int, ConnState, Address], object] | None = None,
        on_phase: Callable[[Server, Phase], object] | None = None,
        on_log: Callable[[LogLevel, str], object] | None = None,
        on_done: Callable[[RequestRecord], object] | None = None,
        clock: MockClock | None = None,
    ) -> None:
        _check_threading()
        self._pid = os.getpid()
        self._final: Report | None = None
        # The thread that has started the server, the threads that wait for it, and the threads in
        # its block.
        self._holders = [threading.current_thread()]
        # When the stop and the kill were asked for, and when C's end was seen first.
        self._stop_begun = self._kill_begun = self._ended = math.inf
        self._handler = _reports.plain("handler", handler)
        self._on_error = None if on_error is None else _reports.plain("on_error", on_error)
        # If an observer is None, no event comes for it.
        self._on_conn_state = _reports.plain(
            "on_conn_state", _nobody if on_conn_state is None else on_conn_state
        )
        self._on_phase = _reports.plain("on_phase", _nobody if on_phase is None else on_phase)
        self._on_log = _reports.plain(
            "on_log", _reports.library_said if on_log is None else on_log
        )
        self._on_done = _reports.plain("on_done", _nobody if on_done is None else on_done)
        self._bump: dict[StatKind, Callable[[str, float], object]] = {}
        if stats is not None:
            for kind in StatKind:
                name = f"bump_{kind.name.lower()}"
                self._bump[kind] = _reports.plain(f"stats.{name}", getattr(stats, name))
        self._second_signal = _DEFAULT_SECOND_SIGNAL if second_signal is None else second_signal
        self._reload_on_hup = bool(reload_on_hup)
        wanted = {
            EventKind.STAT: stats,
            EventKind.CONN: on_conn_state,
            EventKind.PHASE: on_phase,
            EventKind.LOG: self._on_log,
            EventKind.DONE: on_done,
        }
        events = sum(kind for kind, observer in wanted.items() if observer is not None)
        if clock is not None and not isinstance(clock, MockClock):
            raise TypeError(f"clock must be a MockClock, not {type(clock).__name__}")
        given = list(fds)
        numbers = [fd.fileno() if isinstance(fd, socket.socket) else fd for fd in given]
        if bind is None and not given:
            bind = "127.0.0.1:8080"
        raw_tls = None if tls is None else _tls.to_c(tls)
        options = _ffi.Options(
            struct_size=ctypes.sizeof(_ffi.Options),
            addr=None if bind is None else _arguments.text("bind", bind),
            fds=(ctypes.c_int * len(given))(
                *(_arguments.number("a descriptor", fd, 0, 2**31 - 1) for fd in numbers)
            ),
            fd_count=len(given),
            fds_shared=bool(fds_shared),
            clock=None if clock is None else clock._pointer,
            tls=None if raw_tls is None else ctypes.addressof(raw_tls),
            # options: begin give (made from src/options.toml by `make options`)
            stop_timeout_ms=_arguments.milliseconds("stop_timeout", stop_timeout),
            kill_timeout_ms=_arguments.milliseconds("kill_timeout", kill_timeout),
            lame_duck_ms=_arguments.milliseconds("lame_duck", lame_duck),
            header_timeout_ms=_arguments.milliseconds("header_timeout", header_timeout),
            io_threads=_arguments.threads("io_threads", io_threads),
            idle_grace_ms=_arguments.milliseconds("idle_grace", idle_grace),
            quiesce_timeout_ms=_arguments.milliseconds("quiesce_timeout", quiesce_timeout),
            linger_timeout_ms=_arguments.milliseconds("linger_timeout", linger_timeout),
            ready_path=_arguments.optional_text("ready_path", ready_path),
            lame_duck_min_ms=_arguments.milliseconds("lame_duck_min", lame_duck_min),
            lame_duck_quiet_ms=_arguments.milliseconds("lame_duck_quiet", lame_duck_quiet),
            idle_timeout_ms=_arguments.milliseconds("idle_timeout", idle_timeout),
            keep_alive_header=bool(keep_alive_header),
            second_signal_ms=_arguments.milliseconds("second_signal", second_signal),
            reuse_port=bool(reuse_port),
            reload_on_hup=bool(reload_on_hup),
            body_timeout_ms=_arguments.milliseconds("body_timeout", body_timeout),
            write_timeout_ms=_arguments.milliseconds("write_timeout", write_timeout),
            least_rate=_arguments.count("least_rate", least_rate),
            body_buffer=_arguments.count("body_buffer", body_buffer),
            drain_rate=_arguments.count("drain_rate", drain_rate),
            proxy_protocol_from=_arguments.optional_text(
                "proxy_protocol_from", proxy_protocol_from
            ),
            trusted_proxies=_arguments.optional_text("trusted_proxies", trusted_proxies),
            forwarded_by=_arguments.optional_text("forwarded_by", forwarded_by),
            max_body_size=_arguments.size("max_body_size", max_body_size),
            max_headers=_arguments.count("max_headers", max_headers),
            max_head_size=_arguments.count("max_head_size", max_head_size),
            max_target_size=_arguments.count("max_target_size", max_target_size),
            max_conn_requests=_arguments.count("max_conn_requests", max_conn_requests),
            max_conns=_arguments.count("max_conns", max_conns),
            max_client_conns=_arguments.count("max_client_conns", max_client_conns),
            max_queued=_arguments.count("max_queued", max_queued),
            tcp_backlog=_arguments.count("tcp_backlog", tcp_backlog),
            v6_only=bool(v6_only),
            tcp_keepalive_ms=_arguments.milliseconds("tcp_keepalive", tcp_keepalive),
            tcp_user_timeout_ms=_arguments.milliseconds("tcp_user_timeout", tcp_user_timeout),
            receive_buffer=_arguments.count("receive_buffer", receive_buffer),
            send_buffer=_arguments.count("send_buffer", send_buffer),
            abort_on_close=bool(abort_on_close),
            handler_timeout_ms=_arguments.milliseconds("handler_timeout", handler_timeout),
            trim_memory=bool(trim_memory),
            canary=_arguments.optional_text("canary", canary),
            # options: end give
            dispatch=_ffi.Dispatch.QUEUE,
            pull_events=events,
        )
        self._kill_timeout = _DEFAULT_TIMEOUT if kill_timeout is None else kill_timeout
        self._longest_stop = (
            (lame_duck or 0.0)
            + (_DEFAULT_TIMEOUT if stop_timeout is None else stop_timeout)
            + self._kill_timeout
        )
        # How many handlers may run, how many do, and requests that wait for one of them to return.
        # The condition also guards `_calls` of requests.
        self._most = _arguments.number("threads", threads, 1, 1 << 16)
        self._running = 0
        self._waiting: collections.deque[Request] = collections.deque()
        self._changed = threading.Condition(threading.RLock())
        # The requests and streams that are to be told of events, by their pointers.
        self._watched: dict[
            tuple[type[Request | Stream], int | None], weakref.ref[Request | Stream]
        ] = {}
        self._is_spare_started = False
        # Observers are called one at a time.
        self._observing = threading.Lock()
        self._numbers = itertools.count()
        self._handle: _Handle | None = _start(options)
        self._addresses = _addresses(self._handle)
        for fd in given:
            if isinstance(fd, socket.socket):
                fd.detach()
        self._threads: list[threading.Thread] = []
        self._begin(self._handle)

    # The server's own threads.

    def _begin(self, handle: _Handle) -> None:
        targets = [self._deliver] + [self._serve] * self._most
        threads = [self._thread(target, handle) for target in targets]
        self._threads += threads
        _exit.stop_at_exit(self)
        try:
            for thread in threads:
                thread.start()
        except BaseException:
            self.kill_begin()
            self.close()
            raise

    def _thread(self, target: Callable[[_Handle], None], handle: _Handle) -> threading.Thread:
        """A thread, which is a daemon.

        Other threads would keep the interpreter from exiting, and so from stopping the server.
        """
        name = f"httpdown-py-{next(self._numbers)}"
        return threading.Thread(target=target, args=(handle,), name=name, daemon=True)

    def _serve(self, handle: _Handle) -> None:
        """The life of a thread that answers requests.

        It takes one request at a time. Several requests would wait behind the first while other
        threads are idle, and fewer calls would save little compared with the cost of the
        interpreter.
        """
        item = _ffi.Item()
        count = ctypes.c_size_t()
        while True:
            self._wait_for_use()
            try:
                _ffi.httpdown_next_item(
                    handle.pointer, _ffi.FOREVER, ctypes.byref(item), 1, ctypes.byref(count)
                )
            except Stopped:
                return
            if count.value == 0:
                continue
            if item.ready != _ffi.Ready.NEW:
                if item.stream:
                    self._happened(Stream, item.stream, _ffi.Ready(item.ready))
                else:
                    self._happened(Request, item.request, _ffi.Ready(item.ready))
                continue
            request: Request | None = self._may_answer(Request(item.request, self))
            # When nobody has it any more, it ends. So this thread keeps none while it waits.
            while request is not None:
                self._answer(request)
                request = None
                request = self._waits_next()

    # The thread that is left when all handlers are busy. It tells requests what happens to them.
    # Only C's queue tells that, along with new requests. So if a new request comes out there, the
    # thread puts it aside for the next handler that returns.

    def _watch(
        self, pointer: int, subject: Request | Stream, what: _ffi.Ready, call: Callable[[], object]
    ) -> None:
        """Arranges that `call` is called when it happens; the subject has still to ask C."""
        with self._changed:
            subject._calls.append((what, call))
            self._watched[type(subject), pointer] = weakref.ref(subject)
            handle = self._handle
            if not self._is_spare_started and handle is not None:
                spare = self._thread(self._serve, handle)
                self._threads.append(spare)
                spare.start()
                self._is_spare_started = True
            self._changed.notify_all()

    def _unwatch(self, pointer: int | None, subject: Request | Stream) -> None:
        with self._changed:
            subject._calls.clear()
            self._watched.pop((type(subject), pointer), None)

    def _wait_for_use(self) -> None:
        """Waits while all handlers are busy, unless requests are to be told something."""
        if not self._is_spare_started:
            return
        with self._changed:
            while self._running >= self._most and (
                not self._watched or len(self._waiting) >= _MOST_WAITING
            ):
                self._changed.wait()

    def _may_answer(self, request: Request) -> Request | None:
        """The request, or None if it has to wait, because all handlers are busy."""
        with self._changed:
            if self._running >= self._most:
                self._waiting.append(request)
                return None
            self._running += 1
            return request

    def _waits_next(self) -> Request | None:
        """A handler has returned. Gives the next request that waits for that."""
        while True:
            with self._changed:
                self._changed.notify_all()
                if not self._waiting:
                    self._running -= 1
                    return None
                request = self._waiting.popleft()
            try:
                if not request.cancelled:
                    return request
            except HttpdownError:
                pass
            # Nobody has begun to work on it, and nobody would get the answer.
            with contextlib.suppress(HttpdownError):
                request.abort()

    def _happened(
        self, kind: type[Request | Stream], pointer: int | None, ready: _ffi.Ready
    ) -> None:
        """Tells a request or a stream, unless it has ended, what has happened to it."""
        with self._changed:
            known = self._watched.get((kind, pointer))
            subject = None if known is None else known()
            if subject is None:
                return
            due = [call for what, call in subject._calls if what & ready]
            subject._calls[:] = [(what, call) for what, call in subject._calls if not what & ready]
            if subject._calls and not ready & _ffi.Ready.GONE:
                subject._order_again()
            else:
                self._unwatch(pointer, subject)
        request = subject if isinstance(subject, Request) else None
        for call in due:
            try:
                _reports.returned("on_cancel or on_drain", call(), request)
            except BaseException as error:
                _reports.observer_failed("on_cancel or on_drain", error)

    def _answer(self, request: Request) -> None:
        request._name()
        try:
            result = self._handler(request)
        except BaseException as error:
            _reports.handler_failed(request, error, self._on_error)
        else:
            if request._is_owed():
                why = _reports.unanswered(request, result)
                _reports.handler_failed(request, why, self._on_error)
            else:
                _reports.returned("the handler", result, request)
        request._leave()

    def _deliver(self, handle: _Handle) -> None:
        """The life of the thread that tells the observers what happens."""
        event = _ffi.Event(struct_size=ctypes.sizeof(_ffi.Event))
        while True:
            try:
                _ffi.httpdown_next_event(handle.pointer, _ffi.FOREVER, ctypes.byref(event))
            except Stopped:
                return
            self._observe(*self._observer(event, self))

    def _observe(
        self, told: str, observer: Callable[..., object], arguments: tuple[object, ...]
    ) -> None:
        with self._observing:
            try:
                _reports.returned(told, observer(*arguments))
            except BaseException as error:
                _reports.observer_failed(told, error)

    def _log_error(self, text: str) -> None:
        """Tells the log of something that C does not know."""
        self._observe("on_log", self._on_log, (LogLevel.ERROR, text))

    def _vetoed(self, text: str) -> None:
        """Tells of a restart that the program has refused, as C does of others that fail."""
        bump = self._bump.get(StatKind.SUM)
        if bump is not None:
            for key in ("restart", "restart.failed"):
                self._observe("stats.bump_sum", bump, (key, 1.0))
        self._log_error(text)

    def _observer(
        self, event: _ffi.Event, server: object
    ) -> tuple[str, Callable[..., object], tuple[object, ...]]:
        """The observer for an event: its name, the callable, and the arguments."""
        name = event.name.decode()
        if event.kind == EventKind.STAT:
            kind = StatKind(event.code)
            return f"stats.bump_{kind.name.lower()}", self._bump[kind], (name, event.value)
        if event.kind == EventKind.CONN:
            state = ConnState(event.code)
            peer = Address.parse(name)
            return "on_conn_state", self._on_conn_state, (server, event.conn_id, state, peer)
        if event.kind == EventKind.PHASE:
            return "on_phase", self._on_phase, (server, Phase(event.code))
        if event.kind == EventKind.DONE:
            raw = ctypes.cast(event.record, ctypes.POINTER(_ffi.RequestRecord)).contents
            return "on_done", self._on_done, (RequestRecord._of(raw),)
        text = event.text.decode("utf-8", "replace")
        return "on_log", self._on_log, (LogLevel(event.code), text)

    # The queries and orders of the program.

    @property
    def addresses(self) -> list[Address]:
        """The addresses that the server listens (or listened) on: of `fds`, then of `bind`."""
        return list(self._addresses)

    @property
    def address(self) -> Address:
        """The first of `addresses`."""
        return self._addresses[0]

    @property
    def phase(self) -> Phase:
        """The server's phase; STOPPED also in a forked child. Never blocks."""
        handle = self._handle
        return Phase.STOPPED if handle is None else Phase(_ffi.httpdown_phase(handle.pointer))

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome: False after a stop has begun. Never blocks.

        With `ready_path`, the server answers this question by HTTP.
        """
        handle = self._handle
        return handle is not None and bool(_ffi.httpdown_ready(handle.pointer))

    def report(self) -> Report:
        """The current counts. May be called at any time. Never blocks. Raises Forked."""
        handle = self._handle
        if handle is None:
            assert self._final is not None
            return self._final
        raw = _ffi.StopReport(struct_size=ctypes.sizeof(_ffi.StopReport))
        _ffi.httpdown_report(handle.pointer, ctypes.byref(raw))
        return Report._of(raw)

    def reload_tls(self, tls: Tls | None = None) -> None:
        """Gives new connections these certificates and keys, and these checks of clients.

        Open connections keep theirs. Everything is checked first, and changes together or not at
        all: if the call raises, nothing has changed. `handshake_timeout` and `handshakes` stay as
        they were when the server began. So do ticket keys, unless `tls` has some. Blocks only to
        read the files.

        Without `tls`, the files of the settings that the server has are read again, because they
        were renewed in their places. What is in memory stays as it is. The log (`on_log`) then says
        what came of it, too. The option `reload_on_hup` has `run` do this on SIGHUP.

        Raises TlsError (something cannot be used), IOFailed and PermissionDenied (a file cannot be
        read), Unsupported (the server does not speak TLS; without `tls`: nothing is from files),
        Stopped (the server was closed), Forked; ValueError (InvalidArgument too) and TypeError.
        """
        raw = None if tls is None else _tls.to_c(tls)
        handle = self._handle
        if handle is None:
            raise _ffi.failure(Status.STOPPED)
        why = ctypes.create_string_buffer(512)
        status = _ffi.httpdown_tls_reload(
            handle.pointer, None if raw is None else ctypes.byref(raw), why, ctypes.sizeof(why)
        )
        if status != Status.OK:
            raise _ffi.failure(status, why.value.decode("utf-8", "replace"))

    def restart(self, restart: Restart | None = None) -> int:
        """Restarts the program without a loss. Returns the new process, when it has taken over.

        The program is started as a new process, which does what this one did: it starts servers
        with the same `bind`, and gets the listening sockets of all servers of this process. When it
        serves all of them, both processes accept connections for `probation`. If the new process
        ends or hangs before that is over, it is ended, and this one goes on as before: it has never
        ceased to accept. Then the call raises RestartFailed, whose text has the traceback of the
        new process. Only the connections that a failed process had accepted are lost; the text says
        how many they were.

        Whoever connects after the return comes to the new process. All servers of this one stop,
        without a lame duck: they finish their requests (`wait`), and the Report has
        `successor_pid`. `on_log` and the statistics of this server tell of the restart.

        Blocks as long as the new process needs, at most about `ready_timeout` + `probation`. Any
        thread may make this call, also a handler. Ctrl-C only ends the waiting: the restart goes
        on.

        Raises RestartFailed; Busy (a restart is under way, or was a success; this process has not
        taken over from its own predecessor yet; too many earlier processes still drain), Stopped (a
        stop was asked for), Unsupported (this is the first process of a container, or a service of
        systemd that is not of Type=notify), OutOfResources, Forked; TypeError.
        """
        return _restart.Attempt(self, restart, self._vetoed).wait()

    def restart_begin(self, restart: Restart | None = None) -> None:
        """Like `restart`, but returns as soon as the restart has begun.

        `on_end` is told how it ends, and so is `on_log`. Raises like `restart`, but not
        RestartFailed.
        """
        _restart.Attempt(self, restart, self._vetoed).wait_begun()

    def stop_begin(self) -> None:
        """Begins the stop and returns at once. A second call does nothing. Raises Forked."""
        handle = self._handle
        if handle is not None:
            self._stop_begun = min(self._stop_begun, time.monotonic())
            _ffi.httpdown_stop_begin(handle.pointer)

    def kill_begin(self) -> None:
        """Goes straight to the kill, whether a stop has begun or not, and returns at once."""
        handle = self._handle
        if handle is not None:
            self._kill_begun = min(self._kill_begun, time.monotonic())
            _ffi.httpdown_kill_begin(handle.pointer)

    def stop(self) -> Report:
        """Stops the server: no new connections; finishes the open requests; returns the result.

        Blocks, at most for lame_duck + stop_timeout + kill_timeout. Other callers, at this time or
        later, wait for the same end and get the same result. Within this time, the call also waits
        for handlers that go on after their answer. Ctrl-C during the call (in the main thread)
        begins the kill, and raises KeyboardInterrupt.

        Raises Killed (requests were cut when the stop timeout had passed), TimedOut (handlers had
        to be abandoned), IOFailed (serving had failed, or a listening socket could not be closed)
        and Forked. In a handler or an observer of this server, the call would wait for itself: it
        begins the stop and raises WouldDeadlock. Call `stop_begin` there instead.
        """
        try:
            self.stop_begin()
            return self.wait()
        except KeyboardInterrupt:
            self.kill_begin()
            raise

    def wait(self, timeout: float | None = None) -> Report:
        """Waits until the server has ended completely, no matter who has stopped it.

        Raises TimeoutError after `timeout` seconds. Otherwise returns and raises like `stop`.
        Ctrl-C only ends the waiting.
        """
        if self._is_in_child():
            raise _ffi.failure(Status.FORKED)
        deadline = math.inf
        if timeout is not None:
            deadline = time.monotonic() + _arguments.seconds("timeout", timeout)
        handle = self._handle
        if self._final is None and handle is not None:
            if threading.current_thread() in self._threads:
                raise _ffi.failure(Status.WOULD_DEADLOCK)
            with self._held():
                final = self._wait(handle, timeout)
                self._join(final, deadline)
            self._final = final
        assert self._final is not None
        if self._final.status != Status.OK:
            failure = _ffi.failure(self._final.status)
            if isinstance(failure, HttpdownError):
                failure.report = self._final
            raise failure
        return self._final

    def _wait(self, handle: _Handle, timeout: float | None) -> Report:
        """Waits for the end of C's server."""
        raw = _ffi.StopReport(struct_size=ctypes.sizeof(_ffi.StopReport))
        try:
            _arguments.in_slices(
                lambda ms: _ffi.httpdown_wait(handle.pointer, ms, ctypes.byref(raw)), timeout
            )
        except HttpdownError:
            # The report is written only if the server has ended. Then the report has the result.
            if raw.phase != Phase.STOPPED:
                raise
        self._ended = min(self._ended, time.monotonic())
        return Report._of(raw)

    def _join(self, final: Report, deadline: float) -> None:
        """Waits for our threads. All requests have ended, so handlers and observers return soon.

        Waits only as long as the stop may take, because the work that a handler does after its
        answer must not delay the stop. Handlers that C has abandoned have already had their time.
        """
        if final.status == Status.TIMED_OUT:
            return
        for thread in list(self._threads):
            while thread.is_alive():
                # Calculated again each time, because a kill may come meanwhile.
                bound = min(
                    self._stop_begun + self._longest_stop,
                    self._kill_begun + self._kill_timeout,
                    self._ended + self._kill_timeout,
                )
                now = time.monotonic()
                if now >= bound:
                    return
                if now >= deadline:
                    raise _ffi.failure(Status.WOULD_BLOCK)
                thread.join(min(bound - now, deadline - now, _arguments.SLICE))

    def run(
        self,
        started: Callable[[Server], object] | None = None,
        *,
        restart: Restart | None = None,
        restart_on_hup: bool = False,
    ) -> Report:
        """Serves until SIGTERM or SIGINT, and stops: for programs that do nothing else.

        A second signal goes straight to the kill, unless it comes within `second_signal` of the
        first. A third signal has the effect that it had before this call. The earlier actions of
        the signals are restored at the end. In a forked child the signals have their earlier
        effect, and do not stop the parent. `started` is called when the signals are caught; this is
        the moment to tell others about the server. During the run the thread takes the signals,
        even if it blocks them. If SIGINT is ignored, it stays ignored (a shell that is not
        interactive ignores it for programs in the background); SIGTERM always stops. Only in the
        main thread. `restart` and `restart_on_hup` are those of `httpdown.run`.

        A signal that comes before this call has its usual effect: SIGTERM ends the program, and
        cuts the requests that the server has by then, because the server serves from its
        construction on. `httpdown.run` leaves no such gap.

        Returns and raises like `stop`. Also raises Stopped if the server has been stopped and
        somebody has waited for its end, and ValueError in another thread.
        """
        self._check_serves()
        if started is not None:
            _reports.plain("started", started)
        restarts = _RestartSignals(restart, restart_on_hup, self._reload_on_hup)
        with _RunSignals(int(self._reload_on_hup)) as signals, restarts:
            signals.serve([self])
            restarts.serve([self])
            if started is not None:
                started(self)
            _restart.run_ready()
            return self.wait()

    def close(self) -> None:
        """Stops the server like `stop`, but does not report the result, and frees C's memory.

        After this call you can still ask the server for the result. In a handler or an observer of
        this server, the call returns at once, and the rest follows. In a forked child the call does
        nothing.
        """
        if self._is_in_child():
            return
        self.stop_begin()
        if threading.current_thread() in self._threads:
            return
        with contextlib.suppress(HttpdownError):
            self.stop()
        self._handle = None

    def _is_in_child(self) -> bool:
        return os.getpid() != self._pid

    def _check_serves(self) -> None:
        """Raises Stopped if somebody has been told of the end, because then nothing serves.

        If nobody knows of the end yet, because a handler has begun the stop, the call is no
        mistake. Raises Forked in a forked child, where nothing serves either.
        """
        if self._is_in_child():
            raise _ffi.failure(Status.FORKED)
        if self._final is not None:
            raise _ffi.failure(Status.STOPPED)

    def __enter__(self) -> Server:
        """Raises Stopped if the server was stopped and somebody has waited for its end; Forked."""
        self._check_serves()
        self._holders.append(threading.current_thread())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops. An exception of the block has priority over an exception of the stop."""
        try:
            if not self._is_in_child():
                self.stop()
        except KeyboardInterrupt:
            self.kill_begin()
            raise
        except HttpdownError:
            if error is None:
                raise
        finally:
            self._let_go()
            self.close()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        self._holders.append(threading.current_thread())
        try:
            yield
        finally:
            self._let_go()

    def _let_go(self) -> None:
        # The thread is not in the list if another thread entered the block.
        with contextlib.suppress(ValueError):
            self._holders.remove(threading.current_thread())

    def __repr__(self) -> str:
        return f"<httpdown.Server {self.address} {self.phase.name}>"


def run(
    handler: Callable[[Request], object],
    bind: str | None = None,
    *,
    started: Callable[[Server], object] | None = None,
    restart: Restart | None = None,
    restart_on_hup: bool = False,
    **options: Any,
) -> Report:
    """Serves until SIGTERM or SIGINT (Ctrl-C), and stops. Most programs need only this.

    Like `Server(handler, bind, **options)` and its `run`, but the signals are caught before the
    server exists. So no signal is lost, and no signal cuts a request: a signal that comes before
    the server listens stops the server as soon as it listens. `started(server)` is called when the
    server serves; this is the moment to tell others about the server. A second signal goes straight
    to the kill, unless it comes within `second_signal` of the first. A third signal has the effect
    that it had before this call. The earlier actions of the signals are restored at the end, and
    also apply in a forked child. Only in the main thread.

    SIGUSR2 restarts the program, as `restart` says (`Server.restart`), if its action is the default
    one, which would end the program. `restart_on_hup`: so does SIGHUP; then `reload_on_hup` must
    not be set. A restart that fails is logged (`on_log`), and the run goes on. After one that has
    succeeded, the process finishes its requests and returns; SIGTERM and SIGINT do nothing more,
    because a process manager sends them to all processes, and the end is certain by `stop_timeout`.
    The new process is ready when it serves all sockets that it was given, whichever threads start
    the servers. With `Restart(drop_unclaimed=True)`, all of them must serve when `started` returns.

    Returns the report of the server. Blocks until the server has ended. Raises what `Server`
    raises; like `Server.stop`, Killed, TimedOut and IOFailed, which have the report in `report`;
    and ValueError in another thread. If `started` raises, the server is stopped, and this call
    raises the exception.
    """
    if started is not None:
        _reports.plain("started", started)

    def all_started(servers: list[Server]) -> None:
        if started is not None:
            started(servers[0])

    arguments = {"handler": handler, "bind": bind, **options}
    [report] = _run([arguments], all_started, restart, restart_on_hup)
    return report


def run_all(
    servers: Iterable[Mapping[str, Any]],
    *,
    started: Callable[[list[Server]], object] | None = None,
    restart: Restart | None = None,
    restart_on_hup: bool = False,
) -> list[Report]:
    """Like `run`, for several servers. Each of `servers` has the arguments of one `Server`.

    httpdown.run_all([
        {"handler": hello, "bind": "0.0.0.0:8080"},
        {"handler": metrics, "bind": "127.0.0.1:9090", "threads": 2},
    ])

    The signals are caught before the first server exists. The first signal stops all servers at the
    same time, and a second one kills all. Of `second_signal`, the longest counts, so nothing is cut
    earlier than any server permits. SIGHUP is for every server that has set `reload_on_hup`.
    `started(servers)` is called when all servers serve. SIGUSR2 restarts all of them together, as
    `restart` and `restart_on_hup` say.

    Returns the reports of the servers, in the same order, when all have ended. A server that is
    stopped in another way (by `stop_begin` in a handler, for example) ends alone, and the others go
    on. But if a server fails, the others are stopped, too. If a server cannot be started, the
    servers that have started are stopped like by a signal, and this call raises the exception; its
    text (of other exceptions than HttpdownError: its note, since Python 3.11) names the server.

    Raises like `run`. Of several results, the worst counts: an error such as IOFailed, then
    TimedOut, then Killed. Each server of `started` also has its own `report`. ValueError also if
    there are no servers.
    """
    if started is not None:
        _reports.plain("started", started)
    all_arguments = [dict(arguments) for arguments in servers]
    return _run(all_arguments, started, restart, restart_on_hup, _name)


def _run(
    all_arguments: list[dict[str, Any]],
    started: Callable[[list[Server]], object] | None,
    restart: Restart | None,
    restart_on_hup: bool,
    blame: Callable[[Exception, int, dict[str, Any]], object] = lambda *_: None,
) -> list[Report]:
    if not all_arguments:
        raise ValueError("there are no servers to run")
    hangups = sum(bool(arguments.get("reload_on_hup")) for arguments in all_arguments)
    restarts = _RestartSignals(restart, restart_on_hup, bool(hangups))
    with _RunSignals(hangups) as signals, restarts:
        servers: list[Server] = []
        try:
            try:
                for index, arguments in enumerate(all_arguments):
                    try:
                        servers.append(Server(**arguments))
                    except Exception as error:
                        blame(error, index, arguments)
                        raise
            finally:
                # If one could not be started, a second signal still ends the others.
                signals.serve(servers)
            restarts.serve(servers)
            if started is not None:
                started(servers)
            _restart.run_ready()
            return _wait(servers)
        finally:
            for server in servers:
                server.stop_begin()
            for server in servers:
                server.close()


def _name(error: Exception, index: int, arguments: dict[str, Any]) -> None:
    """Says in an exception which server it is about."""
    bind = arguments.get("bind")
    name = f"server {index}" if bind is None else f"server {index} ({bind})"
    if isinstance(error, HttpdownError):
        error.text = f"{name}: {error.text}"
    elif sys.version_info >= (3, 11):
        error.add_note(name)


def _wait(servers: list[Server]) -> list[Report]:
    """Waits until all servers have ended. Raises the worst of their results."""
    errors: dict[Server, HttpdownError] = {}
    waiting = list(servers)
    while waiting:
        for server in list(waiting):
            try:
                server.wait(_arguments.SLICE if server is waiting[0] else 0)
            except TimeoutError:
                continue
            except HttpdownError as error:
                errors[server] = error
                if min(server._stop_begun, server._kill_begun) == math.inf:
                    # It has failed. So the program is no longer what it was meant to be.
                    for other in servers:
                        other.stop_begin()
            waiting.remove(server)
    if errors:
        badness = {Status.KILLED: 0, Status.TIMED_OUT: 1}
        in_order = [errors[server] for server in servers if server in errors]
        raise max(in_order, key=lambda error: badness.get(Status(error.status), 2))
    return [server.report() for server in servers]


class _Signals:
    """Signals that are caught until this context is left. Then they have their earlier actions."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._old: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._blocked: set[int] = set()

    def _catch(self, number: int) -> None:
        self._old[number] = signal.signal(number, self._on_signal)
        self._blocked |= signal.pthread_sigmask(signal.SIG_UNBLOCK, [number]) & {number}

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self._act(number)
        else:
            # A forked child has no servers, so the signal gets its earlier effect.
            self._pass_on(number)

    def _act(self, number: int) -> None:
        raise NotImplementedError

    def _pass_on(self, number: int) -> None:
        self._restore()
        os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self._old:
            number, action = self._old.popitem()
            # None: Python did not set this action, and cannot set it again.
            signal.signal(number, signal.SIG_DFL if action is None else action)

    def __exit__(self, *_: object) -> None:
        # First block again the signals that were blocked: such a signal must not have its earlier
        # effect now.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
        self._restore()


class _RunSignals(_Signals):
    """While this context is entered, SIGTERM and SIGINT stop the servers, as soon as they exist.

    SIGHUP has those that want it read their TLS files again; `hangups` is their number.
    """

    def __init__(self, hangups: int) -> None:
        super().__init__()
        self._servers: list[Server] | None = None
        self._seen = 0
        # When the last signal came that counted. A signal soon after it is a repetition.
        self._last = -math.inf
        self._pause = 0.0
        # For each server that wants it: True for each SIGHUP; False at the end. (`put` may be
        # called in a signal handler.)
        self._hangups: list[queue.SimpleQueue[bool]] = [queue.SimpleQueue() for _ in range(hangups)]

    def __enter__(self) -> _RunSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._catch(number)
        if self._hangups:
            self._catch(signal.SIGHUP)
        return self

    def serve(self, servers: list[Server]) -> None:
        """Sets the servers that signals stop. A signal that has come already stops them, too."""
        self._pause = max((server._second_signal for server in servers), default=0.0)
        self._servers = servers
        if self._seen > 0:
            self._each(Server.stop_begin)
        wanting = [server for server in servers if server._reload_on_hup]
        for server, hangups in zip(wanting, self._hangups):
            # Not joined, because a file system may hang.
            threading.Thread(
                target=_reread_tls, args=(server, hangups), name="httpdown-tls", daemon=True
            ).start()

    def _each(self, order: Callable[[Server], object]) -> None:
        for server in self._servers or ():
            order(server)

    def _act(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._put(True)
            return
        if _restart.has_handed_over():
            return
        now = time.monotonic()
        if self._servers is None:
            # Nothing can be cut yet, so all signals up to now count as one.
            self._seen, self._last = 1, now
            return
        if now - self._last < self._pause:
            return
        self._last = now
        self._seen += 1
        if self._seen == 1:
            self._each(Server.stop_begin)
        elif self._seen == 2:
            self._each(Server.kill_begin)
            if self._pause == 0:
                self._restore()
        else:
            self._pass_on(number)

    def _put(self, is_hangup: bool) -> None:
        for hangups in self._hangups:
            hangups.put(is_hangup)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._put(False)


class _RestartSignals(_Signals):
    """While this context is entered, SIGUSR2 restarts the program, and SIGHUP, if that is wanted.

    A signal that comes before there are servers restarts it as soon as they serve.
    """

    def __init__(self, restart: Restart | None, on_hup: bool, reload_on_hup: bool) -> None:
        if restart is not None and not isinstance(restart, Restart):
            raise TypeError(f"restart must be a Restart, not {type(restart).__name__}")
        if on_hup and reload_on_hup:
            why = "SIGHUP cannot do both: restart_on_hup, and reload_on_hup"
            raise _ffi.failure(Status.INVALID_ARGUMENT, why)
        super().__init__()
        self._restart = restart
        self._on_hup = on_hup
        # True for each signal; False at the end. (`put` may be called in a signal handler.)
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def __enter__(self) -> _RestartSignals:
        if _has_default_action(signal.SIGUSR2):
            self._catch(signal.SIGUSR2)
        if self._on_hup:
            self._catch(signal.SIGHUP)
        return self

    def serve(self, servers: list[Server]) -> None:
        """Sets the servers, one of which restarts the program, and all of them with it."""
        if self._old:
            # Not joined, because a restart takes long. The server's end waits for a restart.
            threading.Thread(
                target=_restart_again,
                args=(servers, self._restart, self._wanted),
                name="httpdown-restarts",
                daemon=True,
            ).start()

    def _act(self, number: int) -> None:
        self._wanted.put(True)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._wanted.put(False)


def _has_default_action(number: int) -> bool:
    if signal.getsignal(number) is not signal.SIG_DFL:
        return False
    # Python does not know of a handler that C has set: `faulthandler.register`, for example.
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            name, _, mask = line.partition(":")
            if name in ("SigCgt", "SigIgn") and int(mask, 16) >> (number - 1) & 1:
                return False
    return True


def _restart_again(
    servers: list[Server], restart: Restart | None, wanted: queue.SimpleQueue[bool]
) -> None:
    while wanted.get():
        # Signals that have come meanwhile count as one.
        while not wanted.empty():
            if not wanted.get():
                return
        server = next((each for each in servers if each.phase is Phase.SERVING), servers[0])
        try:
            server.restart(restart)
            return
        except RestartFailed:
            pass  # The log says it.
        except Exception as error:
            server._log_error(f"restart failed: {error}")


def _reread_tls(server: Server, hangups: queue.SimpleQueue[bool]) -> None:
    while hangups.get():
        # Signals that have come meanwhile count as one.
        while not hangups.empty():
            if not hangups.get():
                return
        with contextlib.suppress(HttpdownError):  # the log says it
            server.reload_tls()


def _check_threading() -> None:
    """Raises RuntimeError where `threading` makes no threads.

    All green threads run in one real thread. The first that waits for a request would block all
    others.
    """
    for library, patcher, asks, names in (
        ("gevent", "gevent.monkey", "is_module_patched", ("threading", "_thread")),
        ("eventlet", "eventlet.patcher", "is_monkey_patched", ("thread",)),
    ):
        # A program that has not imported the patcher has patched nothing.
        is_patched = getattr(sys.modules.get(patcher), asks, None)
        if is_patched is not None and any(map(is_patched, names)):
            raise RuntimeError(
                f"{library} has patched threading, and httpdown needs real threads: "
                "patch all but threads, or start httpdown in a process without the patches"
            )


def _nobody(*_: object) -> None:
    pass


def _start(options: _ffi.Options) -> _Handle:
    pointer = ctypes.c_void_p()
    why = ctypes.create_string_buffer(512)
    inherits = options.addr and os.environ.get("LISTEN_PID") == str(os.getpid())
    status = _ffi.httpdown_serve(
        ctypes.byref(options), ctypes.byref(pointer), why, ctypes.sizeof(why)
    )
    if inherits:
        # C has taken them from its own environment. Python has a copy.
        for name in _LISTEN:
            os.environ.pop(name, None)
    if status != Status.OK:
        raise _ffi.failure(status, why.value.decode("utf-8", "replace"))
    return _Handle(pointer.value)


def _addresses(handle: _Handle) -> list[Address]:
    addresses: list[Address] = []
    buffer = ctypes.create_string_buffer(512)
    # The list ends where no such index exists.
    with contextlib.suppress(InvalidArgument):
        while True:
            _ffi.httpdown_local_addr(handle.pointer, len(addresses), buffer, ctypes.sizeof(buffer))
            addresses.append(Address.parse(buffer.value.decode()))
    return addresses
