"""Restarts in a row, and what may befall them, under full load: restarts.py. HTTPDOWN_TEST_RESTARTS says how many there
are in a row, HTTPDOWN_TEST_FAR how many over a long way, HTTPDOWN_TEST_MOMENTS how often something befalls one.
HTTPDOWN_TEST_SEED makes the same choices again."""

import contextlib
import http.client
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build")
PATIENCE = 60  # seconds that nothing here takes unless it hangs
RESTARTS = int(os.environ.get("HTTPDOWN_TEST_RESTARTS", "100"))
FAR = int(os.environ.get("HTTPDOWN_TEST_FAR", "25"))
MOMENTS = int(os.environ.get("HTTPDOWN_TEST_MOMENTS", "200"))
SEED = int(os.environ.get("HTTPDOWN_TEST_SEED", time.time_ns() % 1_000_000))


class Load:
    """Clients in a process of their own."""

    CLIENTS = 3

    def __init__(self, place, keeps, ca):
        command = [sys.executable, os.path.join(ROOT, "tests", "load.py"), f"--clients={self.CLIENTS}", place]
        if keeps:
            command.append("--keeps")
        if ca is not None:
            command.append(f"--ca={ca}")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answered = 0

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def hear(self):
        """What has failed since the last time. Each client has begun and ended a request since it was asked."""
        readable, _, _ = select.select([self.process.stdout], [], [], 2 * PATIENCE)
        if not readable:
            raise TimeoutError("a client gets no answer")
        told = json.loads(self.process.stdout.readline())
        self.answered = told["answered"]
        return told["failed"]

    def end(self):
        self.process.kill()
        self.process.communicate()


class Grace:
    """build/grace in all its generations, which write to one pipe; and its clients."""

    def __init__(self, *flags, second="127.0.0.1:0", program=os.path.join(BUILD, "grace"), ca=None):
        addrs = ("-a0", "127.0.0.1:0", "-a1", second, "-a2", "127.0.0.1:0")
        self.first = subprocess.Popen(
            [program, *addrs, *flags],
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
        serving = r"serving on (?:https?://127\.0\.0\.1:|unix:)([^/ ]\d*|/\S+?)/? with"
        # Each server says it when it comes to it. A Unix socket is the first, so that there is always a port behind it.
        self.places = sorted(self.line(serving)[1] for _ in range(3))
        self.ca = ca
        self.loads = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for load in self.loads:
            load.end()
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
            raise TimeoutError(f"no line like {pattern!r}: {''.join(self.lines[-8:])}")
        return found

    def sees(self, pattern):
        """Waits for a line like that, and passes over none."""
        with self.changed:
            seen = self.changed.wait_for(lambda: any(re.search(pattern, line) for line in self.lines), PATIENCE)
        if not seen:
            raise TimeoutError(f"no line like {pattern!r}: {''.join(self.lines[-8:])}")

    def load(self):
        for place in self.places[:2]:
            for keeps in (False, True):
                self.loads.append(Load(place, keeps, self.ca))
        assert not self.failed(), "before there was a restart"

    def failed(self):
        """The requests that have failed since the last time: what has become of each, and how that was seen."""
        for load in self.loads:
            load.ask()
        failed = [failed for load in self.loads for failed in load.hear()]
        # No server can answer these.
        late = [text for kind, text in failed if kind == "late"]
        if late:
            print(f"late: {late}", end=" ... ", flush=True)
        return [[kind, text] for kind, text in failed if kind != "late"]

    @property
    def clients(self):
        return len(self.loads) * Load.CLIENTS

    @property
    def answered(self):
        return sum(load.answered for load in self.loads)

    def begin(self):
        """Begins a restart, which may have to wait for earlier ones. Returns the new process, or why there is none."""
        while True:
            self.asked = time.monotonic()
            os.kill(self.pid, signal.SIGUSR2)
            told = self.line(rf" {self.pid}: restart(?:: started PID (\d+)| refused: (.*)| failed: (.*))")
            if told[1] or told[3]:
                return int(told[1] or 0) or told[3]
            if "still drain" not in told[2]:
                raise AssertionError(told[0])
            time.sleep(0.05)

    def end_of(self, new, time=PATIENCE):
        """How the restart ends: True if the new process has taken over, or the text of the failure. None: not yet."""
        old = self.pid
        over = rf" {old}: restart: handed over to PID {new} | {new}: restart: PID {old} has ended before it handed over"
        told = self.line(rf"{over}| {old}: restart failed: (.*)", time)
        if told is None:
            return None
        if told[1] is None:
            self.pid = new
        return told[1] or True

    def restart(self):
        """A restart that succeeds."""
        new = self.begin()
        ended = self.end_of(new) if isinstance(new, int) else new
        if ended is not True:
            raise AssertionError(ended)

    def get(self, target):
        """A request that is not waited for."""
        port = int(self.places[-1])
        if self.ca is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        else:
            context = ssl.create_default_context(cafile=self.ca)
            context.check_hostname = False
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
        connection.request("GET", target)
        return connection

    def state(self):
        """What must not grow from one generation to the next."""
        with open(f"/proc/{self.pid}/status") as status:
            text = status.read()
        with open(f"/proc/{self.pid}/environ", "rb") as environ:
            # The process ID is in it, and may be longer than another.
            length = len(environ.read().replace(str(self.pid).encode(), b"PID"))
        return {
            "kB": int(re.search(r"VmRSS:\s+(\d+)", text)[1]),
            "threads": int(re.search(r"Threads:\s+(\d+)", text)[1]),
            "descriptors": len(os.listdir(f"/proc/{self.pid}/fd")),
            "environment": length,
        }

    def processes(self):
        """All of them, by their states. Zombies whose parent has ended are those of init, which takes its time."""
        self.first.poll()
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
            load.end()
        os.kill(self.pid, signal.SIGTERM)
        self.first.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left


@contextlib.contextmanager
def certificates():
    """The certificate of who has signed, and the flags of a program that has one that is signed."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["sh", os.path.join(ROOT, "examples", "certs.sh"), folder], check=True, capture_output=True)
        chain, key = os.path.join(folder, "server.pem"), os.path.join(folder, "server-key.pem")
        yield os.path.join(folder, "ca.pem"), ("-tls-cert", chain, "-tls-key", key)


class Rows(unittest.TestCase):
    def row(self, *flags, **where):
        with Grace("-probation", "50ms", "-stop-timeout", "10m", *flags, **where) as grace:
            grace.load()
            began = time.monotonic()
            first = set()
            for _ in range(3):
                grace.restart()
                first.add(grace.pid)
            takes = (time.monotonic() - began) / 3 * RESTARTS
            # One of them is still under way when the last generation has taken over, and not for long.
            lengths = [takes * 0.1 * 1.2**step for step in range(24)]
            # The process before the last one may still take a connection.
            began = time.monotonic()
            slow = {length: grace.get(f"/sleep/?duration={length:.3f}s") for length in lengths}
            before = grace.state()
            for _ in range(RESTARTS):
                grace.restart()
            took = time.monotonic() - began
            after = grace.state()
            # Clients that connect and leave change these a little.
            self.assertLess(after["kB"], before["kB"] * 1.2 + 1024, (before, after))
            self.assertLessEqual(after["threads"], before["threads"] + 2, (before, after))
            self.assertLessEqual(after["descriptors"], before["descriptors"] + 8, (before, after))
            self.assertEqual(after["environment"], before["environment"])
            self.assertFalse([state for state in grace.processes() if state == "Z"])
            self.assertEqual(grace.failed(), [])
            under_way = [connection for length, connection in slow.items() if length > took]
            text = under_way[0].getresponse().read().decode()
            self.assertIn(int(re.search(r"from pid (\d+)\.\n$", text)[1]), first)
            for connection in under_way[1:]:
                # By a reset: after a FIN, a client may still wait for its answer, and so would the process.
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for connection in slow.values():
                connection.close()
            self.assertEqual(grace.failed(), [])
            self.assertEqual(grace.end(), [])
            print(f"{RESTARTS} restarts in {took:.1f} s, {grace.answered} answers, {after}", end=" ... ", flush=True)

    def test_a_hundred_restarts_lose_nothing_and_leave_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "grace.sock")
            self.row(second=f"unix:{path}")
            self.assertFalse(os.path.exists(path))

    def test_nor_do_they_by_tls(self):
        with certificates() as (ca, flags):
            self.row(*flags, ca=ca)


class Far(unittest.TestCase):
    """lossmeter knows how to make a long way between client and server. It also says whether a kept connection ended
    while a request was on the way to it, which HTTP/1.1 cannot prevent: such a request is a race, and not lost."""

    def begin(self, path, *flags, options=()):
        """Most of the time is spent on the way, so others may go on meanwhile."""
        server = " ".join(["hello=" + os.path.join(BUILD, "hello"), "-addr {addr} -probation 50ms", *flags])
        command = [os.path.join(BUILD, "rust", "lossmeter"), "--json", path, "--seed", str(SEED)]
        command += ["--restart", str(FAR), "--rtt", "20ms", "--modes", "new,keepalive", "--jobs", "2"]
        command += ["--load", "50ms", "--clients", "24", "--think", "100ms", *options, server]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def check(self, how, path, output, status):
        if "not allowed here" in output or "cannot be opened" in output:
            self.skipTest(output.strip())
        self.assertEqual(status, 0, output)
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["rows"]
        for row in rows:
            self.assertEqual((row["restarts"], row["failed"], row["ledger_differences"]), (FAR, 0, []), output)
            bad = ("lost", "error_status", "refused_early", "truncated", "local_errors")
            self.assertEqual({name: row[name] for name in bad}, dict.fromkeys(bad, 0), output)
            if row["mode"] == "new":
                self.assertEqual(row["race"], 0, output)
            print(f"{how}, {row['mode']}: {row['ok']} answers, {row['race']} races", end=" ... ", flush=True)

    def test_over_twenty_milliseconds_restarts_lose_nothing(self):
        with certificates() as (_, flags), tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("plain.json", "tls.json")]
            plain, tls = self.begin(paths[0]), self.begin(paths[1], *flags, options=("--tls",))
            outputs = [process.communicate(timeout=600)[0] for process in (plain, tls)]
            self.check("plain", paths[0], outputs[0], plain.returncode)
            self.check("TLS", paths[1], outputs[1], tls.returncode)


# What may befall a restart, how often in a hundred, and how the restart may end then: with such a text, or (True) by a
# success.
SUCCESS = r"^True$"
BEFALLS = {
    "is_killed": (38, r"was killed by signal 9"),
    "crashes": (18, r"was killed by signal (6|7|8|11)"),
    # Before it listens for these signals they kill it. Without clients, it may end before it can say so.
    "is_told_to_stop": (14, r"says: its servers stop|has exited with status 0|killed by signal (2|15) before"),
    "does_not_start": (10, r"."),
    "loses_its_predecessor": (6, SUCCESS),
    "is_restarted_itself": (4, rf"{SUCCESS}|killed by signal 12 before"),
    "is_asked_for_twice": (3, SUCCESS),
    "is_suspended": (3, SUCCESS),
    "has_a_predecessor_that_is_suspended": (2, SUCCESS),
    "hangs": (2, r"does not answer any more|was not ready after 5s"),
}


class Moments(unittest.TestCase):
    PROBATION = 0.6
    # The latest moment. The new process is ready some time after its start, so much of the probation is left.
    LATEST = 0.25

    def test_anything_may_befall_a_restart_at_any_moment(self):
        print(f"seed {SEED}", end=" ... ", flush=True)
        chance = random.Random(SEED)
        deck = [what for what, (count, _) in BEFALLS.items() for _ in range(count)] * (MOMENTS // 100 + 1)
        chance.shuffle(deck)
        ends = {"have taken over": 0, "failed before they were ready": 0, "failed later": 0}
        cut = held = 0
        with tempfile.TemporaryDirectory() as self.folder:
            self.program = os.path.join(self.folder, "grace")
            shutil.copy(os.path.join(BUILD, "grace"), self.program)
            for library in filter(lambda name: ".so" in name, os.listdir(BUILD)):
                os.symlink(os.path.join(BUILD, library), os.path.join(self.folder, library))
            flags = ("-probation", f"{self.PROBATION}s", "-ready-timeout", "5s")
            with Grace(*flags, program=self.program) as self.grace:
                self.grace.load()
                for what in deck[:MOMENTS]:
                    ended, failed = self.try_one(what, chance)
                    if ended is True:
                        ends["have taken over"] += 1
                    elif " after it was ready" in ended:
                        ends["failed later"] += 1
                    else:
                        ends["failed before they were ready"] += 1
                    cut += len(failed)
                    held += self.held(ended)
                self.assertEqual(self.grace.end(), [])
                ends = ", ".join(f"{count} {how}" for how, count in ends.items())
                print(
                    f"{MOMENTS} moments: {ends}; {self.grace.answered} answers, {cut} cut, {held} connections held",
                    end=" ... ",
                    flush=True,
                )

    def try_one(self, what, chance):
        """Begins a restart, and lets this befall it. How the restart ends, and which requests have failed."""
        moment = chance.choice((chance.uniform(0, 0.03), chance.uniform(0, self.LATEST)))
        expected = BEFALLS[what][1]
        if what == "does_not_start":
            ended = self.does_not_start(chance)
        else:
            new = self.grace.begin()
            ended = self.grace.end_of(new, moment)
            # Nothing befalls one that takes over. Without a supervisor, that would be the end of the service. (Its
            # probation cannot be over yet, however late this program is told of its start.)
            if ended is None and time.monotonic() - self.grace.asked < self.LATEST + 0.1:
                getattr(self, what)(new, chance)
            else:
                expected = SUCCESS
            ended = ended or self.grace.end_of(new)
        failed = self.grace.failed()
        self.assertRegex(str(ended), expected, what)
        # Nobody is refused, and no answer is wrong.
        self.assertLessEqual({kind for kind, _ in failed}, {"lost", "truncated"}, (what, moment, ended, failed))
        self.assertLessEqual(len(failed), self.most_lost(what, ended), (what, moment, ended, failed))
        return ended, failed

    def most_lost(self, what, ended):
        """A process that is killed loses what it holds. How much a new one held, its predecessor knows exactly."""
        if ended is not True:
            return self.held(ended)
        # Each client has one request at a time.
        return self.grace.clients if what == "loses_its_predecessor" else 0

    @staticmethod
    def held(ended):
        """How many connections a new process held at its end, as the old one says."""
        told = ended is not True and re.search(r"held (\d+) requests on (\d+) connections", ended)
        return int(told[2]) if told else 0

    def is_killed(self, new, _):
        os.kill(new, signal.SIGKILL)

    def crashes(self, new, chance):
        os.kill(new, chance.choice((signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE)))

    def is_told_to_stop(self, new, chance):
        os.kill(new, chance.choice((signal.SIGTERM, signal.SIGINT)))

    def is_restarted_itself(self, new, _):
        os.kill(new, signal.SIGUSR2)

    def is_asked_for_twice(self, new, _):
        old = self.grace.pid
        os.kill(old, signal.SIGUSR2)
        self.grace.sees(rf" {old}: restart refused: (a restart is under way|process {new} has taken over)")

    def loses_its_predecessor(self, _, __):
        os.kill(self.grace.pid, signal.SIGKILL)

    def is_suspended(self, new, chance):
        os.kill(new, signal.SIGSTOP)
        time.sleep(chance.uniform(0, 1))
        os.kill(new, signal.SIGCONT)

    def has_a_predecessor_that_is_suspended(self, _, chance):
        self.is_suspended(self.grace.pid, chance)

    def hangs(self, new, _):
        os.kill(new, signal.SIGSTOP)

    def does_not_start(self, chance):
        """The file of the program is swapped for one that does not work, and swapped back."""
        other, good = os.path.join(self.folder, "other"), os.path.join(self.folder, "good")
        how, says = chance.choice(
            (
                ("script", "has exited with status 3 before it was ready; its errors: the new version is broken"),
                ("link", "has exited with status 1 before it was ready"),
                ("no program", "Exec format error"),
                ("not executable", "Permission denied"),
                ("nothing", "No such file or directory"),
            )
        )
        os.rename(self.program, good)
        try:
            if how == "link":
                os.symlink(shutil.which("false"), self.program)
            elif how != "nothing":
                with open(other, "w") as file:
                    file.write("#!/bin/sh\necho 'the new version is broken' >&2; exit 3\n" if how == "script" else "?")
                os.chmod(other, 0o644 if how == "not executable" else 0o755)
                os.rename(other, self.program)
            new = self.grace.begin()
            ended = self.grace.end_of(new) if isinstance(new, int) else new
        finally:
            os.rename(good, self.program)
        self.assertIn(says, ended)
        return ended


if __name__ == "__main__":
    # Some processes crash here.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    unittest.main(argv=sys.argv, verbosity=2)
