"""A WebSocket server that sends each message back, with wsproto (the protocol) and asyncio.

PYTHONPATH=bindings/python python3 examples/websocket.py 127.0.0.1:8080 [STOP_TIMEOUT]    (needs: pip install wsproto)

Each session is a task. When the server drains (SIGTERM, Ctrl-C), each session says Close (1001, going away), and ends
when its client has said Close, too: so its client can go on elsewhere, and nothing is lost.

Browsers let any page connect to any WebSocket. A server that knows its users by cookies must look at Origin.
"""

import asyncio
import base64
import binascii
import contextlib
import signal
import sys

import httpdown
import httpdown.aio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Message, Ping
from wsproto.extensions import PerMessageDeflate
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import LocalProtocolError, generate_accept_token

MAX_MESSAGE = 16 << 20


class Session:
    def __init__(self, stream, extensions):
        self.stream = stream
        self.ws = Connection(ConnectionType.SERVER, extensions)
        self.one_at_a_time = asyncio.Lock()
        self.message, self.size = [], 0

    async def send(self, event):
        async with self.one_at_a_time:
            with contextlib.suppress(LocalProtocolError):  # There is nothing more to say after a Close.
                await self.stream.write(self.ws.send(event))

    async def run(self):
        goodbye = asyncio.create_task(self.say_goodbye())
        try:
            async for data in self.stream:
                self.ws.receive_data(data)
                for event in self.ws.events():
                    await self.take(event)
                if self.ws.state is ConnectionState.CLOSED:
                    break  # Both sides have said Close, or the client has broken the protocol and was told.
        finally:
            goodbye.cancel()
            await asyncio.wait([goodbye])

    async def take(self, event):
        if isinstance(event, (CloseConnection, Ping)):
            await self.send(event.response())
        elif isinstance(event, Message):
            self.message.append(event.data)
            self.size += len(event.data)
            if self.size > MAX_MESSAGE:
                self.message.clear()
                await self.send(CloseConnection(code=1009, reason="too big"))
            elif event.message_finished:
                whole = type(event.data)().join(self.message)
                self.message, self.size = [], 0
                await self.send(Message(data=whole))

    async def say_goodbye(self):
        if await self.stream.wait_draining():
            await self.send(CloseConnection(code=1001))


def refusal(request):
    """The status and the reason, if it is no handshake (RFC 6455, 4.2.1 and 4.2.2)."""
    if not request.asks_for_upgrade or "websocket" not in words(request, "upgrade"):
        return 426, "this is a WebSocket\n"
    if request.headers.get("sec-websocket-version") != "13":
        return 426, "only version 13 is spoken here\n"
    try:
        key = base64.b64decode(request.headers["sec-websocket-key"], validate=True)
    except (KeyError, ValueError, binascii.Error):
        key = b""
    if request.method != "GET" or len(key) != 16:
        return 400, "a handshake is a GET with a key of 16 bytes\n"
    return None


def words(request, name):
    """The words of all fields with this name: lists with commas."""
    return [word.strip().lower() for value in request.headers.get_all(name) for word in value.split(",")]


async def handle(request):
    if (refused := refusal(request)) is not None:
        request.reply(*refused, {"upgrade": "websocket", "sec-websocket-version": "13"})
        return
    headers = {
        "upgrade": "websocket",
        "sec-websocket-accept": generate_accept_token(request.headers["sec-websocket-key"].encode()).decode(),
    }
    extensions = [PerMessageDeflate()]
    agreed = server_extensions_handshake(words(request, "sec-websocket-extensions"), extensions)
    if agreed:
        headers["sec-websocket-extensions"] = agreed.decode()
    async with request.upgrade(headers) as stream:
        await Session(stream, extensions).run()


async def main(bind="127.0.0.1:8080", stop_timeout="10"):
    # `stop_timeout` is how long a client may take for its Close. Sessions are silent for long, so the kernel asks
    # whether their clients live.
    server = httpdown.aio.Server(bind, stop_timeout=float(stop_timeout), tcp_keepalive=60)
    with contextlib.suppress(httpdown.Killed):
        async with server:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, server.stop_begin)
            print(f"serving on {server.address}", flush=True)
            await server.serve(handle, limit=10_000)
    report = server.report()
    print(f"{report.served} sessions, {report.conns_killed} killed", flush=True)
    return report.conns_killed > 0


sys.exit(asyncio.run(main(*sys.argv[1:])))
