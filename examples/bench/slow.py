"""What slow clients do to the others of a server, and when the server cuts them.

slow.py [OPTIONS] 'NAME=COMMAND'...: {addr} in a COMMAND is replaced by the HOST:PORT where the
server shall listen; --nginx adds nginx with its defaults. The server answers any GET, and what else
an attack asks for: GET /bytes/N with N bytes, and POST /upload when it has read the body.

    examples/bench/slow.py 'pool=build/hello -addr {addr}' --nginx

An attack runs in a process of its own, with less priority. A client that behaves sends 200 requests
a second, every tenth on a new connection, and the rest on one: first alone, then from 3 s after the
attack has begun, in turns, --rounds times. In the last round, the attack goes on until the server
has cut all its connections, or for --patience seconds. Server and clients share the processors: as
root, they have more priority than what else runs there.

    p50, p99     latency of the client that behaves, in ms, from when it has sent: alone, and (x)
                 how many times as much in the attack; medians of the rounds
    CPU          what the server takes of it, in ms a second: alone, and in the attack. It is
                 steadier than latencies where other programs run, too
    failed       how many of its requests got no answer
    RSS          resident memory of all processes of the server, in MiB: before, in the first round,
                 and the most in any
    cut          connections of the attack that the server has closed, and how many seconds after
                 the attack's beginning: the first, and the last
    answered     connections of the attack that got a 4xx: mostly a 408. The rest of those that were
                 cut were closed or reset without a word

"transfers" is no attack: it gets and sends 1 GiB, alone, and while 100 clients read nothing and 100
send nothing. Its table has seconds, and the most memory (VmHWM).
"""

import argparse
import contextlib
import os
import resource
import select
import shlex
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LONG = 60.0  # seconds that nothing here takes
SETTLE = 3.0  # seconds between the first connection of an attack and the first measurement
RATE = 200  # requests a second of the client that behaves
GIB = 1 << 30
BIG = 10_000_000  # bytes of an answer that nobody reads

Address = tuple[str, int]


# --- The server ---


class Server:
    def __init__(self, command: str, folder: Path, tls: bool) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address: Address = free.getsockname()
        host, port = self.address
        words = [word.replace("{addr}", f"{host}:{port}") for word in shlex.split(command)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        self.tls = ssl._create_unverified_context() if tls else None
        deadline = time.monotonic() + LONG
        while True:
            try:
                self.connect().close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command!r} does not serve") from None
                time.sleep(0.01)

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        client = connect(self.address, receive_buffer)
        return self.tls.wrap_socket(client) if self.tls else client

    def memory(self, what: str = "VmRSS") -> float:
        """In MiB, of the process and its children."""
        total = 0
        for pid in [self.process.pid, *children(self.process.pid)]:
            with contextlib.suppress(OSError, StopIteration):
                text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
                total += next(
                    int(line.split()[1]) for line in text.splitlines() if line.startswith(what)
                )
        return total / 1024

    def cpu(self) -> float:
        """In ms, of the process and its children."""
        ticks = 0
        for pid in [self.process.pid, *children(self.process.pid)]:
            with contextlib.suppress(OSError):
                fields = (
                    Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
                )
                ticks += int(fields[11]) + int(fields[12])
        return ticks * 1000 / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def nginx(folder: Path) -> str:
    """A command for nginx, with two workers and otherwise its defaults."""
    (folder / "bytes").mkdir()
    with (folder / "bytes" / str(BIG)).open("wb") as file:
        file.truncate(BIG)
    config = folder / "nginx.conf.in"
    config.write_text(f"""daemon off;
pid nginx.pid;
error_log stderr crit;
worker_processes 2;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        listen ADDRESS;
        location / {{ return 200 "Hello, World!"; }}
        location /bytes/ {{ root {folder}; }}
        # What reads a body before it answers.
        location /upload {{ proxy_pass http://ADDRESS/; }}
    }}
}}
""")
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or "nginx"
    script = f"sed s/ADDRESS/$1/ nginx.conf.in >nginx.conf && exec {program} -p . -c nginx.conf"
    return f"sh -c {shlex.quote(f'cd {folder} && {script}')} sh {{addr}}"


# --- Clients ---


def connect(address: Address, receive_buffer: int = 0, own: str = "") -> socket.socket:
    client = socket.socket()
    client.settimeout(LONG)
    if own:
        client.bind((own, 0))  # each address has some 28,000 ports
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect(address)
    return client


class Other:
    """The client that behaves."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.kept: socket.socket | None = None

    def latencies(self, seconds: float) -> tuple[list[float], int]:
        """In milliseconds; and how many requests have failed."""
        latencies, failed = [], 0
        begin = time.monotonic()
        for number in range(int(seconds * RATE)):
            time.sleep(max(0, begin + number / RATE - time.monotonic()))
            sent = time.monotonic()
            try:
                self.ask(number % 10 == 0)
                latencies.append((time.monotonic() - sent) * 1000)
            except OSError:
                failed += 1
                self.kept = None
            if time.monotonic() > begin + seconds * 4:
                break
        return latencies or [float("inf")], failed

    def ask(self, anew: bool) -> None:
        client = connect(self.address) if anew or self.kept is None else self.kept
        client.settimeout(5)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: slow\r\n\r\n")
        answer = b""
        while b"Hello" not in answer:
            piece = client.recv(65536)
            if not piece:
                raise ConnectionError
            answer += piece
        if not anew:
            self.kept = client
        elif client is not self.kept:
            client.close()


# --- Attacks ---

POST = b"POST /upload HTTP/1.1\r\nHost: slow\r\nContent-Length: %d\r\n\r\na"
# How many clients; what each sends at once; what it sends then, each PERIOD seconds; whether it
# never reads.
ATTACKS = {
    "headers": (10_000, b"GET / HTTP/1.1\r\nHost: slow\r\nX-a: ", b"a", False),
    "short bodies": (600, POST % 60_000, b"", False),
    "long bodies": (600, POST % BIG, b"", False),
    "readers": (600, b"GET /bytes/%d HTTP/1.1\r\nHost: slow\r\n\r\n" % BIG, b"", True),
}
PERIOD = 5.0
TESTS = {
    "slowhttptest -H": "-H -i 10",
    "slowhttptest -B": "-B -i 10",
    "slowhttptest -R": "-R",
    "slowhttptest -X": "-X",
}


class Attack:
    """One attack, as its own process sees it."""

    def __init__(self, name: str, address: Address, count: int) -> None:
        _, first, self.then, self.deaf = ATTACKS[name]
        self.begin = time.monotonic()
        self.cut: list[float] = []
        self.answered = self.turn = 0
        self.epoll = select.epoll()
        self.open: dict[int, socket.socket] = {}
        for number in range(count):
            client = connect(address, 4096 if self.deaf else 0, f"127.0.0.{2 + number % 20}")
            client.sendall(first)
            client.setblocking(False)
            self.open[client.fileno()] = client
            # Whoever does not read learns of the end nevertheless.
            self.epoll.register(client, select.EPOLLRDHUP if self.deaf else select.EPOLLIN)

    def go_on(self) -> None:
        """For a tenth of a second."""
        begin = time.monotonic()
        if self.then:
            clients = list(self.open.values())
            share = int(len(clients) / PERIOD / 10) + 1
            for number in range(share):
                with contextlib.suppress(OSError):
                    clients[(self.turn + number) % len(clients)].send(self.then)
            self.turn += share
        for number, _ in self.epoll.poll(0.1):
            self.look(self.open[number])
        time.sleep(max(0, begin + 0.1 - time.monotonic()))

    def look(self, client: socket.socket) -> None:
        try:
            piece = b"" if self.deaf else client.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            piece = b""
        self.answered += piece.startswith(b"HTTP/1.1 4")
        if not piece:
            self.cut.append(time.monotonic() - self.begin)
            del self.open[client.fileno()]
            client.close()


def attack_here(name: str, address: Address, count: int) -> None:
    """The process of an attack: says when it has begun, and at its end what became of it."""
    raise_limit()
    os.nice(20)
    attack = Attack(name, address, count)
    print("begun", flush=True)
    end = threading.Event()

    def wait() -> None:
        sys.stdin.readline()
        end.set()

    threading.Thread(target=wait, daemon=True).start()
    while attack.open and not end.is_set():
        attack.go_on()
    print(
        len(attack.cut),
        *([min(attack.cut), max(attack.cut)] if attack.cut else [0, 0]),
        attack.answered,
        flush=True,
    )


def raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Running:
    """An attack, as the process sees it that measures."""

    def __init__(self, name: str, address: Address, count: int) -> None:
        self.name, self.address, self.count = name, address, count
        self.begin = time.monotonic()
        if name in TESTS:
            path = {"-B": "/upload", "-X": f"/bytes/{BIG}"}.get(TESTS[name].split()[0], "/")
            url = f"http://{address[0]}:{address[1]}{path}"
            options = (
                f"slowhttptest -c {count} -r {count} -l {int(LONG * 2)} -p 5 {TESTS[name]} -u {url}"
            )
            command = ["nice", "-n", "20", *options.split()]
        else:
            command = [
                sys.executable,
                __file__,
                "--attack-here",
                name,
                *map(str, address),
                str(count),
            ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if name not in TESTS:
            assert self.process.stdout is not None
            if self.process.stdout.readline() != "begun\n":
                raise SystemExit(f"{name}: the attack has not begun")
        time.sleep(SETTLE)

    def end(self, patience: float) -> str:
        """Waits until all are cut, for so long; says what became of the attack."""
        deadline = self.begin + max(patience, 0.1)
        if self.name in TESTS:
            # It does not say when it was reset. One more connection is its probe, one ours.
            while (left := established(self.address)) > 2 and time.monotonic() < deadline:
                time.sleep(0.5)
            took = time.monotonic() - self.begin
            self.process.terminate()
            self.process.communicate()
            cut = "all" if left <= 2 else f"all but {left}"
            return f"{cut} of {self.count}: {took:.0f} s | -"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.1, deadline - time.monotonic()))
        ended = self.process.poll() is not None
        output, _ = self.process.communicate(None if ended else "end\n")
        cut, first, last, answered = output.split()
        return f"{cut} of {self.count}: {float(first):.0f} to {float(last):.0f} s | {answered}"


def established(address: Address) -> int:
    """How many connections the server has."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    own = f":{address[1]:04X}"
    return sum(line.split()[1].endswith(own) and line.split()[3] == "01" for line in lines)


def quantile(latencies: list[float], share: float) -> float:
    return sorted(latencies)[min(len(latencies) - 1, int(len(latencies) * share))]


def measure(server: Server, name: str, args: argparse.Namespace) -> str:
    count = args.count or ATTACKS.get(name, (1000,))[0]
    other = Other(server.address)
    other.latencies(0.5)
    alone, attacked, failed = [], [], 0
    busy = [0.0, 0.0]
    before, most = server.memory(), [0.0]
    outcome = ""
    for number in range(args.rounds):
        busy[0] -= server.cpu()
        alone.append(other.latencies(args.seconds)[0])
        busy[0] += server.cpu()
        attack = Running(name, server.address, count)
        other.kept = None
        busy[1] -= server.cpu()
        latencies, lost = other.latencies(args.seconds)
        busy[1] += server.cpu()
        attacked.append(latencies)
        failed += lost
        most.append(server.memory())
        outcome = attack.end(args.patience if number == args.rounds - 1 else 0)
        time.sleep(1)
    cells = []
    for share in (0.5, 0.99):
        calm = [quantile(latencies, share) for latencies in alone]
        pairs = zip(attacked, calm, strict=True)
        ratios = [quantile(latencies, share) / base for latencies, base in pairs]
        cells.append(f"{statistics.median(calm):.2f} (x {statistics.median(ratios):.2f})")
    cells.append(" / ".join(f"{ms / args.seconds / args.rounds:.0f}" for ms in busy))
    cells.append(f"{failed} | {before:.0f} / {most[1]:.0f} / {max(most):.0f} | {outcome}")
    return " | ".join(cells)


# --- 1 GiB, up and down ---


def download(server: Server) -> float:
    begin = time.monotonic()
    client = server.connect()
    client.sendall(b"GET /bytes/%d HTTP/1.1\r\nHost: slow\r\nConnection: close\r\n\r\n" % GIB)
    buffer, count = bytearray(1 << 20), 0
    while read := client.recv_into(buffer):
        count += read
    assert count > GIB, f"{count} bytes have come"
    return time.monotonic() - begin


def upload(server: Server) -> float:
    begin = time.monotonic()
    client = server.connect()
    client.sendall(b"POST /upload HTTP/1.1\r\nHost: slow\r\nContent-Length: %d\r\n\r\n" % GIB)
    piece = bytes(1 << 20)
    for _ in range(GIB // len(piece)):
        client.sendall(piece)
    answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return time.monotonic() - begin


def transfers(server: Server) -> str:
    cells = []
    for work in (download, upload):
        server.forget_peak()
        cells += [f"{work(server):.1f}", f"{server.memory('VmHWM'):.0f}"]
    slow = []
    for _ in range(100):
        for request, receive_buffer in (
            (b"GET /bytes/%d HTTP/1.1\r\nHost: slow\r\n\r\n" % GIB, 4096),
            (POST % GIB, 0),
        ):
            client = server.connect(receive_buffer)
            client.sendall(request)
            slow.append(client)
    time.sleep(2)
    cells.append(f"{server.memory():.0f}")
    for work in (download, upload):
        server.forget_peak()
        cells += [f"{work(server):.1f}", f"{server.memory('VmHWM'):.0f}"]
    for client in slow:
        client.close()
    time.sleep(2)
    return " | ".join([*cells, f"{server.memory():.0f}"])


HEAD = """| attack | server | p50 | p99 | CPU | failed | RSS | cut | answered |
| --- | --- | --- | --- | ---: | ---: | ---: | --- | ---: |"""
TRANSFERS = """| server | down, s | MiB | up, s | MiB | slow | down, s | MiB | up, s | MiB | gone |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*ATTACKS, *TESTS, "transfers"]
    parser.add_argument(
        "--attacks", default=",".join([*ATTACKS, *TESTS]), help="some of: " + ", ".join(known)
    )
    parser.add_argument("--count", type=int, help="connections of an attack")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=5, help="of each measurement (%(default)s)"
    )
    parser.add_argument(
        "--patience", type=float, default=100, help="seconds until all are cut (%(default)s)"
    )
    parser.add_argument("--nginx", action="store_true", help="nginx, too")
    parser.add_argument("--tls", action="store_true", help="the servers speak TLS (transfers only)")
    parser.add_argument("servers", nargs="*", metavar="NAME=COMMAND")
    args = parser.parse_args()
    raise_limit()
    with contextlib.suppress(OSError):
        os.nice(-10)
    servers = [server.split("=", 1) for server in args.servers]
    if unknown := set(args.attacks.split(",")) - set(known):
        parser.error(f"no such attack: {', '.join(unknown)}")
    head = ""
    for attack in args.attacks.split(","):
        if attack in TESTS and not shutil.which("slowhttptest"):
            print(f"skipped: {attack} (not installed)", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            commands = servers + ([["nginx", nginx(Path(folder))]] if args.nginx else [])
            for name, command in commands:
                server = Server(command, Path(folder), args.tls)
                try:
                    if head != (head := TRANSFERS if attack == "transfers" else HEAD):
                        print(head, flush=True)
                    row = (
                        transfers(server)
                        if attack == "transfers"
                        else measure(server, attack, args)
                    )
                    prefix = f"| {name}" if attack == "transfers" else f"| {attack} | {name}"
                    print(f"{prefix} | {row} |", flush=True)
                finally:
                    server.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attack-here"]:
        attack_here(sys.argv[2], (sys.argv[3], int(sys.argv[4])), int(sys.argv[5]))
    else:
        main()
