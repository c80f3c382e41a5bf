"""Shows restarts under load, as a person would try them: restart_story.py GRACE."""

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BEGIN = time.monotonic()
LIMIT = 30.0  # seconds that nothing here takes


def say(who: str, what: str) -> None:
    print(f"{time.monotonic() - BEGIN:6.2f}s  {who:8}{what.rstrip()}", flush=True)


class Load(threading.Thread):
    """A client that sends one request after the other, each on a new connection or on the same one."""

    def __init__(self, port: int, keep: bool) -> None:
        super().__init__(daemon=True)
        self.port, self.keep = port, keep
        self.going = True
        self.answered = 0
        self.failed: list[str] = []

    def wait_for_answer(self) -> None:
        before, deadline = self.answered, time.monotonic() + LIMIT
        while self.answered == before and time.monotonic() < deadline:
            time.sleep(0.001)

    def run(self) -> None:
        conn = None
        while self.going:
            conn = conn or http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
            try:
                conn.request("GET", "/sleep/?duration=2ms", headers={} if self.keep else {"Connection": "close"})
                answer = conn.getresponse()
                text = answer.read()
                if answer.status != 200 or b"from pid" not in text:
                    raise OSError(f"{answer.status}: {text!r}")
                self.answered += 1
                if answer.will_close:
                    conn = None
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                conn = None


class Service:
    """The program, in all its generations. They write to the same pipe."""

    def __init__(self, program: Path) -> None:
        addrs = [word for number in range(3) for word in (f"-a{number}", "127.0.0.1:0")]
        self.first = subprocess.Popen(
            [program, *addrs, "-probation", "1s"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.pid = self.first.pid
        self.lines: list[str] = []
        self.changed = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        assert self.first.stdout is not None
        for line in self.first.stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits for a line, and forgets it and those before it."""
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            for at, line in enumerate(self.lines):
                if match := re.search(pattern, line):
                    found.append(match)
                    del self.lines[: at + 1]
                    return True
            return False

        with self.changed:
            if not self.changed.wait_for(is_there, LIMIT):
                raise TimeoutError(f"the service does not say {pattern!r}: {''.join(self.lines)}")
        return found[0]

    def restart(self) -> None:
        say("you", f"kill -USR2 {self.pid}")
        os.kill(self.pid, signal.SIGUSR2)

    def handed_over(self) -> None:
        self.wait_for(r"restart: PID \d+ is ready")
        pid = int(self.wait_for(r"restart: handed over to PID (\d+)")[1])
        say("service", f"PID {self.pid} has handed over to PID {pid}, which had to live through a second")
        self.pid = pid

    def goes_on(self) -> str:
        why = self.wait_for(r"restart failed: PID \d+ (.*)")[1]
        say("service", f"PID {self.pid} goes on, because the new process {why}")
        return why


def put(program: Path, at: Path) -> None:
    """As a deployment does it: the file is replaced by another one, in one step."""
    new = at.with_suffix(".new")
    shutil.copy(program, new)
    new.replace(at)


def tell(program: Path, folder: Path) -> int:
    app, broken = folder / "grace", folder / "broken"
    broken.write_text("#!/bin/sh\necho 'the database is not there' >&2\nexit 1\n")
    broken.chmod(0o755)
    put(program, app)
    service = Service(app)
    ports = [int(service.wait_for(r"serving on http://127.0.0.1:(\d+)/")[1]) for _ in range(3)]
    say("service", f"PID {service.pid} serves on the ports {', '.join(map(str, ports))}")
    loads = [Load(port, keep) for port in ports for keep in (False, True)]
    for load in loads:
        load.start()
    say("clients", f"{len(loads)} clients send one request after the other, by new connections and by the same one")

    say("client", "GET /sleep/?duration=4s")
    slow = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=LIMIT)
    slow.request("GET", "/sleep/?duration=4s")
    put(program, app)
    say("you", "put a new version in the place of the program")
    service.restart()
    service.handed_over()
    say("client", f"got: {slow.getresponse().read().decode()}")

    put(broken, app)
    say("you", "put a broken version in the place of the program")
    service.restart()
    service.goes_on()
    failed = sum(len(load.failed) for load in loads)

    put(program, app)
    say("you", "put one there that will be killed half a second after it is ready")
    service.restart()
    new = int(service.wait_for(r"restart: PID (\d+) is ready")[1])
    time.sleep(0.5)
    os.kill(new, signal.SIGKILL)
    service.goes_on()
    # Who has an answer now knows of the cut.
    for load in loads:
        load.wait_for_answer()
    held = sum(len(load.failed) for load in loads) - failed
    say("clients", f"{held} requests were cut: what the killed process had accepted is all that a restart can lose")

    service.restart()
    service.handed_over()
    for load in loads:
        load.going = False
    for load in loads:
        load.join(LIMIT)
    answered = sum(load.answered for load in loads)
    every = [why for load in loads for why in load.failed]
    say("you", f"kill -TERM {service.pid}")
    os.kill(service.pid, signal.SIGTERM)
    status = service.first.wait(LIMIT)
    lost = len(every) - held
    say("clients", f"{answered} requests were answered, {lost} failed, and {held} were in the process that was killed")
    if lost or status != 0 or held > len(loads):
        print("Something was lost:", *every, sep="\n  ")
        return 1
    print("Restarted twice and twice not, and nothing else was lost.")
    return 0


def main(program: str) -> int:
    # The copy finds the library where the program does.
    os.environ["LD_LIBRARY_PATH"] = str(Path(program).resolve().parent)
    with tempfile.TemporaryDirectory() as folder:
        return tell(Path(program), Path(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
