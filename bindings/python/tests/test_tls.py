"""TLS: certificates, clients' certificates, what handlers learn, reloads and stops."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import math
import os
import pickle
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import CHECKOUT, Connection, Gate, Program, any_address, dial, fetch, in_thread

import httpdown
from httpdown import Certificate, ConnState, Request, Server, Tls, TlsInfo

CONFIG = """
[req]
distinguished_name = names
[names]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[crl]
database = {folder}/revoked
default_md = sha256
default_crl_days = 2
crlnumber = {folder}/number
crl_extensions = crl_extensions
[crl_extensions]
authorityKeyIdentifier = keyid
"""
LEAF = """
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files with PEM."""

    cert: Path
    key: Path

    @property
    def files(self) -> dict[str, Any]:
        return {"cert_file": self.cert, "key_file": self.key}

    @property
    def texts(self) -> dict[str, Any]:
        return {"cert": self.cert.read_text(), "key": self.key.read_bytes()}

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.cert.read_text())


class Authority:
    """Issues certificates."""

    def __init__(self, folder: Path, name: str = "CA") -> None:
        folder.mkdir()
        self.folder = folder
        self.config = folder / "config"
        self.config.write_text(CONFIG.format(folder=folder))
        self.pair = Pair(folder / "ca.pem", folder / "ca.key")
        self._request(f"/CN={name}", self.pair.key, "-x509", "-extensions", "ca", "-days", "30",
                      "-out", self.pair.cert)  # fmt: skip
        (folder / "revoked").touch()
        (folder / "number").write_text("01\n")

    @property
    def pem(self) -> Path:
        return self.pair.cert

    def _request(self, subject: str, key: Path, *more: str | Path) -> None:
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-config", self.config, "-subj", subject, "-keyout", key, *more)  # fmt: skip

    def issue(self, name: str, subject: str | None = None, names: str | None = None) -> Pair:
        path = self.folder / name
        pair = Pair(Path(f"{path}.pem"), Path(f"{path}.key"))
        request, extensions = Path(f"{path}.csr"), Path(f"{path}.ext")
        alternatives = f"DNS:{name}" if names is None else names
        extensions.write_text(LEAF + f"subjectAltName = {alternatives}\n" * bool(alternatives))
        self._request(subject or f"/CN={name}", pair.key, "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", self.pair.cert, "-CAkey", self.pair.key,
                "-CAcreateserial", "-days", "30", "-extfile", extensions,
                "-out", pair.cert)  # fmt: skip
        return pair

    def revoke(self, *pairs: Pair) -> Path:
        """The list of all that were revoked so far."""
        use = ("ca", "-config", self.config, "-name", "crl", "-cert", self.pair.cert,
               "-keyfile", self.pair.key)  # fmt: skip
        for pair in pairs:
            openssl(*use, "-revoke", pair.cert)
        found = self.folder / "list.pem"
        openssl(*use, "-gencrl", "-out", found)
        return found


def openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl, which makes certificates, is missing")
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def localhost(authority: Authority) -> Pair:
    return authority.issue("localhost")


@pytest.fixture(scope="module")
def alice(authority: Authority) -> Pair:
    names = "DNS:alice.example.com, email:alice@example.com, URI:urn:alice, IP:192.0.2.1"
    return authority.issue("alice", "/O=Example/CN=alice", names)


def trusting(authority: Authority, own: Pair | None = None) -> ssl.SSLContext:
    """A client's settings."""
    context = ssl.create_default_context(cafile=authority.pem)
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


@contextlib.contextmanager
def secure(
    server: Server, context: ssl.SSLContext, name: str | None = "localhost", **options: Any
) -> Iterator[Any]:
    """A connection whose handshake is done; its `sock` is the TLS socket."""
    connection = Connection(server.address)
    connection.sock = context.wrap_socket(dial(server.address), server_hostname=name, **options)
    with contextlib.closing(connection):
        yield connection


def get(connection: http.client.HTTPConnection, path: str = "/") -> Any:
    """A whole response; its `body` is what `read` gave."""
    connection.request("GET", path)
    response: Any = connection.getresponse()
    response.body = response.read()
    return response


@contextlib.contextmanager
def telling(tls: Tls, **options: Any) -> Iterator[tuple[Server, list[TlsInfo]]]:
    """A server, and what its handler has learned of each request."""
    seen: list[TlsInfo] = []

    def handler(request: Request) -> None:
        assert request.scheme == "https" and request.tls is not None
        seen.append(request.tls)
        request.reply(200, "Hello, World!")
        assert request.tls is seen[-1]

    with Server(handler, any_address(), tls=tls, **options) as server:
        yield server, seen


def hello(request: Request) -> None:
    request.reply(200, "Hello, World!")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_what_a_request_says_of_tls(authority: Authority, localhost: Pair, version: str) -> None:
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]
    context.set_alpn_protocols(["h2", "http/1.1"])
    with telling(Tls(**localhost.files)) as (server, seen):
        with secure(server, context) as connection:
            for _ in range(2):
                assert get(connection).body == b"Hello, World!"
            suite = connection.sock.cipher()[0]
    assert len(seen) == 2 and seen[0] == seen[1]
    info = seen[0]
    assert (info.version, info.resumed, info.alpn) == (version, False, "http/1.1")
    assert info.server_name == "localhost"
    prefix = "TLS13_AES_" if version == "1.3" else "TLS_ECDHE_ECDSA_WITH_"
    assert info.cipher_suite.startswith(prefix) and ("AES" in suite) == ("AES" in info.cipher_suite)
    assert (info.client_certificate, info.client_subject) == (None, None)
    assert (info.client_names, info.client_fingerprint) == ((), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.version = "1.3"  # type: ignore[misc]
    report = server.report()
    assert (report.connections, report.requests, report.served) == (1, 2, 2)
    assert (report.conns_tls_failed, report.conns_tls_timed_out) == (0, 0)


def test_a_client_may_name_nothing(authority: Authority, localhost: Pair) -> None:
    context = trusting(authority)
    context.check_hostname = False
    with telling(Tls(**localhost.texts)) as (server, seen):
        with secure(server, context, name=None) as connection:
            assert get(connection).status == 200
    assert (seen[0].server_name, seen[0].alpn) == (None, None)


def test_a_clients_certificate(authority: Authority, localhost: Pair, alice: Pair) -> None:
    for mode in ("optional", "required"):
        tls: Any = Tls(**localhost.files, client_auth=mode, ca_file=str(authority.pem))
        with telling(tls) as (server, seen):
            with secure(server, trusting(authority, alice)) as connection:
                assert get(connection).status == 200
        info = seen[0]
        assert info.client_certificate == alice.der
        assert info.client_fingerprint == hashlib.sha256(alice.der).digest()
        assert info.client_subject == "CN=alice,O=Example"
        names = ("alice.example.com", "alice@example.com", "urn:alice", "192.0.2.1")
        assert info.client_names == names


def test_a_clients_certificate_without_names(authority: Authority, localhost: Pair) -> None:
    bare = authority.issue("bare", "/CN=b\xe4re", names="")
    tls = Tls(**localhost.files, client_auth="required", ca=authority.pem.read_bytes())
    with telling(tls) as (server, seen):
        with secure(server, trusting(authority, bare)) as connection:
            assert get(connection).status == 200
    assert seen[0].client_names == () and seen[0].client_certificate == bare.der
    assert str(seen[0].client_subject).startswith("CN=b")


def test_a_client_without_a_certificate(authority: Authority, localhost: Pair) -> None:
    settings = {**localhost.files, "ca_file": authority.pem}
    with telling(Tls(**settings, client_auth="optional")) as (server, seen):
        with secure(server, trusting(authority)) as connection:
            assert get(connection).status == 200
    assert seen[0].client_certificate is None
    with telling(Tls(**settings, client_auth="required")) as (server, seen):
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            with secure(server, trusting(authority)) as connection:
                get(connection)
    assert not seen and server.report().conns_tls_failed == 1


def test_a_clients_certificate_of_somebody_else_or_revoked(
    authority: Authority, localhost: Pair, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger", "Stranger").issue("mallory")
    bob, carol = authority.issue("bob"), authority.issue("carol")
    tls = Tls(
        **localhost.files,
        client_auth="optional",
        ca_file=authority.pem,
        crl_file=authority.revoke(carol),
    )
    with telling(tls) as (server, seen):
        for refused, alert in ((stranger, "unknown.ca"), (carol, "certificate.revoked")):
            with pytest.raises(ssl.SSLError, match=f"(?i){alert}"):
                with secure(server, trusting(authority, refused)) as connection:
                    get(connection)
        assert not seen
        with secure(server, trusting(authority, bob)) as connection:
            assert get(connection).status == 200
    report = server.report()
    assert (report.conns_tls_failed, report.conns_closed, report.connections) == (2, 1, 3)


def test_a_client_gets_the_certificate_that_it_asks_for(
    authority: Authority, localhost: Pair
) -> None:
    exact, wild = authority.issue("a.example.com"), authority.issue("*.example.com")
    more = [Certificate(**exact.files), Certificate(**wild.texts)]
    context = trusting(authority)
    with telling(Tls(**localhost.files, more=more)) as (server, seen):
        names = {"A.example.com": exact, "b.example.com": wild, "localhost": localhost}
        for name, pair in names.items():
            with secure(server, context, name) as connection:
                assert connection.sock.getpeercert(binary_form=True) == pair.der
                assert get(connection).status == 200
    assert [info.server_name for info in seen] == ["a.example.com", "b.example.com", "localhost"]


def test_a_reload_is_for_new_connections(authority: Authority, localhost: Pair) -> None:
    renewed = authority.issue("renewed", names="DNS:localhost")
    context = trusting(authority)

    def served_by() -> bytes:
        with secure(server, context) as connection:
            assert get(connection).status == 200
            found: bytes = connection.sock.getpeercert(binary_form=True)
            return found

    with telling(Tls(**localhost.files)) as (server, seen):
        with secure(server, context) as old:
            assert get(old).status == 200
            server.reload_tls(Tls(**renewed.files))
            assert served_by() == renewed.der
            with pytest.raises(httpdown.TlsError, match="does not fit certificate 1") as error:
                server.reload_tls(Tls(cert_file=localhost.cert, key_file=renewed.key))
            assert error.value.status == httpdown.Status.TLS
            assert str(renewed.key) in str(error.value)
            with pytest.raises(httpdown.IOFailed, match="nowhere"):
                server.reload_tls(Tls(cert_file="/nowhere", key_file=renewed.key))
            assert served_by() == renewed.der
            assert get(old).status == 200
            assert old.sock.getpeercert(binary_form=True) == localhost.der
        # Checks of clients change, too.
        server.reload_tls(Tls(**renewed.files, client_auth="required", ca_file=authority.pem))
        with pytest.raises(ssl.SSLError):
            served_by()
    assert len(seen) == 4


def test_a_reload_without_settings_reads_the_files_again(
    authority: Authority, localhost: Pair, tmp_path: Path
) -> None:
    renewed = authority.issue("renewed again", names="DNS:localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(cert_of: Pair, key_of: Pair) -> None:
        shutil.copy(cert_of.cert, cert)
        shutil.copy(key_of.key, key)

    def served_by() -> bytes:
        with secure(server, trusting(authority)) as connection:
            assert get(connection).status == 200
            found: bytes = connection.sock.getpeercert(binary_form=True)
            return found

    logged: list[str] = []
    put(localhost, localhost)
    settings = Tls(cert_file=str(cert), key_file=str(key))

    def on_log(_level: httpdown.LogLevel, text: str) -> None:
        logged.append(text)

    with Server(hello, any_address(), tls=settings, on_log=on_log) as server:
        assert served_by() == localhost.der
        put(renewed, renewed)
        server.reload_tls()
        assert served_by() == renewed.der
        put(renewed, localhost)
        with pytest.raises(httpdown.TlsError, match="does not fit certificate 1"):
            server.reload_tls()
        cert.unlink()
        with pytest.raises(httpdown.IOFailed, match=re.escape(str(cert))):
            server.reload_tls()
        assert served_by() == renewed.der
    told = [text for text in logged if "TLS" in text]
    assert told[0] == "the TLS files were read again"
    assert [text.startswith("the TLS settings stay as they are: ") for text in told[1:]] == [True] * 2


def test_only_files_can_be_read_again(localhost: Pair) -> None:
    in_memory = Tls(cert=localhost.cert.read_bytes(), key=localhost.key.read_bytes())
    with Server(hello, any_address(), tls=in_memory) as server:
        with pytest.raises(httpdown.Unsupported, match="from files"):
            server.reload_tls()
    for tls in (None, in_memory):
        with pytest.raises(httpdown.InvalidArgument, match="reload_on_hup is set, but"):
            Server(hello, any_address(), tls=tls, reload_on_hup=True)


def test_a_reload_needs_a_server_with_tls(localhost: Pair) -> None:
    with Server(hello, any_address()) as server:
        with pytest.raises(httpdown.Unsupported, match="does not speak TLS"):
            server.reload_tls(Tls(**localhost.files))
        wrong: Any = "tls"
        with pytest.raises(TypeError, match="tls must be a Tls, not str"):
            server.reload_tls(wrong)
    with pytest.raises(httpdown.Stopped):
        server.reload_tls(Tls(**localhost.files))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_servers_with_the_same_ticket_keys_resume_sessions(
    authority: Authority, localhost: Pair, version: str
) -> None:
    old, new = os.urandom(48), os.urandom(48)
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion[f"TLSv{version.replace('.', '_')}"]

    def resumes(keys: list[bytes], session: ssl.SSLSession | None) -> ssl.SSLSession:
        with telling(Tls(**localhost.files, ticket_keys=keys)) as (server, seen):
            with secure(server, context, session=session) as connection:
                assert get(connection).status == 200
                assert connection.sock.session_reused == seen[0].resumed
                resumed.append(seen[0].resumed)
                found: ssl.SSLSession = connection.sock.session
                return found

    resumed: list[bool] = []
    session = resumes([old], None)
    session = resumes([old], session)
    session = resumes([new, old], session)
    resumes([], session)
    assert resumed == [False, True, True, False]


def test_a_resumed_session_has_its_clients_certificate(
    authority: Authority, localhost: Pair, alice: Pair
) -> None:
    context = trusting(authority, alice)
    tls = Tls(**localhost.files, client_auth="required", ca_file=authority.pem)
    with telling(tls) as (server, seen):
        session = None
        for _ in range(2):
            with secure(server, context, session=session) as connection:
                assert get(connection).status == 200
                session = connection.sock.session
    assert [info.resumed for info in seen] == [False, True]
    assert seen[0].client_certificate == seen[1].client_certificate == alice.der


def test_http_without_tls_gets_a_400(localhost: Pair) -> None:
    with Server(hello, any_address(), tls=Tls(**localhost.files)) as server:
        response: Any = fetch(server)
        assert response.status == 400 and b"HTTPS" in response.body
    report = server.report()
    assert (report.requests, report.conns_tls_failed) == (0, 1)


def test_the_oldest_version(authority: Authority, localhost: Pair) -> None:
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with telling(Tls(**localhost.files, min_version="1.3")) as (server, seen):
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
            with secure(server, context):
                pass
        with secure(server, trusting(authority)) as connection:
            assert get(connection).status == 200
    assert [info.version for info in seen] == ["1.3"]


def test_a_handshake_has_an_end(localhost: Pair) -> None:
    handshaking, closed = Gate(), Gate()

    def on_conn_state(_server: Server, _conn: int, state: ConnState, _peer: object) -> None:
        {ConnState.HANDSHAKING: handshaking, ConnState.CLOSED: closed}[state].open()

    tls = Tls(**localhost.files, handshake_timeout=0.2, handshakes=1)
    with Server(hello, any_address(), tls=tls, on_conn_state=on_conn_state) as server:
        with contextlib.closing(dial(server.address)) as silent:
            handshaking.wait()
            assert silent.recv(1) == b""
        closed.wait()
    report = server.report()
    assert (report.conns_tls_timed_out, report.connections) == (1, 1)


def test_connections_that_are_handshaking_are_counted(localhost: Pair) -> None:
    handshaking = Gate()
    tls = Tls(**localhost.files, handshake_timeout=math.inf)
    with Server(hello, any_address(), tls=tls, on_conn_state=handshaking.open) as server:
        with contextlib.closing(dial(server.address)):
            handshaking.wait()
            report = server.report()
            assert (report.conns_open, report.conns_handshaking, report.conns_new) == (1, 1, 0)


def test_a_stop_under_tls_loses_nothing(authority: Authority, localhost: Pair) -> None:
    begun, finish, draining = Gate(), Gate(), Gate()

    def slow(request: Request) -> None:
        body = request.body()
        with request.start(200) as out:
            out.write("begin")
            begun.open()
            finish.wait()
            out.write(body * 3)

    def on_phase(_server: Server, phase: httpdown.Phase) -> None:
        if phase == httpdown.Phase.DRAINING:
            draining.open()

    tls = Tls(**localhost.files)
    with Server(slow, any_address(), tls=tls, on_phase=on_phase) as server:
        with secure(server, trusting(authority)) as connection:
            sent = os.urandom(500_000)
            connection.request("POST", "/", sent)
            begun.wait()
            stopped = in_thread(server.stop)
            draining.wait()
            with pytest.raises(OSError):
                dial(server.address).close()
            finish.open()
            response = connection.getresponse()
            assert response.read() == b"begin" + sent * 3
            assert connection.sock.recv(1) == b""
        report = stopped.result(30)
    assert (report.status, report.served, report.killed) == (httpdown.Status.OK, 1, 0)
    assert (report.conns_gone, report.conns_killed, report.bytes_unacked) == (0, 0, 0)


def test_an_end_is_announced(authority: Authority, localhost: Pair) -> None:
    with telling(Tls(**localhost.files)) as (server, _):
        with secure(server, trusting(authority), suppress_ragged_eofs=False) as connection:
            assert get(connection).status == 200
            stopped = in_thread(server.stop)
            assert connection.sock.recv(1) == b""
        assert stopped.result(30).closed_idle == 1


def encrypted(pair: Pair, folder: Path) -> Path:
    path = folder / "encrypted.key"
    openssl("pkey", "-in", pair.key, "-aes128", "-passout", "pass:secret", "-out", path)
    return path


# The exception, what its text has, and the settings that are wrong.
WRONG: list[tuple[type[Exception], str, Callable[[Authority, Pair, Path], dict[str, Any]]]] = [
    (httpdown.IOFailed, "nowhere.pem", lambda a, p, d: {"cert_file": d / "nowhere.pem"}),
    (httpdown.IOFailed, "nowhere.key", lambda a, p, d: {"key_file": d / "nowhere.key"}),
    (httpdown.TlsError, "does not fit", lambda a, p, d: {"key_file": a.pair.key}),
    (httpdown.TlsError, "is encrypted", lambda a, p, d: {"key_file": encrypted(p, d)}),
    (httpdown.TlsError, "contains no certificate", lambda a, p, d: {"cert_file": p.key}),
    (httpdown.TlsError, "contains no private key", lambda a, p, d: {"key_file": p.cert}),
    (httpdown.TlsError, "contains no", lambda a, p, d: {"key_file": None, "key": "x"}),
    (httpdown.InvalidArgument, "tls.cert", lambda a, p, d: {"cert_file": None}),
    (httpdown.InvalidArgument, "tls.key", lambda a, p, d: {"key_file": None}),
    (httpdown.InvalidArgument, "tls.cert", lambda a, p, d: {"cert": "x"}),
    (httpdown.InvalidArgument, "tls.more", lambda a, p, d: {"more": [Certificate()]}),
    (httpdown.InvalidArgument, "UTF-8", lambda a, p, d: {"cert_file": "/\udcff"}),
    (httpdown.InvalidArgument, "tls.ca", lambda a, p, d: {"client_auth": "required"}),
    (httpdown.InvalidArgument, "client_auth", lambda a, p, d: {"ca_file": a.pem}),
    (
        httpdown.TlsError,
        "CA bundle .*contains no certificate",
        lambda a, p, d: {"client_auth": "optional", "ca": "x"},
    ),
    (
        httpdown.IOFailed,
        "nowhere",
        lambda a, p, d: {"client_auth": "optional", "ca_file": "/nowhere"},
    ),
    (
        httpdown.TlsError,
        "CRL bundle .* contains no",
        lambda a, p, d: {"client_auth": "optional", "ca_file": a.pem, "crl_file": a.pem},
    ),
    (httpdown.InvalidArgument, "keys", lambda a, p, d: {"ticket_keys": [b"x" * 48] * 2}),
    (
        httpdown.InvalidArgument,
        "17",
        lambda a, p, d: {"ticket_keys": [bytes([i]) * 48 for i in range(17)]},
    ),
]


@pytest.mark.parametrize(
    ("kind", "reason", "change"), WRONG, ids=[f"{i}-{one[1]}" for i, one in enumerate(WRONG)]
)
def test_settings_that_cannot_be_used(
    authority: Authority,
    localhost: Pair,
    tmp_path: Path,
    kind: type[Exception],
    reason: str,
    change: Callable[[Authority, Pair, Path], dict[str, Any]],
) -> None:
    tls = Tls(**{**localhost.files, **change(authority, localhost, tmp_path)})
    with pytest.raises(kind, match=reason):
        Server(hello, any_address(), tls=tls)


class NoPath:
    def __fspath__(self) -> bytes:
        return b"cert.pem"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (TypeError, {"cert_file": 1}),
        (TypeError, {"cert_file": b"cert.pem"}),
        (TypeError, {"key_file": NoPath()}),
        (ValueError, {"ca_file": "a\0b"}),
        (ValueError, {"key_file": "-----BEGIN PRIVATE KEY-----\nsecret"}),
        (TypeError, {"cert": None}),
        (TypeError, {"key": 1}),
        (TypeError, {"ca": ["x"]}),
        (TypeError, {"crl": bytearray(b"x")}),
        (TypeError, {"more": 1}),
        (TypeError, {"more": ["cert.pem"]}),
        (TypeError, {"more": [("cert.pem", "key.pem")]}),
        (TypeError, {"client_auth": True}),
        (ValueError, {"client_auth": "always"}),
        (TypeError, {"min_version": 1.3}),
        (ValueError, {"min_version": "1.1"}),
        (ValueError, {"handshake_timeout": -1}),
        (TypeError, {"handshake_timeout": "10s"}),
        (ValueError, {"handshakes": 0}),
        (TypeError, {"handshakes": 1.5}),
        (TypeError, {"ticket_keys": b"x" * 48}),
        (TypeError, {"ticket_keys": 48}),
        (TypeError, {"ticket_keys": ["x" * 48]}),
        (ValueError, {"ticket_keys": [b"secret"]}),
        (TypeError, {"certificate": "cert.pem"}),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(kind: type[Exception], settings: dict[str, Any]) -> None:
    with pytest.raises(kind) as error:
        Tls(**settings)
    (name,) = settings
    assert name.rstrip("s").split("_")[0] in str(error.value)
    assert "secret" not in str(error.value)


def test_settings_are_named() -> None:
    make: Any = Tls
    with pytest.raises(TypeError):
        make("cert.pem", "key.pem")
    make = Certificate
    with pytest.raises(TypeError):
        make("cert.pem", "key.pem")
    wrong: Any = {"cert_file": "cert.pem"}
    with pytest.raises(TypeError, match="tls must be a Tls, not dict"):
        Server(hello, any_address(), tls=wrong)


def test_settings_show_no_keys() -> None:
    certificate = Certificate(cert_file=Path("a.pem"), key="secret")
    assert repr(certificate) == "httpdown.Certificate(cert_file='a.pem', key=...)"
    tls = Tls(
        cert_file="c.pem", cert=b"secret", key="secret", more=[certificate], handshake_timeout=0,
        ticket_keys=[b"secret" * 8],
    )  # fmt: skip
    assert repr(tls) == (
        f"httpdown.Tls(cert_file='c.pem', cert=..., key=..., more=({certificate!r},), "
        "handshake_timeout=0, ticket_keys=...)"
    )
    assert repr(Tls()) == "httpdown.Tls()"


def test_settings_are_values() -> None:
    tls = Tls(cert_file="c.pem", key_file=Path("k.pem"), ticket_keys=[b"x" * 48])
    assert tls == Tls(cert_file=Path("c.pem"), key_file="k.pem", ticket_keys=(b"x" * 48,))
    assert tls != dataclasses.replace(tls, min_version="1.3")
    assert len({tls, pickle.loads(pickle.dumps(tls))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        tls.cert_file = None  # type: ignore[misc]


def test_the_demo_speaks_tls(authority: Authority, localhost: Pair) -> None:
    demo = CHECKOUT / "examples" / "demo.py"
    files = ("-tls-cert", str(localhost.cert), "-tls-key", str(localhost.key))
    program = Program(str(demo), "-addr", "127.0.0.1:0", *files)
    scheme, _, address = program.line().split()[2].rstrip("/").partition("://")
    port = address.partition(":")[2]
    assert scheme == "https"
    connection = http.client.HTTPSConnection(
        "localhost", int(port), context=trusting(authority), timeout=30
    )
    with contextlib.closing(connection):
        assert get(connection, "/?duration=1ms").status == 200
    program.signal(signal.SIGTERM)
    code, out, err = program.end()
    assert (code, out, err) == (0, "stopped: 1 requests, 1 served, 0 killed\n", "")
