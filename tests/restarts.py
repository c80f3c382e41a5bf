"""Restarts in a row, and new processes that are killed, under load: restarts.py. HTTPDOWN_TEST_SEED repeats the moments
of a run; HTTPDOWN_TEST_KILLS says how many there are."""

import contextlib
import http.client
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build")
PATIENCE = 60  # seconds that nothing here takes unless it hangs
RESTARTS = 100
KILLS = int(os.environ.get("HTTPDOWN_TEST_KILLS", "100"))


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.path)


class Load(threading.Thread):
    """A client: it sends one request after the other, each on a connection of its own or on the same one."""

    def __init__(self, connect, keeps):
        super().__init__(daemon=True)
        self.connect, self.keeps = connect, keeps
        self.goes_on = True
        self.answered = 0
        self.failed = []
        self.start()

    def run(self):
        client = None
        while self.goes_on:
            client = client or self.connect()
            try:
                client.request("GET", "/sleep/?duration=1ms", headers={} if self.keeps else {"Connection": "close"})
                response = client.getresponse()
                text = response.read()
                if response.status != 200 or not re.search(rb"from pid \d+\.\n$", text):
                    raise ValueError(f"{response.status} {text!r}")
                self.answered += 1
                if response.will_close:
                    client.close()
                    client = None
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.failed.append(error)
                client.close()
                client = None
        if client is not None:
            client.close()

    def wait_for_answer(self):
        before, deadline = self.answered, time.monotonic() + PATIENCE
        while self.answered == before and time.monotonic() < deadline:
            time.sleep(0.001)


class Grace:
    """build/grace in all its generations, which write to one pipe; and its clients."""

    def __init__(self, *flags, second="127.0.0.1:0"):
        self.stack = contextlib.ExitStack()
        addrs = ("-a0", "127.0.0.1:0", "-a1", second, "-a2", "127.0.0.1:0")
        self.first = subprocess.Popen(
            [os.path.join(BUILD, "grace"), *addrs, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # So that all generations can be ended.
            start_new_session=True,
        )
        self.pid = self.first.pid
        self.lines, self.at = [], 0
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.places = [self.line(r"serving on (?:https?://127\.0\.0\.1:|unix:)([^/ ]\d*|/\S+?)/? with")[1] for _ in range(3)]
        self.loads = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for load in self.loads:
            load.goes_on = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.first.pid, signal.SIGKILL)
        self.first.wait()
        self.reader.join()
        self.first.stdout.close()

    def read(self):
        for line in self.first.stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def find(self, pattern):
        """The next line like that; those before it are passed over."""
        for at in range(self.at, len(self.lines)):
            if match := re.search(pattern, self.lines[at]):
                self.at = at + 1
                return match
        return None

    def line(self, pattern, time=PATIENCE):
        with self.changed:
            found = self.changed.wait_for(lambda: self.find(pattern), time)
        if found is None and time == PATIENCE:
            raise TimeoutError(f"no line like {pattern!r}: {''.join(self.lines[-5:])}")
        return found

    def connect(self, index, context=None):
        place = self.places[index]
        if place.startswith("/"):
            return UnixConnection(place)
        if context is None:
            return http.client.HTTPConnection("127.0.0.1", int(place), timeout=PATIENCE)
        return http.client.HTTPSConnection("127.0.0.1", int(place), timeout=PATIENCE, context=context)

    def load(self, context=None):
        for index in range(2):
            for keeps in (False, True):
                self.loads.append(Load(lambda index=index: self.connect(index, context), keeps))
        for load in self.loads:
            load.wait_for_answer()

    def failed(self):
        return [error for load in self.loads for error in load.failed]

    def restart(self):
        """One restart that succeeds. It may have to wait for earlier processes."""
        while True:
            os.kill(self.pid, signal.SIGUSR2)
            told = self.line(r"restart(?:: handed over to PID (\d+)| refused: (.*)| failed: (.*))")
            if told[1]:
                self.pid = int(told[1])
                return
            if told[3] or "still drain" not in told[2]:
                raise AssertionError(told[0])
            time.sleep(0.05)

    def state(self):
        """What must not grow from one generation to the next."""
        with open(f"/proc/{self.pid}/status") as status:
            text = status.read()
        with open(f"/proc/{self.pid}/environ", "rb") as environ:
            length = len(environ.read())
        return {
            "kB": int(re.search(r"VmRSS:\s+(\d+)", text)[1]),
            "threads": int(re.search(r"Threads:\s+(\d+)", text)[1]),
            "descriptors": len(os.listdir(f"/proc/{self.pid}/fd")),
            "environment": length,
        }

    def processes(self):
        """All of them, by their states. Zombies whose parent has ended are those of init, which takes its time."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
                state, parent, _, session = stat.read().rpartition(")")[2].split()[:4]
                if int(session) == self.first.pid and (state, parent) != ("Z", "1"):
                    found.append(state)
        return found

    def end(self):
        """Ends the clients and the service. No process may be left."""
        for load in self.loads:
            load.goes_on = False
        for load in self.loads:
            load.join(PATIENCE)
        os.kill(self.pid, signal.SIGTERM)
        self.first.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left


class Rows(unittest.TestCase):
    def row(self, grace, count, context=None, slow="20s"):
        grace.load(context)
        long = grace.connect(0, context)
        long.request("GET", f"/sleep/?duration={slow}")
        first = grace.pid
        grace.restart()
        before = grace.state()
        for _ in range(count - 1):
            grace.restart()
        after = grace.state()
        # Clients that connect and leave change these a little.
        self.assertLess(after["kB"], before["kB"] * 1.2 + 1024, (before, after))
        self.assertLessEqual(after["threads"], before["threads"] + 2, (before, after))
        self.assertLessEqual(after["descriptors"], before["descriptors"] + 8, (before, after))
        self.assertEqual(after["environment"], before["environment"])
        self.assertFalse([state for state in grace.processes() if state == "Z"])
        text = long.getresponse().read().decode()
        self.assertTrue(text.endswith(f"from pid {first}.\n"), text)
        long.close()
        self.assertEqual(grace.end(), [])
        self.assertEqual(grace.failed(), [])
        return sum(load.answered for load in grace.loads)

    def test_a_hundred_restarts_lose_nothing_and_leave_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "grace.sock")
            with Grace("-probation", "50ms", second=f"unix:{path}") as grace:
                answered = self.row(grace, RESTARTS)
            self.assertFalse(os.path.exists(path))
        print(f"{RESTARTS} restarts, {answered} answers", end=" ... ", flush=True)

    def test_nor_do_they_by_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["sh", os.path.join(ROOT, "examples", "certs.sh"), folder], check=True, capture_output=True)
            chain, key = os.path.join(folder, "server.pem"), os.path.join(folder, "server-key.pem")
            context = ssl.create_default_context(cafile=os.path.join(folder, "ca.pem"))
            context.check_hostname = False
            with Grace("-probation", "50ms", "-tls-cert", chain, "-tls-key", key) as grace:
                self.row(grace, 20, context, slow="5s")


class Kills(unittest.TestCase):
    def test_a_new_process_may_be_killed_at_any_moment(self):
        seed = int(os.environ.get("HTTPDOWN_TEST_SEED", time.time_ns() % 1_000_000))
        print(f"seed {seed}", end=" ... ", flush=True)
        moments = random.Random(seed)
        cut = taken = 0
        with Grace("-probation", "400ms") as grace:
            grace.load()
            for _ in range(KILLS):
                before = len(grace.failed())
                moment = moments.choice((moments.uniform(0, 0.03), moments.uniform(0, 0.3)))
                os.kill(grace.pid, signal.SIGUSR2)
                pid = int(grace.line(r"restart: started PID (\d+)")[1])
                told = grace.line(r"restart: handed over", moment)
                if told is None:
                    os.kill(pid, signal.SIGKILL)
                    told = grace.line(r"restart(?:: handed over| failed: (.*))")
                if told.re.groups == 0 or told[1] is None:
                    # The machine was too slow, and it has proved itself. That it is killed now is another matter.
                    self.assertNotIn("killed", told[0])
                    grace.pid = pid
                    taken += 1
                    continue
                self.assertIn("killed by signal 9", told[1])
                for load in grace.loads:
                    load.wait_for_answer()
                lost = grace.failed()[before:]
                cut += len(lost)
                # Each client has one request at a time.
                self.assertLessEqual(len(lost), len(grace.loads), told[0])
                if "before it was ready" in told[1]:
                    self.assertEqual(lost, [], told[0])
            self.assertEqual(grace.end(), [])
            refused = [error for error in grace.failed() if isinstance(error, ConnectionRefusedError)]
            self.assertEqual(refused, [])
            self.assertEqual(len(grace.failed()), cut)
            answered = sum(load.answered for load in grace.loads)
        print(f"{KILLS - taken} killed, {answered} answers, {cut} cut", end=" ... ", flush=True)


if __name__ == "__main__":
    unittest.main(argv=sys.argv, verbosity=2)
