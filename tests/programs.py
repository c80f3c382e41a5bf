"""The example programs, as a person uses them: programs.py. Every demo, in every language, must behave the same."""

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build")
PATIENCE = 60  # seconds that nothing here takes unless it hangs


class Program:
    """A running example, on a port of its own."""

    def __init__(self, command, *flags):
        env = dict(os.environ, PYTHONPATH=os.path.join(ROOT, "bindings", "python"))
        self.process = subprocess.Popen(
            [*command, "-addr", "127.0.0.1:0", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        self.banner = self.process.stdout.readline()
        self.port = int(re.fullmatch(r"serving on https?://127\.0\.0\.1:(\d+)/ with pid \d+\n", self.banner)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def get(self, target, method="GET", body=None):
        with contextlib.closing(self.connect()) as client:
            client.request(method, target, body)
            response = client.getresponse()
            return response.status, response.read()

    def signal(self, number):
        self.process.send_signal(number)

    def until_refused(self):
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue  # half-way through its handshake when the listener closed

    def end(self):
        return self.process.wait(timeout=PATIENCE)


class Certificates:
    """A place for a certificate and its key, and pairs that can be put there."""

    def __init__(self, test, folder):
        self.cert, self.key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
        self.flags = ["-tls-cert", self.cert, "-tls-key", self.key]
        self.pairs = [os.path.join(folder, name) for name in ("first", "second")]
        for pair in self.pairs:
            made = subprocess.run([os.path.join(ROOT, "examples", "certs.sh"), pair], capture_output=True, text=True)
            if made.returncode == 77:
                test.skipTest(made.stdout.strip())
            test.assertEqual(made.returncode, 0, made.stdout + made.stderr)

    def put(self, cert, key):
        """Puts the certificate of one pair and the key of another there. Returns the certificate."""
        shutil.copy(os.path.join(self.pairs[key], "server-key.pem"), self.key)
        shutil.copy(os.path.join(self.pairs[cert], "server.pem"), self.cert)
        with open(self.cert, encoding="ascii") as file:
            return ssl.PEM_cert_to_DER_cert(file.read())


class Demo:
    """What each demo does; a subclass says which."""

    command = []

    @contextlib.contextmanager
    def sleeper(self, duration, *flags):
        """A running demo, and a response whose first line has come."""
        with Program(self.command, *flags) as demo, contextlib.closing(demo.connect()) as client:
            client.request("GET", f"/?duration={duration}")
            with client.getresponse() as response:
                line = response.readline().decode()
                self.assertEqual(line, f"going to sleep {duration} with pid {demo.process.pid}\n")
                yield demo, response

    def assert_cut(self, demo, response):
        with self.assertRaises((http.client.IncompleteRead, ConnectionResetError)):
            response.read()
        self.assertGreater(demo.end(), 0)

    def test_a_stop_lets_the_sleeper_finish_and_refuses_others(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number), self.sleeper("1s") as (demo, response):
                demo.signal(number)
                demo.until_refused()
                self.assertEqual(response.read().decode(), f"slept 1s with pid {demo.process.pid}\n")
                self.assertEqual(demo.end(), 0)

    def test_a_second_signal_cuts_at_once_and_the_exit_status_says_so(self):
        with self.sleeper("10m") as (demo, response):
            demo.signal(signal.SIGTERM)
            demo.until_refused()
            time.sleep(0.6)  # One that comes sooner tells the same thing again.
            demo.signal(signal.SIGTERM)
            self.assert_cut(demo, response)

    def test_the_stop_timeout_cuts_and_the_exit_status_says_so(self):
        with self.sleeper("1h", "--stop-timeout=50ms", "-kill-timeout", "1s") as (demo, response):
            demo.signal(signal.SIGTERM)
            self.assert_cut(demo, response)

    def test_a_hangup_reads_the_certificate_again(self):
        with tempfile.TemporaryDirectory() as folder:
            certificates = Certificates(self, folder)
            first = certificates.put(0, 0)
            with Program(self.command, *certificates.flags) as demo:

                def until_served(certificate):
                    deadline = time.monotonic() + PATIENCE
                    while ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", demo.port))) != certificate:
                        self.assertLess(time.monotonic(), deadline)

                until_served(first)
                second = certificates.put(1, 1)
                demo.signal(signal.SIGHUP)
                until_served(second)
                # What cannot be used changes nothing, and ends nothing. The program says so.
                certificates.put(0, 1)
                demo.signal(signal.SIGHUP)
                self.assertRegex(demo.process.stderr.readline(), "key")
                until_served(second)
                demo.signal(signal.SIGUSR2)
                self.assertTrue(any("restart failed: " in line for line in demo.process.stderr))
                until_served(second)
                first = certificates.put(0, 0)
                demo.signal(signal.SIGHUP)
                until_served(first)
                demo.signal(signal.SIGTERM)
                self.assertEqual(demo.end(), 0)

    def test_durations_are_those_of_go(self):
        with Program(self.command) as demo:
            for good in ("0", "1ms", "1.5ms", "0h0m1ms"):
                status, body = demo.get(f"/?duration={good}")
                self.assertEqual(status, 200, good)
                self.assertIn(f"slept {good} ", body.decode())
            for bad in ("", "x", "1", "-1s", "1d", "s", "1..5s", "9999999h"):
                self.assertEqual(demo.get(f"/?duration={bad}")[0], 400, bad)

    def test_the_duration_may_stand_anywhere_in_the_query(self):
        with Program(self.command) as demo:
            for query in ("duration=1ms&id=7", "a=b&duration=1ms", "&x&dur%61tion=1%6ds&duration=2ms"):
                status, body = demo.get(f"/?{query}")
                self.assertEqual(status, 200, query)
                self.assertIn("slept 1ms ", body.decode())
            for none in ("", "?", "?id=7", "?durations=1ms"):
                self.assertIn(b"slept 0 ", demo.get(f"/{none}")[1])
            for bad in ("duration", "duration=1ms%00", "duration=1%"):
                self.assertEqual(demo.get(f"/?{bad}")[0], 400, bad)


class DemoInC(Demo, unittest.TestCase):
    command = [os.path.join(BUILD, "demo")]

    def test_the_report_is_for_people_and_for_programs(self):
        with Program(self.command) as demo:
            self.assertEqual(demo.get("/")[0], 200)
            demo.signal(signal.SIGTERM)
            people, programs = demo.process.stdout.read().splitlines()
            self.assertRegex(people, r"^stopped after \d+ ms: 1 requests, 1 served, 0 killed$")
            self.assert_report(programs)
            self.assertEqual(demo.end(), 0)

    def assert_report(self, line):
        report = json.loads(line)
        with open(os.path.join(ROOT, "include", "httpdown.h"), encoding="utf-8") as header:
            struct = re.search(r"typedef struct \{([^{}]*)\} httpdown_stop_report;", header.read())[1]
        fields = re.findall(r"^\s+\w+ (\w+);", struct, re.MULTILINE)
        self.assertEqual(list(report), [field for field in fields if field != "struct_size"])
        self.assertEqual((report["requests"], report["served"], report["conns_open"]), (1, 1, 0))


class DemoInCpp(Demo, unittest.TestCase):
    command = [os.path.join(BUILD, "demo-cpp")]


class DemoInPython(Demo, unittest.TestCase):
    command = [sys.executable, os.path.join(ROOT, "examples", "demo.py")]


class DemoInRust(Demo, unittest.TestCase):
    command = [os.path.join(BUILD, "rust", "demo")]


class Asyncio(unittest.TestCase):
    command = [sys.executable, os.path.join(ROOT, "examples", "asyncio_echo.py"), "127.0.0.1:0"]

    def test_a_stop_lets_an_upload_and_a_stream_finish(self):
        env = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "bindings", "python")}
        with subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, env=env) as program:
            self.addCleanup(program.kill)
            address = program.stdout.readline().removeprefix("serving on ").strip()
            stream = http.client.HTTPConnection(address, timeout=30)
            stream.request("GET", "/ticks")
            ticks = stream.getresponse()
            self.assertEqual(ticks.readline(), b"tick\n")
            host, _, port = address.rpartition(":")
            upload = socket.create_connection((host, int(port)), timeout=30)
            upload.sendall(b"POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            echoed = upload.makefile("rb")
            self.assertIn(b"hello\r\n", iter(echoed.readline, b""))
            program.send_signal(signal.SIGTERM)
            self.assertTrue(ticks.read().endswith(b"goodbye\n"))
            upload.sendall(b"4\r\nbye!\r\n0\r\n\r\n")
            self.assertEqual(echoed.read(), b"4\r\nbye!\r\n0\r\n\r\n")
            echoed.close()
            stream.close()
            upload.close()
            self.assertEqual(program.stdout.read(), "2 served, 0 killed\n")
            self.assertEqual(program.wait(30), 0)


class Hello(unittest.TestCase):
    def test_every_dispatch_mode_answers_alike(self):
        upload = os.urandom(3_000_000)
        for mode in ("pool", "inline", "queue"):
            with self.subTest(mode), Program([os.path.join(BUILD, "hello")], "-dispatch", mode, "-threads", "1") as hello:
                self.assertEqual(hello.get("/"), (200, b"Hello, World!"))
                self.assertEqual(hello.get("/any", "PUT", b"x"), (200, b"Hello, World!"))
                self.assertEqual(hello.get("/echo", "POST", upload), (200, upload))
                self.assertEqual(hello.get("/echo", "POST", b""), (200, b""))
                self.assertEqual(hello.get("/bytes/0"), (200, b""))
                self.assertEqual(hello.get("/bytes/1000000"), (200, bytes(1_000_000)))
                self.assertEqual(hello.get("/bytes/1x")[0], 400)
                self.assertEqual(hello.get("/sleep/1"), (200, b"Hello, World!"))
                self.assertEqual(hello.get("/sleep/")[0], 400)
                hello.signal(signal.SIGTERM)
                self.assertEqual(hello.end(), 0)

    def test_bad_flags_are_refused(self):
        for flags in (["-nonsense"], ["-dispatch", "sideways"], ["-lame-duck", "soon"], ["-addr"]):
            done = subprocess.run([os.path.join(BUILD, "hello"), *flags], capture_output=True, timeout=PATIENCE)
            self.assertEqual(done.returncode, 2, flags)
            self.assertNotEqual(done.stderr, b"", flags)


class Files(unittest.TestCase):
    COMMAND = [os.path.join(BUILD, "files")]
    DATE = "Sun, 06 Nov 1994 08:49:37 GMT"

    def setUp(self):
        if shutil.which("curl") is None:
            self.skipTest("there is no curl (make tools)")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.outside = os.path.join(folder.name, "secret")
        self.root = os.path.join(folder.name, "root")
        os.makedirs(os.path.join(self.root, "sub", "inner"))
        self.put("../secret", b"secret")
        self.put("index.html", b"<p>home")
        self.put("sub/index.html", b"<p>sub")
        self.put("a b\xff.txt".encode("latin-1"), b"odd name")
        self.put("digits.txt", b"0123456789")

    def put(self, name, content):
        path = os.path.join(os.fsencode(self.root), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(content)
        os.utime(path, (784111777, 784111777))

    def serve(self):
        return Program(self.COMMAND, "-root", self.root)

    def curl(self, server, target, *flags):
        """The status, the header fields and the body."""
        url = f"http://127.0.0.1:{server.port}{target}"
        command = ["curl", "-q", "--silent", "--show-error", "--noproxy", "*", "--path-as-is", "--include", "--globoff"]
        done = subprocess.run([*command, *flags, url], capture_output=True, timeout=PATIENCE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body

    def test_what_is_in_the_folder_is_served(self):
        with self.serve() as server:
            for target, kind, body in (
                ("/digits.txt", "text/plain; charset=utf-8", b"0123456789"),
                ("/digits.txt?query", "text/plain; charset=utf-8", b"0123456789"),
                ("/sub/../digits.txt", "text/plain; charset=utf-8", b"0123456789"),
                ("/", "text/html; charset=utf-8", b"<p>home"),
                ("/sub/", "text/html; charset=utf-8", b"<p>sub"),
                ("/a%20b%ff.txt", "text/plain; charset=utf-8", b"odd name"),
            ):
                status, fields, found = self.curl(server, target)
                self.assertEqual((status, fields["content-type"], found), (200, kind, body), target)
            status, fields, _ = self.curl(server, "/sub")
            self.assertEqual((status, fields["location"]), (301, "/sub/"))
            for target in ("/none", "/sub/inner/", "/digits.txt/", "/digits.txt%00", "//sub", "/" + "x" * 5000):
                self.assertEqual(self.curl(server, target)[0], 404, target)
            status, fields, _ = self.curl(server, "/digits.txt", "--data", "x")
            self.assertEqual((status, fields["allow"]), (405, "GET, HEAD"))
            server.signal(signal.SIGTERM)
            self.assertEqual(server.end(), 0)

    def test_a_client_gets_what_it_asks_for(self):
        with self.serve() as server:
            _, fields, _ = self.curl(server, "/digits.txt")
            tag = fields["etag"]
            self.assertEqual(fields["last-modified"], self.DATE)
            for flags, status, body in (
                (["--range", "2-4"], 206, b"234"),
                (["--range", "-3"], 206, b"789"),
                (["--range", "10-"], 416, b"the file is shorter\n"),
                (["--header", f"If-None-Match: {tag}"], 304, b""),
                (["--header", 'If-None-Match: "x"'], 200, b"0123456789"),
                (["--time-cond", self.DATE], 304, b""),
                (["--header", f"If-Range: {tag}", "--range", "0-0"], 206, b"0"),
                (["--header", 'If-Range: "x"', "--range", "0-0"], 200, b"0123456789"),
            ):
                found = self.curl(server, "/digits.txt", *flags)
                self.assertEqual((found[0], found[2]), (status, body), flags)
            status, fields, body = self.curl(server, "/digits.txt", "--head")
            self.assertEqual((status, fields["content-length"], fields["etag"], body), (200, "10", tag, b""))
            # A download that was broken off goes on.
            part = os.path.join(self.root, "part")
            with open(part, "wb") as file:
                file.write(b"0123")
            url = f"http://127.0.0.1:{server.port}/digits.txt"
            command = ["curl", "-q", "--silent", "--noproxy", "*", "--continue-at", "-", "--output", part, url]
            subprocess.run(command, timeout=PATIENCE, check=True)
            with open(part, "rb") as file:
                self.assertEqual(file.read(), b"0123456789")

    def test_nothing_outside_of_the_folder_is_served(self):
        for name, to in (("out", self.outside), ("relative", "../secret"), ("folder", os.path.dirname(self.outside))):
            os.symlink(to, os.path.join(self.root, name))
        os.symlink("digits.txt", os.path.join(self.root, "within"))
        os.mkfifo(os.path.join(self.root, "fifo"))
        with self.serve() as server:
            self.assertEqual(self.curl(server, "/within")[::2], (200, b"0123456789"))
            self.assertEqual(self.curl(server, "/fifo")[0], 404)
            for target in (
                "/../secret",
                "/%2e%2e/secret",
                "/..%2fsecret",
                "/%2e%2e%2fsecret",
                "/sub/../../secret",
                "/sub/%2e%2e/%2e%2e/secret",
                "/..",
                "/../",
                "/.%2e/root/digits.txt",
                "/../etc/passwd",
                "/../../../../../../../../etc/passwd",
                "/%2fetc/passwd",
                "/%2fetc%2fpasswd",
                "//etc/passwd",
                "/..%00/secret",
                "/out",
                "/relative",
                "/folder/secret",
                f"/{self.outside}",
            ):
                status, _, body = self.curl(server, target)
                self.assertIn(status, (403, 404), target)
                self.assertNotIn(b"secret", body, target)
                self.assertNotIn(b"root:", body, target)

    def test_long_files_take_no_memory(self):
        size = 1 << 30
        with open(os.path.join(self.root, "long"), "wb") as file:
            file.truncate(size)
        with self.serve() as server, contextlib.ExitStack() as stack:
            slow = []
            for _ in range(20):
                client = stack.enter_context(contextlib.closing(server.connect()))
                client.request("GET", "/long")
                slow.append(stack.enter_context(client.getresponse()))
                self.assertEqual(slow[-1].length, size)
            command = ["curl", "-q", "--silent", "--noproxy", "*", f"http://127.0.0.1:{server.port}/long"]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
                seen = 0
                while piece := curl.stdout.read(1 << 20):
                    seen += len(piece)
            self.assertEqual((seen, curl.returncode), (size, 0))
            # One that reads slowly gets what it reads, and holds up nobody.
            self.assertEqual(slow[0].read(1 << 20), bytes(1 << 20))
            self.assertEqual(server.get("/digits.txt"), (200, b"0123456789"))
            with open(f"/proc/{server.process.pid}/status", encoding="ascii") as status:
                most = int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1])
            self.assertLess(most, 64 << 10)

    def test_a_stop_lets_a_file_come_to_its_end(self):
        with open(os.path.join(self.root, "long"), "wb") as file:
            file.truncate(64 << 20)
        with self.serve() as server, contextlib.closing(server.connect()) as client:
            client.request("GET", "/long")
            with client.getresponse() as response:
                server.signal(signal.SIGTERM)
                server.until_refused()
                self.assertEqual(len(response.read()), 64 << 20)
            self.assertEqual(server.end(), 0)


class Events(unittest.TestCase):
    def stream(self, stack, server):
        """A client's stream of events."""
        client = stack.enter_context(contextlib.closing(server.connect()))
        client.request("GET", "/")
        response = stack.enter_context(client.getresponse())
        self.assertEqual(response.getheader("content-type"), "text/event-stream")
        return response

    def event(self, stream):
        lines = iter(stream.readline, b"")
        return b"".join(itertools.takewhile(lambda line: line != b"\n", lines))

    def test_all_get_their_events_and_end_at_a_stop(self):
        with Program([os.path.join(BUILD, "events")], "-interval", "5ms") as server, contextlib.ExitStack() as stack:
            # One that takes nothing.
            deaf = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE))
            deaf.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            streams = [self.stream(stack, server) for _ in range(20)]
            for stream in streams:
                first, second = (re.fullmatch(rb"id: (\d+)\ndata: tick\n", self.event(stream))[1] for _ in range(2))
                self.assertEqual(int(second), int(first) + 1)
            # One that leaves.
            streams.pop().close()
            server.signal(signal.SIGTERM)
            for stream in streams:
                events = iter(lambda stream=stream: self.event(stream), b"")
                self.assertEqual(list(events)[-1], b"event: end\ndata:\n")
            deaf.shutdown(socket.SHUT_WR)
            while deaf.recv(1 << 16):
                pass
            output, _ = server.process.communicate(timeout=PATIENCE)
            report = json.loads(output)
            self.assertEqual((report["requests"], report["failed"], report["killed"]), (21, 0, 0))
            self.assertEqual(server.process.returncode, 0)


class LongPoll(unittest.TestCase):
    def poll(self, stack, server, after):
        client = stack.enter_context(contextlib.closing(server.connect()))
        client.request("GET", f"/?after={after}")
        return client

    def assert_answer(self, client, version, text):
        response = client.getresponse()
        self.assertEqual((response.status, response.getheader("version"), response.read()), (200, version, text))

    def report(self, server):
        output, _ = server.process.communicate(timeout=PATIENCE)
        self.assertEqual(server.process.returncode, 0)
        return json.loads(output)

    def test_who_waits_is_told_of_the_next_value(self):
        with Program([os.path.join(BUILD, "long_poll")]) as server, contextlib.ExitStack() as stack:
            polls = [self.poll(stack, server, 0) for _ in range(20)]
            self.assertEqual(server.get("/", "POST", b"first"), (200, b"first"))
            for poll in polls:
                self.assert_answer(poll, "1", b"first")
            # The next change may come before the next poll.
            self.assertEqual(server.get("/", "POST", b"second"), (200, b"second"))
            self.assertEqual(server.get("/", "POST", b""), (200, b""))
            self.assert_answer(self.poll(stack, server, 1), "3", b"")
            self.assertEqual(server.get("/", "POST", bytes(1001))[0], 413)
            server.signal(signal.SIGTERM)
            report = self.report(server)
            self.assertEqual((report["served"], report["requests"]), (25, 25))

    def test_a_stop_answers_those_who_wait_and_those_who_leave_are_dropped(self):
        with Program([os.path.join(BUILD, "long_poll")]) as server, contextlib.ExitStack() as stack:
            self.assertEqual(server.get("/", "POST", b"x")[0], 200)
            polls = [self.poll(stack, server, 1) for _ in range(10)]
            for leaver in polls[:3]:
                leaver.close()
            for poll in polls[3:]:
                # Each waits by now: its connection has been served in this order.
                poll.sock.settimeout(0.05)
                with self.assertRaises(TimeoutError):
                    poll.sock.recv(1)
                poll.sock.settimeout(PATIENCE)
            server.signal(signal.SIGTERM)
            for poll in polls[3:]:
                response = poll.getresponse()
                self.assertEqual((response.status, response.read()), (204, b""))
            report = self.report(server)
            self.assertEqual((report["served"], report["gone"], report["killed"]), (8, 3, 0))


class Grace(unittest.TestCase):
    COMMAND = [os.path.join(BUILD, "grace")]
    NAMES = ("Zero", "First", "Second")
    STARTED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4} \w+"

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)

    def serve(self, *flags, addrs=("127.0.0.1:0",) * 3):
        """Starts the program, and finds out where its three servers listen."""
        places = [text for index, addr in enumerate(addrs) for text in (f"-a{index}", addr)]
        self.process = self.stack.enter_context(
            subprocess.Popen(
                [*self.COMMAND, *places, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        self.stack.callback(self.process.kill)
        banner = rf"(\w+) +started at ({self.STARTED}), serving on (?:https?://127.0.0.1:)?(\S+?)/? with pid (\d+)\n"
        lines = [re.fullmatch(banner, self.process.stdout.readline()).groups() for _ in addrs]
        self.assertEqual({int(pid) for *_, pid in lines}, {self.process.pid})
        self.assertEqual(len({started for _, started, *_ in lines}), 1)
        self.started = lines[0][1]
        places = {name: place for name, _, place, _ in lines}
        self.ports = [places[name] for name in self.NAMES]

    def ask(self, index, target):
        client = http.client.HTTPConnection("127.0.0.1", int(self.ports[index]), timeout=PATIENCE)
        self.stack.callback(client.close)
        client.request("GET", target)
        return client

    def get(self, index, target):
        response = self.ask(index, target).getresponse()
        return response.status, response.read().decode()

    def line(self, index, ns):
        pid = self.process.pid
        return f"{self.NAMES[index]:6} started at {self.started} slept for {ns} nanoseconds from pid {pid}.\n"

    def assert_sleeps(self, client):
        client.sock.settimeout(0.05)
        with self.assertRaises(TimeoutError):
            client.sock.recv(1)
        client.sock.settimeout(PATIENCE)

    def until_refused(self):
        for port in self.ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE).close()
                except ConnectionRefusedError:
                    break
                except ConnectionResetError:
                    continue

    def end(self):
        """The exit status, and the reports."""
        output, self.errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, [json.loads(line) for line in output.splitlines()]

    def test_three_addresses_answer(self):
        self.serve()
        for index in range(3):
            for duration, ns in (("0s", 0), ("0", 0), ("1ms", 1_000_000), ("0.0015s", 2_000_000), ("0h0m1ms", 1_000_000)):
                self.assertEqual(self.get(index, f"/sleep/?duration={duration}"), (200, self.line(index, ns)))
            for bad in ("", "?duration=", "?duration=20", "?duration=-1s", "?duration=1d", "?duration=s", "?x=1s"):
                self.assertEqual(self.get(index, f"/sleep/{bad}")[0], 400, bad)
            self.assertEqual(self.get(index, "/sleep?duration=0s")[0], 404)
        self.process.send_signal(signal.SIGTERM)
        status, reports = self.end()
        self.assertEqual((status, [report["served"] for report in reports]), (0, [13] * 3))

    def test_a_stop_lets_the_sleepers_of_all_servers_finish(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                self.serve()
                sleepers = [self.ask(index, f"/sleep/?duration={2 + index / 10}s") for index in range(3)]
                for sleeper in sleepers:
                    self.assert_sleeps(sleeper)
                self.process.send_signal(number)
                self.until_refused()
                for index, sleeper in enumerate(sleepers):
                    response = sleeper.getresponse()
                    self.assertEqual(response.read().decode(), self.line(index, 2_000_000_000 + index * 100_000_000))
                    self.assertEqual(response.getheader("connection"), "close")
                status, reports = self.end()
                self.assertEqual((status, self.errors), (0, ""))
                for report in reports:
                    self.assertEqual((report["requests"], report["served"]), (1, 1))

    def test_a_sleeper_takes_no_thread_and_one_that_leaves_is_forgotten(self):
        self.serve()

        def threads():
            return len(os.listdir(f"/proc/{self.process.pid}/task"))

        self.assertEqual(self.get(0, "/sleep/?duration=0s")[0], 200)
        before = threads()
        sleepers = [self.ask(0, "/sleep/?duration=1h") for _ in range(100)]
        self.assert_sleeps(sleepers[-1])
        self.assertEqual(threads(), before)
        # They wake in the order of their times, not in that in which they came.
        late, soon = self.ask(0, "/sleep/?duration=300ms"), self.ask(0, "/sleep/?duration=100ms")
        self.assertEqual(soon.getresponse().read().decode(), self.line(0, 100_000_000))
        self.assertEqual(late.getresponse().read().decode(), self.line(0, 300_000_000))
        for sleeper in sleepers:
            # With a reset: who only closes its half still gets its answer.
            sleeper.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sleeper.close()
        self.process.send_signal(signal.SIGTERM)
        status, reports = self.end()
        self.assertEqual((status, reports[0]["gone"], reports[0]["served"]), (0, 100, 3))

    def test_a_second_signal_cuts_at_once_and_the_exit_status_says_so(self):
        self.serve()
        sleepers = [self.ask(index, "/sleep/?duration=10m") for index in range(3)]
        for sleeper in sleepers:
            self.assert_sleeps(sleeper)
        self.process.send_signal(signal.SIGINT)
        self.until_refused()
        time.sleep(0.6)  # One that comes sooner tells the same thing again.
        self.process.send_signal(signal.SIGINT)
        for sleeper in sleepers:
            with self.assertRaises((http.client.RemoteDisconnected, ConnectionResetError)):
                sleeper.getresponse()
        status, reports = self.end()
        self.assertEqual((status, [report["killed"] for report in reports]), (1, [1] * 3))

    def test_the_stop_timeout_cuts(self):
        self.serve("-stop-timeout", "50ms", "-kill-timeout=10s")
        self.assert_sleeps(self.ask(1, "/sleep/?duration=1h"))
        self.process.send_signal(signal.SIGTERM)
        status, reports = self.end()
        self.assertEqual((status, [report["killed"] for report in reports]), (1, [0, 1, 0]))

    def test_an_address_that_cannot_be_used_is_named(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            addr = f"127.0.0.1:{taken.getsockname()[1]}"
            command = [*self.COMMAND, "-a0", "127.0.0.1:0", "-a1", addr, "-a2", "127.0.0.1:0"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"address in use: server 1 ({addr}): ", done.stderr)
        for flags in (["-nonsense"], ["-h"], ["-a1"], ["-stop-timeout", "1"]):
            done = subprocess.run([*self.COMMAND, *flags], capture_output=True, timeout=PATIENCE, check=False)
            self.assertEqual(done.returncode, 2, flags)
            self.assertNotEqual(done.stderr, b"", flags)

    def test_unix_sockets(self):
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        paths = [os.path.join(folder, name) for name in self.NAMES]
        self.serve(addrs=[f"unix:{path}" for path in paths])
        self.assertEqual(self.ports, [f"unix:{path}" for path in paths])
        for index, path in enumerate(paths):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(path)
                client.sendall(b"GET /sleep/?duration=1ms HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda client=client: client.recv(4096), b""))
                self.assertTrue(answer.decode().endswith(self.line(index, 1_000_000)), answer)
        self.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.end()[0], 0)
        self.assertEqual(os.listdir(folder), [])

    def test_a_hangup_reads_the_certificate_of_all_servers_again(self):
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        certificates = Certificates(self, folder)

        def until_served(certificate):
            deadline = time.monotonic() + PATIENCE
            for port in self.ports:
                while ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", int(port)))) != certificate:
                    self.assertLess(time.monotonic(), deadline)

        first = certificates.put(0, 0)
        self.serve(*certificates.flags)
        until_served(first)
        second = certificates.put(1, 1)
        self.process.send_signal(signal.SIGHUP)
        until_served(second)
        self.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.end()[0], 0)


class Limits(unittest.TestCase):
    def test_each_limit_is_told_to_the_client_and_to_the_monitoring(self):
        with Program([os.path.join(BUILD, "limits")]) as server:
            for status, request in (
                (200, b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10000\r\n\r\n" + bytes(10000)),
                (414, b"GET /" + b"x" * 1000 + b" HTTP/1.1\r\nHost: test\r\n\r\n"),
                (431, b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 4000 + b"\r\n\r\n"),
                (431, b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 20 + b"\r\n"),
                (413, b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10001\r\n\r\n"),
                (
                    413,
                    b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
                    + b"1000\r\n%s\r\n" % bytes(0x1000) * 3,
                ),
            ):
                with self.subTest(request[:60]):
                    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
                        client.sendall(request)
                        response = http.client.HTTPResponse(client)
                        response.begin()
                        self.assertEqual(response.status, status)
                        self.assertEqual(response.getheader("connection"), None if status == 200 else "close")
            with contextlib.closing(server.connect()) as client:
                for left in reversed(range(50)):
                    client.request("GET", "/")
                    response = client.getresponse()
                    self.assertEqual(response.read(), b"0 bytes\n")
                    self.assertEqual(response.getheader("connection"), None if left else "close")
            server.signal(signal.SIGTERM)
            _, lines = server.process.communicate(timeout=PATIENCE)
            told = sorted(set(lines.splitlines()))
            self.assertEqual(told, [f"limit.{name} 1" for name in ("body", "conn_requests", "head", "target")])

    def test_who_comes_when_all_are_busy_is_told_so_at_once(self):
        with Program([os.path.join(BUILD, "limits")], "-slow", "1s") as server, contextlib.ExitStack() as stack:

            def ask():
                client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE))
                client.sendall(b"GET /slow HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                return client

            def status(client):
                response = http.client.HTTPResponse(client)
                response.begin()
                return response.status, response.read(), response.getheader("retry-after")

            first = ask()
            self.assertEqual(first.recv(12), b"HTTP/1.1 200")  # The only thread has it.
            answers = sorted(map(status, [ask() for _ in range(5)]), key=lambda answer: answer[0])
            self.assertEqual([code for code, _, _ in answers], [200] * 2 + [503] * 3)
            self.assertEqual([bool(after) for _, _, after in answers], [False] * 2 + [True] * 3)

    def test_an_address_has_only_so_many_connections(self):
        with Program([os.path.join(BUILD, "limits")]) as server, contextlib.ExitStack() as stack:
            for _ in range(10):
                client = stack.enter_context(contextlib.closing(server.connect()))
                client.request("GET", "/")
                self.assertEqual(client.getresponse().read(), b"0 bytes\n")
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
                # Without being asked.
                self.assertTrue(client.recv(1000).startswith(b"HTTP/1.1 503 "))


class AccessLog(unittest.TestCase):
    command = [os.path.join(BUILD, "access_log")]

    def lines(self, *flags):
        """What is logged of two requests."""
        with Program(self.command, *flags) as server:
            server.get("/?user=alice")
            server.get("/" + 1000 * "x" + "?user=%0Anobody", "HEAD")
            server.signal(signal.SIGTERM)
            self.assertEqual(server.end(), 0)
            return server.process.stdout.read().splitlines()

    def test_each_request_is_a_line(self):
        date = r"\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d \+0000"
        first, second = self.lines("-format", "common")
        self.assertRegex(first, rf'^127\.0\.0\.1 - - \[{date}\] "GET /\?user=alice HTTP/1\.1" 200 13 \(alice\)$')
        self.assertRegex(second, rf'^127\.0\.0\.1 - - \[{date}\] "HEAD /x{{1000}}\?user=%0Anobody HTTP/1\.1" 200 -$')
        first, second = self.lines()
        self.assertTrue(first.endswith(' "-" "-" (alice)') and second.endswith(' "-" "-"'), (first, second))

    def test_json_can_be_read(self):
        first, second = (json.loads(line.removesuffix(" (alice)")) for line in self.lines("-format=json"))
        self.assertEqual((first["method"], first["target"], first["status"]), ("GET", "/?user=alice", 200))
        self.assertEqual((second["end"], second["sent"], second["referer"]), ("served", 0, None))


# In the place of build/hello.
LIAR = """#!{python}
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response({status})
        self.send_header("Content-Length", "13")
        self.end_headers()
        self.wfile.write(b"{body}")
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
host, port = sys.argv[2].split(":")
Server((host, int(port)), Handler).serve_forever()
"""


class Activation(unittest.TestCase):
    """Programs that are started with a socket, as systemd does it."""

    HELLO = os.path.join(BUILD, "hello")
    UNITS = os.path.join(ROOT, "examples", "systemd")
    # Gives a socket the number 3, and says for which process it is.
    LAUNCHER = """if True:
        import os, sys
        os.dup2(int(sys.argv[1]), 3)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
        os.execv(sys.argv[2], sys.argv[2:])
    """

    def ask(self, place, family=socket.AF_INET):
        """A client that has asked."""
        client = self.stack.enter_context(socket.socket(family))
        client.settimeout(PATIENCE)
        client.connect(place)
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        return client

    def assert_answered(self, client):
        answer = b"".join(iter(lambda: client.recv(4096), b""))
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
        self.assertTrue(answer.endswith(b"Hello, World!"), answer)

    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.scratch = self.stack.enter_context(tempfile.TemporaryDirectory())

    def start(self, *command, **options):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        self.stack.callback(process.communicate)
        self.stack.callback(process.kill)
        return process

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, errors)
        return json.loads(output[output.index("{") :])

    def needs(self, tool):
        if shutil.which(tool) is None:
            self.skipTest(f"no {tool} (make tools)")

    def test_a_socket_outlives_the_programs_and_no_client_is_refused(self):
        with socket.create_server(("127.0.0.1", 0), backlog=100) as inherited:
            place = inherited.getsockname()
            for addr in ("fd:web", "127.0.0.1:{}".format(place[1])):
                with self.subTest(addr):
                    # Nobody listens to them yet.
                    clients = [self.ask(place) for _ in range(20)]
                    fd = inherited.fileno()
                    process = self.start(
                        sys.executable, "-c", self.LAUNCHER, str(fd), self.HELLO, "-addr", addr, pass_fds=[fd]
                    )
                    for client in clients:
                        self.assert_answered(client)
                    report = self.stop(process)
                    self.assertEqual((report["served"], report["unaccepted"]), (20, 0))

    def test_without_a_socket_a_name_is_an_error(self):
        done = subprocess.run([self.HELLO, "-addr", "fd:web"], capture_output=True, text=True, timeout=PATIENCE)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("no socket was inherited", done.stderr)

    def test_systemd_starts_the_program_for_its_first_client(self):
        self.needs("systemd-socket-activate")
        path = os.path.join(self.scratch, "app.sock")
        for addr, flags in ((f"unix:{path}", []), ("fd:web", ["--fdname=web"]), ("fd:unknown", [])):
            with self.subTest(addr):
                # It replaces the file.
                process = self.start("systemd-socket-activate", "-l", path, *flags, self.HELLO, "-addr", addr)
                self.assertIn("Listening on", process.stderr.readline())
                client = self.ask(path, socket.AF_UNIX)
                self.assert_answered(client)
                self.assertEqual(process.stdout.readline(), f"serving on unix:{path} with pid {process.pid}\n")
                self.assertEqual(self.stop(process)["served"], 1)
                self.assertTrue(os.path.exists(path), "the file is not the server's")

    def test_a_name_that_the_unit_does_not_have_is_an_error(self):
        self.needs("systemd-socket-activate")
        path = os.path.join(self.scratch, "app.sock")
        process = self.start("systemd-socket-activate", "-l", path, "--fdname=api", self.HELLO, "-addr", "fd:web")
        self.assertIn("Listening on", process.stderr.readline())
        self.stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX))).connect(path)
        _, errors = process.communicate(timeout=PATIENCE)
        self.assertNotEqual(process.returncode, 0)
        self.assertIn('no inherited socket has this name; there are "api"', errors)

    def test_the_units_are_right(self):
        """What systemd says of them, and that they fit together."""
        self.needs("systemd-analyze")
        texts = {}
        for name in ("hello.socket", "hello.service"):
            with open(os.path.join(self.UNITS, name), encoding="ascii") as file:
                texts[name] = file.read()
            installed = texts[name].replace("/usr/local/bin/hello", self.HELLO)
            with open(os.path.join(self.scratch, name), "w", encoding="ascii") as file:
                file.write(installed)
        self.assertIn("ExecStart=/usr/local/bin/hello -addr fd:web\n", texts["hello.service"])
        self.assertIn("FileDescriptorName=web\n", texts["hello.socket"])
        units = [os.path.join(self.scratch, name) for name in texts]
        command = ["systemd-analyze", "verify", "--recursive-errors=no", *units]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        # The page shows the same.
        with open(os.path.join(ROOT, "docs", "restart.md"), encoding="utf-8") as file:
            page = file.read()
        for text in texts.values():
            for line in text.splitlines():
                if line and not line.startswith(("#", "Description=")):
                    self.assertIn(f"{line}\n", page)


class Bench(unittest.TestCase):
    PROGRAM = os.path.join(BUILD, "rust", "bench")

    def bench(self, *args, cwd=ROOT):
        args = [self.PROGRAM, "--rounds", "1", "--scale", "0.01", *args]
        return subprocess.run(args, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def test_what_is_asked_for_is_measured(self):
        with tempfile.TemporaryDirectory() as scratch:
            path = os.path.join(scratch, "figures.json")
            chart = os.path.join(scratch, "chart.svg")
            only = ["ka64", "pipe16", "new", "close", "threads", "start", "blocking"]
            done = self.bench(
                "--only", ",".join(only), "--servers", "ours-inline,hyper", "--json", path, "--svg", chart
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(path, encoding="utf-8") as file:
                figures = json.load(file)
            with open(chart, encoding="utf-8") as file:
                self.assertIn("ours-inline", file.read())
        both = {"ka64", "pipe16", "new", "close", "start_ms"}
        self.assertLessEqual(both | {"threads_2", "blocking_p99_with"}, set(figures["ours-inline"]))
        self.assertLessEqual(both, set(figures["hyper"]))
        self.assertIn("| ours-inline ", done.stdout)

    def test_wrong_answers_are_no_success(self):
        for status, body, complaint in ((200, "Hello, World?", "another body"), (503, "Hello, World!", "status")):
            with self.subTest(complaint), tempfile.TemporaryDirectory() as scratch:
                os.mkdir(os.path.join(scratch, "build"))
                liar = os.path.join(scratch, "build", "hello")
                with open(liar, "w", encoding="utf-8") as file:
                    file.write(LIAR.format(python=sys.executable, status=status, body=body))
                os.chmod(liar, 0o755)
                done = self.bench("--only", "ka64", "--servers", "ours-inline", cwd=scratch)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn(complaint, done.stderr)

    def test_what_is_not_there_is_named_or_refused(self):
        with tempfile.TemporaryDirectory() as scratch:
            done = self.bench("--only", "start", "--servers", "ours-pool", cwd=scratch)
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        self.assertIn("skipped: ours-pool", done.stderr)
        for flags in (["--only", "speed"], ["--servers", "ours"], ["--rounds", "0"], ["--update"]):
            self.assertEqual(self.bench(*flags).returncode, 2, flags)


class Story(unittest.TestCase):
    def test_the_demo_tells_its_story(self):
        command = [sys.executable, os.path.join(ROOT, "examples", "story.py"), os.path.join(BUILD, "demo")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for word in ("going to sleep", "refused", "slept", "exit status 0", "1 served"):
            self.assertIn(word, done.stdout)

    def test_and_so_does_the_demo_of_restarts(self):
        command = [sys.executable, os.path.join(ROOT, "examples", "restart_story.py"), os.path.join(BUILD, "grace")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for word in ("has handed over", "the database is not there", "killed by signal 9", " 0 failed"):
            self.assertIn(word, done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
