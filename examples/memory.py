"""How much memory a server has at its peak, and how much goes back when its clients have gone.

memory.py [OPTIONS] COMMAND...: COMMAND starts the server, which prints http://HOST:PORT/, as does
build/hello -addr 127.0.0.1:0. Prints one line for each kind of load, each on a new server that has
had one request: the resident memory (VmRSS, MiB) before, with all clients, at the peak (VmHWM),
when all have gone, and after some seconds more.
"""

import argparse
import re
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import Callable

PATIENCE = 60  # seconds that nothing here takes
REQUEST = b"GET / HTTP/1.1\r\nHost: memory\r\n"


class Server:
    def __init__(self, command: list[str], tls: bool) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        address = re.search(r"://(.+):(\d+)/", self.process.stdout.readline())
        assert address is not None, "the server has not said its address"
        self.port = int(address[2])
        self.context = ssl._create_unverified_context() if tls else None

    def connect(self, number: int, receive_buffer: int = 0) -> socket.socket:
        client = socket.socket()
        client.settimeout(PATIENCE)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.bind((f"127.0.0.{2 + number % 20}", 0))  # each address has some 28,000 ports
        client.connect(("127.0.0.1", self.port))
        return self.context.wrap_socket(client) if self.context else client

    def mebibytes(self, what: str = "VmRSS") -> float:
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(what)) / 1024

    def sockets(self) -> int:
        """How many connections the server has not closed yet."""
        count = 0
        with open("/proc/net/tcp", encoding="ascii") as table:
            for line in table:
                field = line.split()
                count += field[1].endswith(f":{self.port:04X}") and field[3] in ("01", "08")
        return count


def read_answer(client: socket.socket) -> None:
    answer = b""
    while not answer.endswith(b"Hello, World!"):
        piece = client.recv(65536)
        assert piece, f"the server has closed after {answer!r}"
        answer += piece


def in_two_parts(server: Server, count: int, first: bytes, last: bytes) -> list[socket.socket]:
    """All clients send the first part, then all send the last, then all read their answers."""
    clients = [server.connect(number) for number in range(count)]
    for client in clients:
        client.sendall(first)
    for client in clients:
        client.sendall(last)
    for client in clients:
        read_answer(client)
    return clients


def keep_alive(server: Server, count: int) -> list[socket.socket]:
    return in_two_parts(server, count, REQUEST, b"\r\n")


def heads(server: Server, count: int) -> list[socket.socket]:
    fields = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 4000) for number in range(15))
    return in_two_parts(server, count, REQUEST + fields, b"\r\n")


def bodies(server: Server, count: int) -> list[socket.socket]:
    head = b"POST / HTTP/1.1\r\nHost: memory\r\nContent-Length: 65535\r\n\r\n"
    return in_two_parts(server, count, head + b"a" * 65534, b"a")


def readers(server: Server, count: int) -> list[socket.socket]:
    """Few clients that read nothing of large answers."""
    clients = [server.connect(number, 4096) for number in range(min(count, 600))]
    for client in clients:
        client.sendall(b"GET /bytes/10000000 HTTP/1.1\r\nHost: memory\r\n\r\n")
    for client in clients:
        client.recv(1)
    return clients


LOADS: dict[str, Callable[[Server, int], list[socket.socket]]] = {
    "keep-alive": keep_alive,
    "heads": heads,
    "bodies": bodies,
    "readers": readers,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--loads", default=",".join(LOADS), help="some of: %(default)s")
    parser.add_argument(
        "--after", type=float, default=10, help="seconds after the last has gone (%(default)s)"
    )
    parser.add_argument("--tls", action="store_true", help="the server speaks TLS")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"{'load':<12}{'before':>8}{'with':>8}{'peak':>8}{'gone':>8}{'after':>8}")
    for load in args.loads.split(","):
        server = Server(args.command, args.tls)
        keep_alive(server, 1)[0].close()
        before = server.mebibytes()
        clients = LOADS[load](server, args.connections)
        held = server.mebibytes()
        for client in clients:
            client.close()
        clients.clear()
        deadline = time.monotonic() + PATIENCE
        while server.sockets() and time.monotonic() < deadline:
            time.sleep(0.05)
        peak, gone = server.mebibytes("VmHWM"), server.mebibytes()
        time.sleep(args.after)
        row = (before, held, peak, gone, server.mebibytes())
        print(f"{load:<12}" + "".join(f"{value:8.1f}" for value in row), flush=True)
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 0


if __name__ == "__main__":
    main()
