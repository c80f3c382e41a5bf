"""Whether the usual TLS clients can talk to httpdown: interop.py. Each client verifies the server's
certificate, talks to build/hello in each version of TLS, refuses the certificate of another
authority, gets its whole answer from build/demo while that stops, and resumes its session, if the
client can do that. A client that is not installed is skipped.

    tests/interop.py [Curl|Java|...]
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

from programs import Program

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build")
CLIENTS = os.path.join(ROOT, "tests", "interop")
SYSTEM_PYTHON = "/usr/bin/python3"  # The one that has the distribution's pycurl.
PATIENCE = 60  # seconds that nothing here takes unless it hangs
VERSIONS = ("1.2", "1.3")
HELLO = b"Hello, World!"
ZEROES = bytes(1_000_000)
# To more than 64 KiB, hello's answer says Connection: close, because it begins before their end.
UPLOAD = os.urandom(60_000)
DURATION = "300ms"

# Only the loopback device, whatever proxy this machine has.
ENV = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
ENV["PYTHONPATH"] = os.path.join(ROOT, "bindings", "python")


def run(command, timeout=PATIENCE, **more):
    """What a program writes; an error if it fails."""
    done = subprocess.run(command, capture_output=True, timeout=timeout, env=ENV, **more)
    if done.returncode != 0:
        complaint = (done.stdout + done.stderr).decode("utf-8", "replace")[-4000:]
        raise AssertionError(f"{command} ends with {done.returncode}: {complaint}")
    return done.stdout


class Files:
    """What all tests share: certificates, and something to send."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="httpdown-interop-")
        for name in ("ours", "other"):
            run([os.path.join(ROOT, "examples", "certs.sh"), self.path(name)])
        with open(self.path("upload"), "wb") as file:
            file.write(UPLOAD)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    @property
    def ca(self):
        return self.path("ours", "ca.pem")

    def pair(self, name):
        return self.path(name, "server.pem"), self.path(name, "server-key.pem")


FILES = None


def setUpModule():
    global FILES
    FILES = Files()
    unittest.addModuleCleanup(shutil.rmtree, FILES.folder)


class Server(Program):
    """A server that speaks TLS, on a port of its own."""

    def __init__(self, command):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env=ENV, **pipes)
        self.banner = self.process.stdout.readline()
        form = r"serving on https://127\.0\.0\.1:(\d+)/ with pid (\d+)\n"
        found = re.fullmatch(form, self.banner)
        if found is None:
            self.process.kill()
            raise AssertionError(self.banner + self.process.communicate()[1])
        self.port, self.pid = int(found[1]), int(found[2])

    @classmethod
    def example(cls, name, certificate="ours"):
        cert, key = FILES.pair(certificate)
        flags = ("-addr", "127.0.0.1:0", "-tls-cert", cert, "-tls-key", key)
        return cls([os.path.join(BUILD, name), *flags])

    @classmethod
    def telling(cls, *ticket_key):
        """The one in server.py."""
        program = os.path.join(CLIENTS, "server.py")
        return cls([sys.executable, program, *FILES.pair("ours"), *ticket_key])

    def url(self, host="localhost"):
        return f"https://{host}:{self.port}/"

    def stop_begin(self):
        self.signal(signal.SIGTERM)

    def end(self):
        """Waits for the end: the report, of a stop that has cut nothing."""
        out, errors = self.process.communicate(timeout=PATIENCE)
        if self.process.returncode != 0:
            raise AssertionError(f"the server ends with {self.process.returncode}: {out}{errors}")
        return json.loads(out.splitlines()[-1])

    def stop(self):
        self.stop_begin()
        return self.end()


class Clients:
    """What each client must do. A subclass says which client, and how to call it."""

    programs = ()
    talk_connections = 1
    resumes = VERSIONS
    offers_http2 = False

    @classmethod
    def setUpClass(cls):
        for program in cls.programs:
            if shutil.which(program) is None:
                raise unittest.SkipTest(f"no {program}")

    def talk(self, version, url):
        """Commands that GET /, POST to /echo, and GET /bytes/1000000, and write the bodies."""
        raise NotImplementedError

    def get(self, version, *urls):
        """A command that GETs each of them, on a connection each."""
        raise NotImplementedError

    def request(self, url):
        """What the command reads from its input."""
        return b""

    def bodies(self, output):
        """What came of the answers, in what the command has written."""
        return output

    def test_it_talks(self):
        # Without a name (SNI) once.
        for version, host in zip(VERSIONS, ("127.0.0.1", "localhost")):
            with self.subTest(version), Server.example("hello") as server:
                self.assert_talk(self.talk(version, server.url(host)))
                report = server.stop()
                self.assertEqual((report["requests"], report["served"]), (3, 3), report)
                self.assertEqual(report["connections"], self.talk_connections, report)
                self.assertEqual(report["conns_tls_failed"], 0, report)

    def assert_talk(self, commands):
        came = b"".join(run(command) for command in commands)
        self.assertEqual(len(came), len(HELLO + UPLOAD + ZEROES))
        self.assertEqual(came.replace(ZEROES, b"zeroes"), HELLO + UPLOAD + b"zeroes")

    def test_it_agrees_on_the_version_and_resumes_its_session(self):
        with Server.telling() as server:
            for version in VERSIONS:
                with self.subTest(version):
                    told = self.tell(version, *[server.url() + "tls"] * 2)
                    self.assertEqual({agreed for agreed, _, _ in told}, {version})
                    # Those that offer HTTP/2 must be told that they get HTTP/1.1.
                    if self.offers_http2:
                        self.assertEqual(told[0][2], "http/1.1")
                    if version in self.resumes:
                        self.assertEqual(told[-1][1], "resumed")
            server.stop()

    def tell(self, version, *urls):
        with self.running(self.get(version, *urls), urls[0]) as client:
            out, errors = client.communicate(timeout=PATIENCE)
            self.assertEqual(client.returncode, 0, out + errors)
        return [json.loads(line) for line in self.bodies(out).splitlines()]

    def test_it_trusts_no_other_authority(self):
        with Server.example("hello", "other") as server:
            with self.running(self.get("1.3", server.url()), server.url()) as client:
                out, _ = client.communicate(timeout=PATIENCE)
                self.assertNotEqual(client.returncode, 0, out)
            report = server.stop()
            self.assertEqual(report["requests"], 0, report)
            refused = report["conns_tls_failed"] + report["conns_closed"]
            self.assertEqual(refused, report["connections"], report)

    def test_a_stop_waits_for_its_answer(self):
        with Server.example("demo") as server:
            url = f"{server.url()}?duration={DURATION}"
            self.assert_whole(server, self.get("1.3", url), url)

    def assert_whole(self, server, command, url):
        with self.running(command, url) as client:
            came = b""
            while b"going to sleep" not in came:
                line = client.stdout.readline()
                if not line:
                    raise AssertionError(came + client.communicate(timeout=PATIENCE)[1])
                came += line
            server.stop_begin()
            server.until_refused()
            rest, errors = client.communicate(timeout=PATIENCE)
            self.assertEqual(client.returncode, 0, came + rest + errors)
        whole = [f"{what} {DURATION} with pid {server.pid}" for what in ("going to sleep", "slept")]
        self.assertEqual(self.bodies(came + rest).decode().splitlines(), whole)
        report = server.end()
        self.assertEqual((report["requests"], report["served"]), (1, 1), report)

    @contextlib.contextmanager
    def running(self, command, url):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=ENV, bufsize=0, **pipes) as client:
            try:
                client.stdin.write(self.request(url))
                # Its input stays open: a client may leave at the end.
                held, client.stdin = client.stdin, None
                with held:
                    yield client
            finally:
                client.kill()


class Curl(Clients, unittest.TestCase):
    """curl, with OpenSSL in most distributions."""

    programs = ("curl",)
    offers_http2 = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # In TLS 1.2 it takes no tickets. With other libraries, it depends on its version.
        cls.resumes = ("1.3",) if b" OpenSSL/" in run(["curl", "--version"]) else ()

    def flags(self, version):
        flags = ("-sS", "--fail", "--no-buffer", "--max-time", str(PATIENCE), "--cacert", FILES.ca)
        return (*flags, f"--tlsv{version}", "--tls-max", version)

    def talk(self, version, url):
        flags = self.flags(version)
        post = ("-H", "Expect:", "--data-binary", f"@{FILES.path('upload')}", f"{url}echo")
        zeroes = f"{url}bytes/1000000"
        yield ["curl", *flags, url, "--next", *flags, *post, "--next", *flags, zeroes]

    def get(self, version, *urls):
        return ["curl", *self.flags(version), "-H", "Connection: close", *urls]

    def test_it_waits_for_100_continue(self):
        path = FILES.path("long")
        with open(path, "wb") as file:
            file.write(UPLOAD * 20)
        for version in VERSIONS:
            with self.subTest(version), Server.example("hello") as server:
                post = ("-H", "Expect: 100-continue", "--data-binary", f"@{path}")
                came = run([*self.get(version, server.url() + "echo"), *post])
                self.assertEqual((len(came), came == UPLOAD * 20), (len(UPLOAD) * 20, True))
                self.assertEqual(server.stop()["served"], 1)

    def test_an_answer_may_end_with_its_connection(self):
        # A client of HTTP/1.0 knows only by close_notify that the answer is whole.
        with Server.example("demo") as server:
            url = f"{server.url()}?duration={DURATION}"
            self.assert_whole(server, [*self.get("1.3", url), "--http1.0"], url)


class CurlOfGnuTls(Clients, unittest.TestCase):
    """libcurl with GnuTLS, which Debian's pycurl has."""

    resumes = ()  # The older ones take no tickets.

    @classmethod
    def setUpClass(cls):
        command = [SYSTEM_PYTHON, "-c", "import pycurl; print(pycurl.version)"]
        try:
            found = run(command).decode()
        except (OSError, AssertionError):
            raise unittest.SkipTest(f"no pycurl for {SYSTEM_PYTHON}") from None
        if "GnuTLS" not in found:
            raise unittest.SkipTest(f"no pycurl with GnuTLS, but {found.strip()}")

    def call(self, *arguments):
        return [SYSTEM_PYTHON, os.path.join(CLIENTS, "client_pycurl.py"), FILES.ca, *arguments]

    def talk(self, version, url):
        yield self.call(version, "talk", url, FILES.path("upload"))

    def get(self, version, *urls):
        return self.call(version, "get", *urls)


class Wget(Clients, unittest.TestCase):
    """wget with GnuTLS, as in Debian."""

    programs = ("wget",)
    talk_connections = 3
    resumes = ()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        found = run(["wget", "--version"]).decode()
        if not re.match(r"GNU Wget 1\.", found) or "+ssl/gnutls" not in found:
            raise unittest.SkipTest("no wget 1 with GnuTLS")

    def flags(self, version):
        # The option for versions would only say which is the oldest.
        priority = f"--ciphers=NORMAL:-VERS-ALL:+VERS-TLS{version}"
        return ("-q", "--tries=1", f"--ca-certificate={FILES.ca}", priority, "-O", "-")

    def talk(self, version, url):
        flags = self.flags(version)
        yield ["wget", *flags, url]
        yield ["wget", *flags, f"--post-file={FILES.path('upload')}", f"{url}echo"]
        yield ["wget", *flags, f"{url}bytes/1000000"]

    def get(self, version, *urls):
        return ["wget", *self.flags(version), *urls]

    def test_it_keeps_its_connection(self):
        with Server.example("hello") as server:
            self.assertEqual(run(self.get("1.3", *[server.url()] * 2)), HELLO * 2)
            self.assertEqual(server.stop()["connections"], 1)


def decoded(raw):
    """The bodies of answers in raw HTTP."""
    bodies = b""
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        length = re.search(rb"^content-length: (\d+)", head, re.MULTILINE)
        if length:
            bodies += raw[: int(length[1])]
            raw = raw[int(length[1]) :]
            continue
        while True:  # Else it is chunked.
            size, _, raw = raw.partition(b"\r\n")
            bodies += raw[: int(size, 16)]
            raw = raw[int(size, 16) + 2 :]
            if int(size, 16) == 0:
                break
    return bodies


class Raw(Clients):
    """A client of TLS that does not know HTTP."""

    def request(self, url):
        target = url.partition("//")[2].partition("/")[2]
        return f"GET /{target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()

    def bodies(self, output):
        return decoded(output)

    def test_it_talks(self):
        for version, host in zip(VERSIONS, ("127.0.0.1", "localhost")):
            with self.subTest(version), Server.example("hello") as server:
                url = server.url(host)
                with self.running(self.get(version, url), url + "bytes/1000000") as client:
                    out, errors = client.communicate(timeout=PATIENCE)
                self.assertEqual((client.returncode, decoded(out) == ZEROES), (0, True), errors)
                report = server.stop()
                self.assertEqual((report["connections"], report["served"]), (1, 1), report)


class GnuTls(Raw, unittest.TestCase):
    """The program of GnuTLS. It says so if an end comes without close_notify, and fails."""

    programs = ("gnutls-cli",)

    def get(self, version, *urls):
        host, port = urls[0].split("/")[2].split(":")
        flags = ("--logfile", FILES.path("gnutls.log"), "--x509cafile", FILES.ca, "--port", port)
        # Its first connection then sends nothing.
        resume = ("--resume",) * (len(urls) > 1)
        priority = f"NORMAL:-VERS-ALL:+VERS-TLS{version}"
        return ["gnutls-cli", *flags, "--priority", priority, *resume, host]


class OpenSsl(Raw, unittest.TestCase):
    """The program of OpenSSL: 3.0 and later take an end without close_notify for an error."""

    programs = ("openssl",)
    resumes = ()  # Only from a file: see below.

    def get(self, version, *urls, session=()):
        host, port = urls[0].split("/")[2].split(":")
        verify = "-verify_hostname" if host == "localhost" else "-verify_ip"
        flags = ("-quiet", "-verify_return_error", verify, host, "-CAfile", FILES.ca, *session)
        name = ("-servername", host) if host == "localhost" else ("-noservername",)
        version = f"-tls{version.replace('.', '_')}"
        return ["openssl", "s_client", *flags, *name, version, "-connect", f"{host}:{port}"]

    def test_a_session_outlives_a_restart_with_the_same_ticket_keys(self):
        keys = [os.urandom(48).hex() for _ in range(2)]
        for version in VERSIONS:
            with self.subTest(version):
                session = FILES.path(f"session-{version}")
                self.assertEqual(self.kind(version, keys[0], "-sess_out", session), "full")
                self.assertEqual(self.kind(version, keys[0], "-sess_in", session), "resumed")
                self.assertEqual(self.kind(version, keys[1], "-sess_in", session), "full")

    def kind(self, version, key, *session):
        """What a client's handshake was with a new server."""
        with Server.telling(key) as server:
            url = server.url() + "tls"
            with self.running(self.get(version, url, session=session), url) as client:
                out, errors = client.communicate(timeout=PATIENCE)
            self.assertEqual(client.returncode, 0, errors)
            server.stop()
        return json.loads(decoded(out))[1]


class Python(Clients, unittest.TestCase):
    """Python's ssl."""

    def call(self, *arguments):
        return [sys.executable, os.path.join(CLIENTS, "client.py"), FILES.ca, *arguments]

    def talk(self, version, url):
        yield self.call(version, "talk", url, FILES.path("upload"))

    def get(self, version, *urls):
        return self.call(version, "get", *urls)


class Node(Python):
    """https of Node.js."""

    programs = ("node",)

    def call(self, *arguments):
        return ["node", os.path.join(CLIENTS, "client.mjs"), FILES.ca, *arguments]


class Go(Python):
    """net/http of Go."""

    programs = ("go",)
    offers_http2 = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        source = os.path.join(CLIENTS, "client.go")
        # The first time, all that it uses of Go's own library may have to be compiled.
        command = ["go", "build", "-o", FILES.path("client-go"), source]
        run(command, timeout=10 * PATIENCE, cwd=FILES.folder)

    def call(self, *arguments):
        return [FILES.path("client-go"), FILES.ca, *arguments]


class Java(Python):
    """java.net.http."""

    programs = ("java", "javac")
    offers_http2 = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        run(["javac", "-d", FILES.path("java"), os.path.join(CLIENTS, "Client.java")])

    def call(self, *arguments):
        quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
        return ["java", *quick, "-cp", FILES.path("java"), "Client", FILES.ca, *arguments]


class Chromium(unittest.TestCase):
    """A browser. It has no flag for an authority, but one for the server's key."""

    @classmethod
    def setUpClass(cls):
        names = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
        found = [name for name in names if shutil.which(name)]
        if not found:
            raise unittest.SkipTest("no chromium")
        cls.program = found[0]

    def command(self, url, *flags):
        der = run(["openssl", "x509", "-in", FILES.pair("ours")[0], "-noout", "-pubkey"])
        der = run(["openssl", "pkey", "-pubin", "-outform", "der"], input=der)
        pin = run(["openssl", "base64"], input=hashlib.sha256(der).digest()).decode().strip()
        profile = tempfile.mkdtemp(dir=FILES.folder)
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
        quiet += ("--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost")
        # Root gets no sandbox, nor does a container.
        place = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
        trust = (f"--user-data-dir={profile}", f"--ignore-certificate-errors-spki-list={pin}")
        return [self.program, *place, *quiet, *trust, *flags, "--dump-dom", url]

    def test_it_shows_a_page_whose_script_talks(self):
        with Server.telling() as server:
            page = run(self.command(server.url() + "page")).decode()
            verdict = re.search('<p id="verdict">(.*); (.*)', page)
            self.assertIsNotNone(verdict, page)
            self.assertEqual(verdict[1], "the same")
            self.assertEqual(json.loads(verdict[2])[::2], ["1.3", "http/1.1"])
            self.assertGreaterEqual(server.stop()["served"], 3)

    def test_it_trusts_no_other_key(self):
        with Server.example("hello", "other") as server:
            page = run(self.command(server.url())).decode()
            self.assertNotIn(HELLO.decode(), page)
            self.assertEqual(server.stop()["requests"], 0)

    def test_a_stop_waits_for_its_answer(self):
        with Server.telling() as server:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            with subprocess.Popen(self.command(server.url() + "slow"), env=ENV, **pipes) as client:
                try:
                    self.assertEqual(server.process.stdout.readline(), "slow\n")
                    server.stop_begin()
                    page, _ = client.communicate(timeout=PATIENCE)
                finally:
                    client.kill()
            self.assertIn("begun, and ended", page.decode())
            # It may have asked for an icon, too.
            self.assertGreaterEqual(server.end()["served"], 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
