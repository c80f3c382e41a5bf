"""Whether lossmeter can be believed, and what it says of us: loss.py. It must see each kind of loss in servers that are
made to lose, raise no false alarm, and find nothing lost by build/hello."""

import json
import os
import select
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
LOSSMETER = os.path.join(ROOT, "build", "rust", "lossmeter")
HELLO = f"hello={os.path.join(ROOT, 'build', 'hello')} -addr {{addr}}"
UNIX = HELLO.replace("{addr}", "unix:{unix}")
HYPER = f"hyper={LOSSMETER} --serve-peer {{addr}}"
PATIENCE = 240  # seconds that nothing here takes unless it hangs
MODES = "new,silent,busy,keepalive,pieces,slow,pipelined,post,upload,download"


def measure(*args):
    """The exit status, and the row of each server and mode."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "rows.json")
        command = [LOSSMETER, "--json", path, *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if not os.path.exists(path):
            raise AssertionError(done.stdout + done.stderr)
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["rows"]
    return done.returncode, {(row["server"], row["mode"]): row for row in rows}, done.stdout + done.stderr


class Hello(unittest.TestCase):
    def test_a_stop_loses_nothing_and_the_ledgers_agree(self):
        self.loses_nothing(HELLO)

    def test_nor_does_one_that_listens_on_a_unix_socket(self):
        self.loses_nothing(UNIX)

    def test_nor_does_one_that_speaks_tls(self):
        with tempfile.TemporaryDirectory() as directory:
            pem = self_signed(directory)
            self.loses_nothing(f"{HELLO} -tls-cert {pem} -tls-key {pem}", "--tls")

    def loses_nothing(self, server, *args):
        some = ("--modes", MODES, "--stops", "3", "--load", "500ms", "--jobs", "3")
        status, rows, output = measure(*some, *args, server)
        self.assertEqual(status, 0, output)
        for row in rows.values():
            self.assertEqual((row["stops"], row["lost"], row["error_status"]), (3, 0, 0), output)
            self.assertEqual((row["ledgers"], row["ledger_differences"]), (3, []), output)
            self.assertEqual(row["refused"], 3 * 64, output)


# A fault, the mode that shows it, and what it is to be called.
LOSSES = (
    ("close", "new", "closed_fresh"),
    ("reset", "new", "reset_fresh"),
    ("drop", "busy", "dropped"),
    ("race", "busy", "race"),
    ("cut", "busy", "truncated"),
    ("cut-chunked", "busy", "truncated"),
    ("one-of-many", "pipelined", "pipelined"),
    ("close-of-many", "pipelined", "pipelined"),
    ("silence", "new", "timed_out"),
    ("garbage", "new", "bad"),
    ("other-body", "new", "bad"),
    ("longer-body", "new", "bad"),
    ("shorter-body", "new", "bad"),
    ("twice", "new", "bad"),
    ("error", "new", "error_status"),
)


class Alarms(unittest.TestCase):
    def test_a_server_that_is_not_stopped_loses_nothing(self):
        status, rows, output = measure(
            "--no-stop", "--requests", "10000", "--modes", "new,busy,pipelined", HELLO, HYPER
        )
        self.assertEqual(status, 0, output)
        for row in rows.values():
            self.assertGreaterEqual(row["ok"], 10000, output)
            self.assertEqual(row["ok"], row["requests"], output)

    def test_the_losses_of_a_usual_stop_are_found(self):
        status, rows, output = measure(
            "--modes", "new", "--stops", "20", "--load", "200ms", "--jobs", "2", "--seed", "1", HYPER
        )
        self.assertEqual(status, 1, output)
        self.assertGreater(rows["hyper", "new"]["lost"], 0, output)

    def faulty(self, fault, *args, place="{ip} {port}", tls=None):
        if tls is not None:
            args = ("--tls", *args)
        variable = "" if tls is None else f"LOSS_TLS={tls} "
        server = f"{fault}={variable}{sys.executable} {os.path.abspath(__file__)} {fault} {place}"
        few = ("--clients", "2", "--no-stop", "--requests", "20", "--stop-limit", "2s", "--request-limit", "1s")
        status, rows, output = measure(*few, *args, server)
        (row,) = rows.values()
        return status, row, output

    def test_right_answers_in_every_form_are_ok(self):
        for fault in ("length", "chunked", "interim", "until-fin"):
            with self.subTest(fault):
                status, row, output = self.faulty(fault, "--modes", "busy")
                self.assertEqual((status, row["ok"], row["requests"]), (0, 20, 20), output)

    def test_each_kind_of_loss_is_named(self):
        for fault, mode, outcome in LOSSES:
            with self.subTest(fault):
                status, row, output = self.faulty(fault, "--modes", mode)
                self.assertEqual(status, 0 if outcome == "race" else 1, output)
                self.assertGreater(row[outcome], 0, output)
                self.assertEqual(row["requests"], row["ok"] + row[outcome], output)

    def test_losses_are_named_alike_on_unix_sockets(self):
        for fault, mode, outcome in (
            ("close", "new", "closed_fresh"),
            ("drop", "busy", "dropped"),
            ("race", "busy", "dropped"),  # What is written is there: no excuse.
            ("cut", "busy", "truncated"),
            ("one-of-many", "pipelined", "pipelined"),
            ("close-unused", "silent", "closed_unused"),
            ("error", "new", "error_status"),
        ):
            with self.subTest(fault):
                status, row, output = self.faulty(fault, "--modes", mode, place="{unix}")
                self.assertEqual(status, 1, output)
                self.assertGreater(row[outcome], 0, output)
        status, row, output = self.faulty("length", "--modes", "busy", place="{unix}")
        self.assertEqual((status, row["ok"], row["requests"]), (0, 20, 20), output)

    def test_losses_are_named_alike_with_tls(self):
        with tempfile.TemporaryDirectory() as directory:
            tls = self_signed(directory)
            for fault, mode, outcome in (
                # Some of those without TLS.
                ("reset", "new", "reset_fresh"),
                ("cut", "busy", "truncated"),
                ("one-of-many", "pipelined", "pipelined"),
                # In the handshake.
                ("reset-unused", "new", "reset_unused"),
                ("close-unused", "new", "closed_unused"),
                ("alert-unused", "new", "reset_unused"),
                ("stall-unused", "new", "timed_out"),
                ("plain-unused", "new", "bad"),
                # After it.
                ("close-shaken", "silent", "closed_unused"),
                ("reset-shaken", "silent", "reset_unused"),
                # Ends without close_notify.
                ("close-abrupt", "new", "closed_fresh"),
                ("cut-abrupt", "busy", "truncated"),
                ("until-fin-abrupt", "busy", "truncated"),
                ("plain", "new", "bad"),
            ):
                with self.subTest(fault):
                    status, row, output = self.faulty(fault, "--modes", mode, tls=tls)
                    self.assertEqual(status, 0 if outcome == "race" else 1, output)
                    self.assertGreater(row[outcome], 0, output)
                    self.assertEqual(row["requests"], row["ok"] + row[outcome], output)
                    self.assertEqual(row["ends_without_close_notify"] > 0, fault in ABRUPT, output)
            for fault in ("drop", "race"):
                with self.subTest(fault + " on a Unix socket"):
                    status, row, output = self.faulty(fault, "--modes", "busy", place="{unix}", tls=tls)
                    self.assertEqual((status, row["dropped"] > 0), (1, True), output)
            for fault in ("length", "chunked", "interim", "until-fin"):
                with self.subTest(fault):
                    status, row, output = self.faulty(fault, "--modes", "busy", tls=tls)
                    self.assertEqual((status, row["ok"], row["requests"]), (0, 20, 20), output)
            for fault in ("close-idle", "close-idle-abrupt"):
                with self.subTest(fault):
                    status, row, output = self.faulty(fault, "--modes", "keepalive", "--think", "200ms", tls=tls)
                    self.assertEqual((status, row["ok"], row["closed_idle"] > 0), (0, 20, True), output)
                    self.assertEqual(row["ends_without_close_notify"] > 0, fault in ABRUPT, output)

    def test_sessions_are_resumed_unless_they_must_not_be(self):
        with tempfile.TemporaryDirectory() as directory:
            tls = self_signed(directory)
            status, row, output = self.faulty("length", "--modes", "new", tls=tls)
            self.assertEqual(row["handshakes_full"] + row["handshakes_resumed"], row["connections"], output)
            self.assertGreater(row["handshakes_resumed"], 10, output)
            status, row, output = self.faulty("length", "--modes", "new", "--tls-no-resumption", tls=tls)
            self.assertEqual((status, row["handshakes_full"]), (0, row["connections"]), output)

    def test_new_connections_that_are_reset_or_closed_unused_are_lost(self):
        for fault, outcome in (("reset-unused", "reset_unused"), ("close-unused", "closed_unused")):
            with self.subTest(fault):
                status, row, output = self.faulty(fault, "--modes", "silent")
                self.assertEqual((status, row["lost"] > 0, row["lost"]), (1, True, row[outcome]), output)
                self.assertIn(f"\n{outcome}: a new connection, ", output)

    def test_a_connection_that_is_closed_while_idle_is_not_used_again(self):
        status, row, output = self.faulty("close-idle", "--modes", "keepalive", "--think", "200ms")
        self.assertEqual((status, row["ok"], row["closed_idle"] > 0), (0, 20, True), output)

    def test_a_connection_is_not_used_again_when_the_server_has_said_so(self):
        status, row, output = self.faulty("announced-close", "--modes", "busy")
        self.assertEqual((status, row["ok"], row["closed_idle"], row["race"]), (0, 20, 0, 0), output)

    def test_the_command_is_any_line_for_the_shell(self):
        program = os.path.abspath(__file__)
        for line in (
            f"A=1 B=2 {sys.executable} {program} wrong-books {{ip}} {{port}}",
            f"FAULT=wrong-books; {sys.executable} {program} $FAULT {{ip}} {{port}}",
            f"cd {os.path.dirname(program)} && {sys.executable} loss.py wrong-books {{ip}} {{port}}",
            f"exec {sys.executable} {program} wrong-books {{ip}} {{port}}",
        ):
            with self.subTest(line):
                few = ("--clients", "2", "--no-stop", "--requests", "20", "--stop-limit", "9s", "--modes", "new")
                _, rows, output = measure(*few, f"shell={line}")
                (row,) = rows.values()
                # Its own books come only from a server that has had the signal itself.
                self.assertEqual((row["ok"], row["ledgers"], row["never_ended"]), (20, 1, 0), output)

    def test_wrong_books_are_noticed(self):
        status, row, output = self.faulty("wrong-books", "--modes", "new")
        self.assertEqual((status, row["lost"], len(row["ledger_differences"])), (1, 0, 1), output)

    def test_a_server_that_never_ends_is_killed(self):
        status, row, output = self.faulty("endless", "--modes", "new")
        self.assertEqual((status, row["never_ended"]), (1, 1), output)

    def test_what_a_server_does_not_have_is_skipped(self):
        status, row, output = self.faulty("error-at-first", "--modes", "new")
        self.assertEqual((status, row["stops"]), (0, 0), output)
        self.assertIn("GET / is answered with 500", output)


class Restarts(unittest.TestCase):
    """Of servers that do it right, and of others that do not."""

    def restart(self, kind, *args, mode="new", count=3, place="{ip} {port}", before=""):
        server = f"{kind}={before} {sys.executable} {os.path.abspath(__file__)} {kind} {place}"
        few = ("--restart", str(count), "--clients", "8", "--load", "200ms", "--modes", mode, "--think", "100ms")
        limits = ("--stop-limit", "5s", "--request-limit", "1s")
        status, rows, output = measure(*few, *limits, server, *args)
        (row,) = rows.values()
        return status, row, output

    def loses_nothing(self, *args, count=3, **how):
        status, row, output = self.restart("inherits", *args, count=count, **how)
        self.assertEqual((status, row["lost"], row["restarts"], row["failed"]), (0, 0, count, 0), output)
        self.assertEqual((row["ledgers"], row["ledger_differences"]), (1, []), output)
        self.assertEqual(len(row["restart_ms"]), count, output)

    def test_a_restart_that_passes_on_the_socket_loses_nothing(self):
        for mode in ("new", "silent", "keepalive"):
            with self.subTest(mode):
                self.loses_nothing(mode=mode)

    def test_nor_does_it_on_a_unix_socket(self):
        for mode in ("new", "keepalive"):
            with self.subTest(mode):
                self.loses_nothing(mode=mode, place="{unix}")

    def test_nor_does_it_with_tls(self):
        with tempfile.TemporaryDirectory() as directory:
            for mode in ("new", "keepalive"):
                with self.subTest(mode):
                    self.loses_nothing("--tls", mode=mode, before=f"LOSS_TLS={self_signed(directory)}")

    def test_a_server_may_go_into_the_background(self):
        self.loses_nothing(before="setsid", place="{ip} {port} &")

    def test_what_restarts_lose_is_found(self):
        for kind, mode, outcome in (
            # It closes its socket, and the successor binds anew.
            ("rebinds", "new", "refused_early"),
            ("rebinds", "silent", "refused_early"),
            # It ends without an answer to what it has accepted.
            ("leaves", "new", "lost"),
            # The successor answers something else, or nothing.
            ("differs", "new", "bad"),
            ("hangs", "new", "timed_out"),
        ):
            with self.subTest(kind, mode=mode):
                status, row, output = self.restart(kind, mode=mode)
                self.assertEqual((status, row[outcome] > 0), (1, True), output)
                self.assertEqual(row["restarts_with_loss"] > 0, row["lost"] > 0, output)

    def test_a_restart_that_fails_is_the_last_one(self):
        for kind, why in (
            ("dies", "successor"),
            ("stays", "the old process did not end in time"),
            ("ignores", "no successor told its PID in time"),
        ):
            with self.subTest(kind):
                status, row, output = self.restart(kind, "--stop-limit", "1s")
                self.assertEqual((status, row["restarts"], row["failed"]), (1, 1, 1), output)
                self.assertIn("restart failed: ", output)
                self.assertIn(why, output)

    def test_a_command_can_restart_it(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "pids")
            # The last line is that of the successor.
            other = f'[ "$(tail -n 1 {path})" != {{pid}} ]'
            command = f"kill -USR2 {{pid}}; until {other}; do sleep 0.01; done; echo pid $(tail -n 1 {path})"
            self.loses_nothing("--restart-by", command, before=f"LOSS_PIDS={path}")
            with open(path, encoding="ascii") as pids:
                self.assertEqual(len(pids.readlines()), 4)

    def test_a_command_can_leave_the_main_process_as_it_is(self):
        self.loses_nothing("--restart-by", "test {port} -gt 0 && kill -HUP {pid}")

    def test_a_command_that_fails_is_a_restart_that_fails(self):
        for command, why in (
            ("echo not today >&2; exit 3", "exit status 3: not today"),
            ("kill -KILL {pid}; echo so", "ended, and no successor"),
            ("exec sleep 60", "the command did not end in time"),
        ):
            with self.subTest(command):
                status, row, output = self.restart("inherits", "--stop-limit", "1s", "--restart-by", command)
                self.assertEqual((status, row["restarts"], row["failed"]), (1, 1, 1), output)
                self.assertIn(why, output)

    def test_nothing_is_left_of_any_process(self):
        for kind in ("inherits", "stays", "ignores"):
            with self.subTest(kind), tempfile.TemporaryDirectory() as directory:
                path = os.path.join(directory, "pids")
                self.restart(kind, "--stop-limit", "1s", before=f"LOSS_PIDS={path} LOSS_LITTER=1")
                with open(path, encoding="ascii") as file:
                    pids = file.read().split()
                self.assertGreaterEqual(len(pids), 2)
                # Zombies have a directory, too.
                self.assertEqual([pid for pid in pids if os.path.exists(f"/proc/{pid}")], [])


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CLOSE = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\na: b\r\n\r\n"
UNTIL_FIN = b"HTTP/1.1 200 OK\r\n\r\nhello"

# What a faulty server answers instead, from its second request on.
INSTEAD = {
    "chunked": CHUNKED,
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ANSWER,
    "cut": ANSWER[:-1],
    "cut-chunked": CHUNKED[:-2],
    "close-of-many": CLOSE,
    "announced-close": CLOSE,
    "garbage": b"hello\r\n\r\n",
    "other-body": ANSWER.replace(b"hello", b"holla"),
    "shorter-body": ANSWER.replace(b"5\r\n\r\nhello", b"4\r\n\r\nhell"),
    "longer-body": ANSWER.replace(b"5\r\n\r\nhello", b"6\r\n\r\nhello!"),
    "twice": ANSWER * 2,
    "error": ANSWER.replace(b"200 OK", b"503 Service Unavailable"),
    "error-at-first": ANSWER.replace(b"200 OK", b"500 Internal Server Error"),
    "until-fin": UNTIL_FIN,
    "until-fin-abrupt": UNTIL_FIN,
    "cut-abrupt": ANSWER[:-1],
}
# Those that close behind what they have answered instead.
CLOSING = ("cut", "cut-chunked", "until-fin", "one-of-many", "close-of-many", "cut-abrupt", "until-fin-abrupt")
# Without a word, by TLS.
ABRUPT = ("close-unused", "close-abrupt", "cut-abrupt", "until-fin-abrupt", "close-idle-abrupt")


FAULTS = {"length", "reset", "close", "silence", "drop", "race", "endless", "wrong-books", "close-idle", "one-of-many"}
FAULTS |= {"reset-unused", "close-unused", "alert-unused", "stall-unused", "plain-unused", *INSTEAD}
FAULTS |= {"close-shaken", "reset-shaken", "close-abrupt", "close-idle-abrupt", "plain"}
# What no TLS connection that goes on has: a fatal alert, and no TLS at all.
RAW = {"alert": b"\x15\x03\x03\x00\x02\x02\x28", "plain": b"HTTP/1.1 400 Bad Request\r\n\r\n"}


class FaultyServer:
    """Serves one connection per thread, and does what its fault says to every third request, the first excepted. Without a
    port, the place is the path of a Unix socket. By TLS if LOSS_TLS is the path of a certificate and its key."""

    def __init__(self, fault, place, port=None):
        self.fault = fault
        self.count = 0
        self.served = 0
        self.connections = 0
        self.tls = None
        if "LOSS_TLS" in os.environ:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(os.environ["LOSS_TLS"])
        self.listener = self.listen(place, port)

    def listen(self, place, port):
        if port is not None:
            return socket.create_server((place, int(port)), backlog=128)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(place)
        listener.listen(128)
        return listener

    def run(self):
        if self.fault == "endless":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, self.end)
        while True:
            connection, _ = self.listener.accept()
            self.connections += 1
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def end(self, *_):
        if self.fault == "wrong-books":
            # So wrong that requests which their threads have not counted yet cannot make up for it.
            print(json.dumps({"connections": self.connections, "served": self.served + 1000}), flush=True)
        os._exit(0)

    def serve(self, connection):
        faulty = self.connections % 3 == 2
        if connection.family != socket.AF_UNIX:
            # What TLS says last must not wait for an acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            if faulty and self.fault.endswith("-unused"):
                if self.fault == "reset-unused":
                    reset_when_closed(connection)
                elif self.fault == "stall-unused":
                    until_fin(connection)
                else:
                    connection.sendall(RAW.get(self.fault.removesuffix("-unused"), b""))
                    connection.shutdown(socket.SHUT_WR)
                    until_fin(connection)
                return
            if self.tls is not None:
                try:
                    connection = self.tls.wrap_socket(connection, server_side=True)
                except OSError:
                    return
            with connection:
                if faulty and self.fault.endswith("-shaken"):
                    if self.fault == "reset-shaken":
                        reset_when_closed(connection)
                    else:
                        say_goodbye(connection)
                    return
                self.serve_requests(connection)
                if not self.fault.endswith("-abrupt"):
                    say_goodbye(connection)

    def serve_requests(self, connection):
        used = False
        while head := until_blank_line(connection):
            self.count += 1
            faulty = self.count % 3 == 2 or self.fault == "error-at-first"
            if faulty and self.spoil(connection, head, used):
                return
            if not (faulty and self.fault in INSTEAD):
                connection.sendall(ANSWER)
            self.served += 1
            used = True
            if faulty and (self.fault in CLOSING or self.fault.startswith("close-idle")):
                return

    def spoil(self, connection, head, used):
        """Does the fault; whether the connection is to be closed."""
        if self.fault in INSTEAD:
            connection.sendall(INSTEAD[self.fault])
            if self.fault == "announced-close":
                connection.recv(1)  # The client's FIN; or a request that should not have been sent.
                return True
            return self.fault in CLOSING
        if self.fault == "reset":
            reset_when_closed(connection)
        if self.fault == "plain":
            os.write(connection.fileno(), RAW["plain"])
            return True
        if self.fault == "silence" or (self.fault == "drop" and used):
            # Long enough for a client to see that its request has arrived; a FIN by the client ends the wait.
            connection.settimeout(0.3 if self.fault == "drop" else PATIENCE)
            try:
                connection.recv(1)
            except TimeoutError:
                pass
        return self.fault in ("close", "close-abrupt", "reset", "silence") or (self.fault in ("drop", "race") and used)


class RestartingServer(FaultyServer):
    """Is replaced by a successor at SIGUSR2. It does that right if it "inherits" the socket: then it ends when it has
    answered what it has accepted, and prints its ledger. The other kinds do something wrong."""

    def __init__(self, kind, place, port=None):
        self.is_successor = "LOSS_READY" in os.environ
        self.fd = os.environ.pop("LOSS_FD", None)
        if port is None and self.fd is None and os.path.exists(place):
            os.unlink(place)
        super().__init__(kind, place, port)
        self.kind = kind
        self.drains = False
        self.change = threading.Condition()
        self.open = 0
        self.accepting = threading.Thread(target=self.accept)
        self.stop, self.stopper = os.pipe()

    def listen(self, place, port):
        listener = super().listen(place, port) if self.fd is None else socket.socket(fileno=int(self.fd))
        # What two processes wait for, one of them gets.
        listener.setblocking(False)
        return listener

    def run(self):
        signals = {signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self.tell()
        if self.is_successor and self.kind == "dies":
            return
        self.accepting.start()
        if self.is_successor:
            os.write(int(os.environ.pop("LOSS_READY")), b"!")
        while (got := signal.sigwait(signals)) != signal.SIGTERM:
            if got == signal.SIGUSR2 and self.kind != "ignores" and self.restart():
                break
        if self.kind == "leaves":
            os._exit(0)
        self.drains = True
        self.stop_accepting()
        if got == signal.SIGTERM:
            # Nobody else accepts what still waits.
            while self.accept_one():
                pass
        with self.change:
            self.change.wait_for(lambda: self.open == 0)
        print(json.dumps({"connections": self.connections, "served": self.served}), flush=True)
        os._exit(0)

    def tell(self):
        """Which process this is: to lossmeter, and to a test that wants to know all of them."""
        pids = [os.getpid()]
        if "LOSS_LITTER" in os.environ:
            pids.append(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
        if "LOSS_PIDS" in os.environ:
            with open(os.environ["LOSS_PIDS"], "a", encoding="ascii") as file:
                file.writelines(f"{pid}\n" for pid in pids)
        print(f"serving with pid {os.getpid()}", flush=True)

    def restart(self):
        """Whether a successor serves."""
        ready, tell = os.pipe()
        environment = {**os.environ, "LOSS_READY": str(tell)}
        pass_on = [tell]
        if self.kind == "rebinds":
            self.stop_accepting()
            self.listener.close()
        else:
            environment["LOSS_FD"] = str(self.listener.fileno())
            pass_on.append(self.listener.fileno())
        successor = subprocess.Popen([sys.executable, *sys.argv], env=environment, pass_fds=pass_on)
        os.close(tell)
        is_ready = os.read(ready, 1) != b""
        os.close(ready)
        if not is_ready:
            successor.wait()
        return is_ready and self.kind != "stays"

    def accept(self):
        while select.select([self.listener, self.stop], [], [])[0] == [self.listener]:
            self.accept_one()

    def stop_accepting(self):
        if self.accepting.is_alive():
            os.close(self.stopper)
            self.accepting.join()

    def accept_one(self):
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return False
        connection.setblocking(True)
        with self.change:
            self.connections += 1
            self.open += 1
        threading.Thread(target=self.serve, args=(connection,)).start()
        return True

    def serve(self, connection):
        super().serve(connection)
        with self.change:
            self.open -= 1
            self.change.notify()

    def serve_requests(self, connection):
        while until_blank_line(connection):
            if self.kind == "leaves":
                time.sleep(0.02)  # The work that is lost.
            if self.is_successor and self.kind == "hangs":
                until_fin(connection)
                return
            closes = self.drains
            answer = CLOSE if closes else ANSWER
            if self.is_successor and self.kind == "differs":
                answer = INSTEAD["other-body"]
            with self.change:
                self.served += 1
            connection.sendall(answer)
            if closes:
                return


RESTARTING = {"inherits", "rebinds", "leaves", "differs", "hangs", "dies", "stays", "ignores"}


def self_signed(directory):
    """The path of a certificate and its key."""
    path = os.path.join(directory, "tls.pem")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path)
    command = ["openssl", "req", "-x509", *key, "-days", "2", "-subj", "/CN=localhost", "-out", path + ".cert"]
    subprocess.run(command, check=True, capture_output=True)
    with open(path, "a", encoding="ascii") as both, open(path + ".cert", encoding="ascii") as cert:
        both.write(cert.read())
    return path


def say_goodbye(connection):
    """Sends close_notify and FIN, by TLS. A reset that was asked for needs none."""
    if isinstance(connection, ssl.SSLSocket) and not is_to_be_reset(connection):
        try:
            connection.settimeout(1)
            connection.unwrap()
        except (OSError, ValueError):
            pass


def is_to_be_reset(connection):
    return struct.unpack("ii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0] != 0


def until_fin(connection):
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass


def reset_when_closed(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def until_blank_line(connection):
    """One head, and nothing behind it; empty at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        try:
            byte = connection.recv(1)
        except (ConnectionError, ssl.SSLError):
            byte = b""
        if not byte:
            return b""
        head += byte
    return head


if __name__ == "__main__":
    if len(sys.argv) in (3, 4) and sys.argv[1] in FAULTS:
        FaultyServer(*sys.argv[1:]).run()
    if len(sys.argv) in (3, 4) and sys.argv[1] in RESTARTING:
        RestartingServer(*sys.argv[1:]).run()
        sys.exit()
    unittest.main(verbosity=2)
