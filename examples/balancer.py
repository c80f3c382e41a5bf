"""Restarts behind HAProxy and nginx, under load: how many requests fail?

    make lib build/hello && python3 examples/balancer.py    # four runs of two minutes

Three replicas (build/hello) are behind a balancer, whose configuration is in examples/balancer.
One after the other, again and again, they are

    restart   restarted in place: SIGUSR2, until the new process has taken over;
    rolling   stopped, and then started anew: SIGTERM, until the process has ended.

Clients send each request once, and every answer but the expected one is a failure. So is whatever a
replica says that it has cut. `--replace OLD NEW` changes the configuration, to show what OLD is
for, and `--flags` the replicas. docs/balancers.md has the results.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Callable, Optional, Tuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
HERE = ROOT / "examples" / "balancer"
PATIENCE = 60  # seconds that nothing here takes unless it hangs
REPLICAS = 3
RUNS = [(balancer, way) for balancer in ("haproxy", "nginx") for way in ("restart", "rolling")]
HELLO = b"Hello, World!"
# Method, path, body, and the answer that is expected.
Request = Tuple[str, str, Optional[bytes], bytes]
NOISE = random.Random(1).randbytes(100_000)


class Replica:
    """build/hello in all its generations, which write to one pipe."""

    def __init__(self, port: int, flags: list[str]) -> None:
        self.command = [str(ROOT / "build" / "hello"), "-addr", f"127.0.0.1:{port}", *flags]
        self.reports: list[dict[str, int]] = []
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.lines: list[str] = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        self.line(r"serving on")

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.reports.append(json.loads(line))
                continue
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def line(self, pattern: str) -> re.Match[str]:
        """The next line like that; those before it are passed over."""

        def find() -> re.Match[str] | None:
            while self.lines:
                if match := re.search(pattern, self.lines.pop(0)):
                    return match
            return None

        with self.changed:
            found = self.changed.wait_for(find, PATIENCE)
        if found is None:
            raise TimeoutError(f"no line like {pattern!r}")
        return found

    def restart(self) -> None:
        """In place. It may have to wait for earlier processes, which still answer."""
        while True:
            os.kill(self.pid, signal.SIGUSR2)
            told = self.line(r"restart(?:: handed over to PID (\d+)| refused: (.*)| failed: .*)")
            if told[1]:
                self.pid = int(told[1])
                return
            if not told[2] or "still drain" not in told[2]:
                raise AssertionError(told[0])
            time.sleep(0.1)

    def stop(self) -> None:
        """Until the last generation has ended: then nobody can write to the pipe any more."""
        os.kill(self.pid, signal.SIGTERM)
        self.reader.join(PATIENCE)
        if self.reader.is_alive():
            raise TimeoutError(f"PID {self.pid} does not stop")
        self.process.wait()

    def roll(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.reader.join()


class Client(threading.Thread):
    """Sends one request after the other, each once, on the same connection or each on its own."""

    def __init__(self, port: int, keeps: bool, ask: Callable[[], Request], pause: float) -> None:
        super().__init__(daemon=True)
        self.port, self.keeps, self.ask, self.pause = port, keeps, ask, pause
        self.over = threading.Event()
        self.requests = 0
        self.slowest = 0.0  # seconds
        self.failed: list[str] = []
        self.start()

    def run(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        while not self.over.wait(random.uniform(0, self.pause)):
            method, path, body, expected = self.ask()
            self.requests += 1
            begin = time.monotonic()
            try:
                client.request(method, path, body, {} if self.keeps else {"Connection": "close"})
                response = client.getresponse()
                answer = response.read()  # raises an exception if it is cut
                if response.status != 200 or answer != expected:
                    raise ValueError(f"{response.status} {answer[:100]!r}, {len(answer)} bytes")
                # If the answer says close, http.client connects anew for the next request.
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.failed.append(f"{method} {path}, {len(body or b'')} bytes: {error!r}")
                client.close()
            self.slowest = max(self.slowest, time.monotonic() - begin)
        client.close()


def some_noise() -> bytes:
    return NOISE[: random.randrange(len(NOISE))]


def quick() -> Request:
    noise, size = some_noise(), random.randrange(100_000)
    requests: list[Request] = [
        ("GET", "/", None, HELLO),
        ("GET", f"/bytes/{size}", None, bytes(size)),
        ("POST", "/upload", noise, HELLO),
        ("POST", "/echo", noise, noise),
    ]
    return random.choice(requests)


def slow() -> Request:
    path = f"/sleep/{random.randint(50, 500)}"
    return (
        ("GET", path, None, HELLO) if random.randrange(2) else ("POST", path, some_noise(), HELLO)
    )


# What clients ask for, how long they wait before it, at most, and how many there are.
LOADS = {
    "busy": ((quick, 0.005, 4), (slow, 0.005, 6), (quick, 2.0, 6)),
    # The balancer's connections are mostly idle for a second or two before they are used.
    "sparse": ((quick, 3.0, 60),),
}


def load(port: int, name: str) -> list[Client]:
    clients = []
    for keeps in (True, False):
        for ask, pause, count in LOADS[name]:
            clients += [Client(port, keeps, ask, pause) for _ in range(count)]
    return clients


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


NGINX = """
daemon off; pid {0}/pid; error_log stderr; worker_processes 2; {1}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {0}/1; proxy_temp_path {0}/2; fastcgi_temp_path {0}/3;
    uwsgi_temp_path {0}/4; scgi_temp_path {0}/5;
    include {0}/configuration;
}}
"""


def start_balancer(
    balancer: str, folder: str, ports: list[int], changes: list[list[str]]
) -> subprocess.Popen[bytes]:
    """By its configuration in examples/balancer, where only the ports are others."""
    text = next(HERE.glob(f"{balancer}.*")).read_text(encoding="ascii")
    for old, new in changes:
        if old not in text:
            sys.exit(f"{balancer} has no {old!r}")
        text = text.replace(old, new)
    for number, port in enumerate(ports):
        text = text.replace(f"127.0.0.1:800{number}", f"127.0.0.1:{port}")
    path = pathlib.Path(folder, "configuration")
    path.write_text(text, encoding="ascii")
    command = ["haproxy", "-db", "-f", str(path)]
    if balancer == "nginx":
        path = pathlib.Path(folder, "nginx.conf")
        # Its workers need the folder for long bodies.
        path.write_text(NGINX.format(folder, "" if os.getuid() else "user root;"), encoding="ascii")
        command = ["nginx", "-c", str(path), "-e", "stderr"]
    with open(pathlib.Path(folder, "log"), "wb") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", ports[0])).close()
            return started
        except ConnectionRefusedError:
            if started.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{balancer} does not start: {pathlib.Path(folder, 'log').read_text()}")
            time.sleep(0.05)


def run(balancer: str, way: str, options: argparse.Namespace) -> int:
    """How many requests have failed, or were cut by a replica."""
    ports = free_ports(1 + REPLICAS)
    flags = (HERE / "server.flags").read_text(encoding="ascii").split() + options.flags.split()
    replicas: list[Replica] = []
    clients: list[Client] = []
    front = None
    restarts = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            for port in ports[1:]:
                replicas.append(Replica(port, flags))
            front = start_balancer(balancer, folder, ports, options.replace)
            clients = load(ports[0], options.load)
            end = time.monotonic() + options.seconds
            while time.monotonic() < end:
                replica = replicas[restarts % REPLICAS]
                replica.restart() if way == "restart" else replica.roll()
                restarts += 1
            for client in clients:
                client.over.set()
            for client in clients:
                client.join()
            for replica in replicas:
                replica.stop()
        finally:
            for client in clients:
                client.over.set()
            for replica in replicas:
                replica.kill()
            if front is not None:
                front.terminate()
                front.wait()
    requests = sum(client.requests for client in clients)
    failed = [error for client in clients for error in client.failed]
    reports = [report for replica in replicas for report in replica.reports]
    # Each process has said at its end what it had done: one that has crashed has not.
    if len(reports) != REPLICAS + restarts:
        raise AssertionError(f"{len(reports)} reports of {REPLICAS + restarts} processes")
    raced = sum(report["raced"] for report in reports)
    cut = sum(report[key] for report in reports for key in ("killed", "failed", "abandoned"))
    slowest = max(client.slowest for client in clients)
    print(
        f"{balancer:7} {way:7} {requests:7} requests, {restarts:4} restarts, {len(failed)} failed;"
        f" slowest {slowest:.1f} s; crossed a FIN: {raced}, cut: {cut}",
        *(f"    {n} x {text}" for text, n in collections.Counter(failed).most_common(options.show)),
        sep="\n",
        flush=True,
    )
    return len(failed) + cut


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=120, help="how long a run takes, at least (%(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="how many runs there are at a time (%(default)s)"
    )
    parser.add_argument(
        "--only", action="append", help="a run, such as nginx-rolling; may be repeated"
    )
    parser.add_argument(
        "--replace",
        nargs=2,
        action="append",
        default=[],
        metavar=("OLD", "NEW"),
        help="may be repeated",
    )
    parser.add_argument("--flags", default="", help="more flags for build/hello")
    parser.add_argument("--load", choices=LOADS, default="busy", help="%(choices)s (%(default)s)")
    parser.add_argument(
        "--show", type=int, default=5, help="how many kinds of failures are printed (%(default)s)"
    )
    options = parser.parse_args()
    runs = [pair for pair in RUNS if options.only is None or "-".join(pair) in options.only]
    os.environ["PATH"] += ":/usr/sbin"  # not everybody has it
    for balancer in {balancer for balancer, _ in runs}:
        if shutil.which(balancer) is None:
            print(f"skipped: no {balancer} (make tools)")
            return 77
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        results = [pool.submit(run, *pair, options) for pair in runs]
        return 1 if sum(result.result() for result in results) > 0 else 0


if __name__ == "__main__":
    sys.exit(main())
