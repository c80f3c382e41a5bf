"""The WebSocket examples, as clients see them: websocket.py. The Autobahn cases check what RFC 6455 asks for."""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import unittest

import kosoku
import websockets.asyncio.client
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATIENCE = 60  # seconds that nothing here takes unless it hangs
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
# Those of limits (9) take minutes, and those of compression (12, 13) test the libraries of the examples.
EXCLUDED = ["9.*", "12.*", "13.*"]


def frame(opcode, payload=b"", final=True, masked=True):
    """A short frame of a client."""
    head = bytes([opcode | 0x80 * final, len(payload) | 0x80 * masked])
    return head + (bytes(4) if masked else b"") + payload


def close_frame(code):
    """A Close of the server."""
    return b"\x88\x02" + struct.pack("!H", code)


class Program:
    """A running example."""

    def __init__(self, command):
        env = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "bindings", "python")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        banner = self.process.stdout.readline()
        self.address = re.match(r"serving on (?:http://)?(127\.0\.0\.1:\d+)", banner)[1]
        self.url = f"ws://{self.address}/"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def dial(self):
        host, port = self.address.split(":")
        return contextlib.closing(socket.create_connection((host, int(port)), timeout=PATIENCE))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """The exit status, and the last line that was printed."""
        line = self.process.stdout.read().splitlines()[-1]
        return self.process.wait(PATIENCE), line


def request(changes=(), method="GET"):
    fields = {
        "Host": "test",
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "WebSocket",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    fields.update(changes)
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"{method} /chat HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def head(client):
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            raise AssertionError(f"the head has no end: {data!r}")
        data += byte
    return data.decode().lower()


def exactly(client, length):
    data = b""
    while len(data) < length:
        piece = client.recv(length - len(data))
        if not piece:
            raise AssertionError(f"{length} bytes were to come: {data!r}")
        data += piece
    return data


class Echo:
    """What each example does; a subclass says which."""

    def start(self, stop_timeout="30"):
        raise NotImplementedError

    def killed(self, line):
        """How many connections were killed, by the last line."""
        raise NotImplementedError

    @contextlib.contextmanager
    def session(self, server, early=b""):
        with server.dial() as client:
            client.sendall(request() + early)
            self.assertIn(f"sec-websocket-accept: {ACCEPT}\r\n".lower(), head(client))
            yield client

    def test_autobahn_finds_nothing(self):
        with self.start() as server:
            # It raises if a case fails.
            results = asyncio.run(kosoku.run_fuzzingclient(server.url, None, EXCLUDED, concurrency=4))
            self.assertGreaterEqual(len(results), 247)
            server.stop()
            self.assertEqual(server.end()[0], 0)

    def test_what_is_no_handshake_is_told_why(self):
        with self.start() as server, server.dial() as client:
            for status, changes in (
                (426, {"Upgrade": None, "Connection": "keep-alive"}),
                (426, {"Upgrade": "h2c"}),
                (426, {"Upgrade": "xwebsocket"}),
                (426, {"Sec-WebSocket-Version": "8"}),
                (426, {"Sec-WebSocket-Version": None}),
                (400, {"Sec-WebSocket-Key": None}),
                (400, {"Sec-WebSocket-Key": ""}),
                (400, {"Sec-WebSocket-Key": base64.b64encode(bytes(15)).decode()}),
                (400, {"Sec-WebSocket-Key": base64.b64encode(bytes(17)).decode()}),
                (400, {"Sec-WebSocket-Key": "!" * 24}),
            ):
                with self.subTest(changes):
                    # The connection goes on.
                    client.sendall(request(changes))
                    answer = head(client)
                    self.assertTrue(answer.startswith(f"http/1.1 {status} "), answer)
                    self.assertIn("sec-websocket-version: 13\r\n", answer)
                    exactly(client, int(re.search(r"content-length: (\d+)", answer)[1]))
            client.sendall(request({"Content-Length": "0"}, method="POST"))
            self.assertTrue(head(client).startswith("http/1.1 400 "))

    def test_bytes_behind_the_handshake_are_not_lost(self):
        early = frame(9, b"ping") + frame(1, b"early") + frame(1, b"in two ", final=False)
        with self.start() as server, self.session(server, early) as client:
            self.assertEqual(exactly(client, 13), b"\x8a\x04ping\x81\x05early")
            client.sendall(frame(0, b"pieces"))
            self.assertEqual(exactly(client, 15), b"\x81\x0din two pieces")

    def test_a_real_client_is_served(self):
        with self.start() as server:
            with websockets.sync.client.connect(server.url, max_size=None) as client:
                for message in ("", "\u00e4\u20ac\U0001f600", b"", bytes(range(256)), "x" * 70_000, bytes(5_000_000)):
                    client.send(message)
                    self.assertEqual(client.recv(PATIENCE), message)
                client.send(["in ", "three ", "pieces"])
                self.assertEqual(client.recv(PATIENCE), "in three pieces")
                self.assertTrue(client.ping().wait(PATIENCE))
                client.close(4000, "enough")
            self.assertEqual(client.protocol.close_rcvd.code, 4000)

    def test_what_is_against_the_protocol_is_told(self):
        with self.start() as server:
            for code, sent in (
                (1002, frame(1, b"x", masked=False)),
                (1002, frame(3)),
                (1007, frame(1, b"\xff")),
                (1009, b"\x82\xff" + struct.pack("!Q", 1 << 30) + bytes(17 << 20)),
                # Some give no reason.
                (None, frame(9, final=False)),
                (None, b"\x89\xfe" + struct.pack("!H", 126) + bytes(4)),
            ):
                with self.subTest(sent[:20]), self.session(server) as client:
                    with contextlib.suppress(ConnectionError):  # The rest may come too late.
                        client.sendall(sent + b"and more that nobody reads")
                    kind, length = exactly(client, 2)
                    self.assertEqual(kind, 0x88)
                    if code is not None:
                        self.assertEqual(exactly(client, length)[:2], struct.pack("!H", code))

    def test_a_client_that_sends_and_does_not_read_fills_no_memory(self):
        with self.start() as server, self.session(server) as client:
            client.settimeout(0.5)
            sent, message = 0, b"\x82\xff" + struct.pack("!Q", 1 << 20) + bytes(4) + bytes(1 << 20)
            with self.assertRaises(TimeoutError):
                while sent < 200 << 20:
                    sent += client.send(message[sent % len(message) :])
            with open(f"/proc/{server.process.pid}/statm", encoding="ascii") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.assertLess(resident, 150 << 20)

    def test_a_stop_says_going_away_to_all(self):
        async def run(server):
            connect = [websockets.asyncio.client.connect(server.url, open_timeout=PATIENCE) for _ in range(200)]
            clients = await asyncio.gather(*connect)
            for client in clients:
                await client.send("hello")
                self.assertEqual(await client.recv(), "hello")
            # Some clients are gone.
            for client in clients[:10]:
                client.transport.abort()
            server.stop()
            for client in clients[10:]:
                with self.assertRaises(ConnectionClosed) as closed:
                    await asyncio.wait_for(client.recv(), PATIENCE)
                self.assertEqual(closed.exception.rcvd.code, 1001)

        with self.start() as server:
            asyncio.run(run(server))
            status, line = server.end()
            self.assertEqual((status, self.killed(line)), (0, 0), line)

    def test_messages_on_their_way_are_answered_before_the_close(self):
        with self.start() as server, self.session(server) as client:
            server.stop()
            client.sendall(frame(1, b"hello"))
            answer = exactly(client, 4)
            if answer != close_frame(1001):
                self.assertEqual(answer + exactly(client, 7), b"\x81\x05hello" + close_frame(1001))
            client.sendall(frame(1, b"late") + frame(8, struct.pack("!H", 1001)))
            self.assertEqual(client.recv(1), b"")
            client.close()
            self.assertEqual(server.end()[0], 0)

    def test_a_client_that_does_not_answer_is_killed(self):
        with self.start("0.5") as server, self.session(server) as client:
            server.stop()
            self.assertEqual(exactly(client, 4), close_frame(1001))
            with self.assertRaises(ConnectionResetError):
                client.recv(1)
            status, line = server.end()
            self.assertEqual((status, self.killed(line)), (1, 1), line)


class InC(Echo, unittest.TestCase):
    def start(self, stop_timeout="30"):
        command = [os.path.join(ROOT, "build", "websocket"), "-addr", "127.0.0.1:0"]
        return Program([*command, "-stop-timeout", f"{stop_timeout}s"])

    def killed(self, line):
        report = json.loads(line)
        self.assertEqual(report["conns_killed"], report["hijacked_killed"])
        return report["conns_killed"]


class InPython(Echo, unittest.TestCase):
    def start(self, stop_timeout="30"):
        return Program([sys.executable, os.path.join(ROOT, "examples", "websocket.py"), "127.0.0.1:0", stop_timeout])

    def killed(self, line):
        return int(re.fullmatch(r"\d+ sessions, (\d+) killed", line)[1])


if __name__ == "__main__":
    unittest.main(verbosity=0)
