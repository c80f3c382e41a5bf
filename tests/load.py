"""Clients that send one request after the other to build/grace, each on a connection of its own or on the same one:
load.py [--keeps] [--ca FILE] --clients N PLACE, where PLACE is a port of 127.0.0.1 or the path of a Unix socket.

They begin when they are started, and end with standard input. A line there is a question. It is answered by a line of
JSON when each client has begun and ended another request: how many answers there were since the start, and which
requests have failed since the last question (what has become of each, and how that was seen).

An answer must be whole and right, to the last byte, and its connection must end as the answer has said."""

import argparse
import json
import re
import socket
import ssl
import sys
import threading
import time

PATIENCE = 60  # seconds that nothing here takes unless it hangs
HEAD = re.compile(rb"HTTP/1\.1 200 OK\r\n((?:[a-z-]+: [^\r\n]+\r\n)+)\r\n")
BODY = re.compile(rb"(?:Zero|First|Second) +started at .+ slept for 1000000 nanoseconds from pid \d+\.\n")


# A server that stops closes a connection that has had no request for a second.
IDLE = 0.9


class Failed(Exception):
    """A request that has failed: refused, lost (without a byte of an answer), truncated, or wrong. Or it is late: the
    system did not let the client run, and the server may have closed the idle connection before the request came."""


class Client(threading.Thread):
    def __init__(self, place, keeps, context):
        super().__init__(daemon=True)
        self.place, self.keeps, self.context = place, keeps, context
        self.request = b"GET /sleep/?duration=1ms HTTP/1.1\r\nHost: localhost\r\n"
        self.request += b"\r\n" if keeps else b"Connection: close\r\n\r\n"
        self.connection = None
        self.answered = 0
        self.failed = []
        # Requests that have ended, one way or the other.
        self.turns = 0
        self.start()

    def run(self):
        while True:
            try:
                self.exchange()
                self.answered += 1
            except Failed as failure:
                self.failed.append((failure.args[0], f"{'kept' if self.keeps else 'new'}: {failure.args[1]}"))
                self.close()
            self.turns += 1

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def connect(self):
        self.since = time.monotonic()
        family = socket.AF_UNIX if self.place.startswith("/") else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(self.place if family == socket.AF_UNIX else ("127.0.0.1", int(self.place)))
        except OSError as error:
            connection.close()
            raise Failed("refused", repr(error)) from error
        if self.context is not None:
            try:
                # The end of the connection must be said by TLS.
                connection = self.context.wrap_socket(connection, suppress_ragged_eofs=False)
            except OSError as error:
                connection.close()
                kind = "late" if self.age() > IDLE else "lost"
                raise Failed(kind, f"handshake: {error!r} after {self.age():.3f} s") from error
        self.connection = connection

    def age(self):
        """How long ago the last request was sent, or the connection was begun: it has not been idle for longer."""
        return time.monotonic() - self.since

    def cut(self, got, how):
        """The connection has ended, and so much of the answer was there."""
        kind = "truncated" if got else "late" if self.idle > IDLE else "lost"
        return Failed(kind, f"{how} {self.age():.3f} s after it was sent, {self.idle:.3f} s after the one before")

    def receive(self, got):
        try:
            return self.connection.recv(65536)
        except OSError as error:
            raise self.cut(got, repr(error)) from error

    def exchange(self):
        if self.connection is None:
            self.connect()
        before, self.since = self.since, time.monotonic()
        failed = None
        try:
            self.connection.sendall(self.request)
        except OSError as error:
            failed = error
        # The client may have been held up until then.
        self.idle = time.monotonic() - before
        if failed:
            raise self.cut(b"", repr(failed)) from failed
        got = b""
        while b"\r\n\r\n" not in got:
            more = self.receive(got)
            if not more:
                raise self.cut(got, "the end")
            got += more
        head = HEAD.match(got)
        length = head and re.search(rb"^content-length: (\d+)\r$", head[1], re.M)
        if not length:
            raise Failed("wrong", repr(got))
        end = head.end() + int(length[1])
        while len(got) < end:
            more = self.receive(got)
            if not more:
                raise self.cut(got, f"{len(got)} of {end} bytes")
            got += more
        if len(got) > end or not BODY.fullmatch(got, head.end()):
            raise Failed("wrong", repr(got))
        closes = re.search(rb"^connection: close\r$", head[1], re.M) is not None
        if not closes and not self.keeps:
            raise Failed("wrong", f"the connection stays open: {got!r}")
        if closes:
            more = self.receive(got)
            if more:
                raise Failed("wrong", f"behind the answer: {more!r}")
            self.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keeps", action="store_true")
    parser.add_argument("--ca")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("place")
    args = parser.parse_args()
    context = None
    if args.ca is not None:
        context = ssl.create_default_context(cafile=args.ca)
        context.check_hostname = False
    clients = [Client(args.place, args.keeps, context) for _ in range(args.clients)]
    told = [0] * len(clients)
    for _ in sys.stdin:
        # One request is under way now, and may have begun before.
        turns = [client.turns + 2 for client in clients]
        for client, turn in zip(clients, turns):
            while client.turns < turn:
                time.sleep(0.0005)
        failed = []
        for at, client in enumerate(clients):
            now = len(client.failed)
            failed += client.failed[told[at] : now]
            told[at] = now
        answered = sum(client.answered for client in clients)
        print(json.dumps({"answered": answered, "failed": failed}), flush=True)


if __name__ == "__main__":
    main()
