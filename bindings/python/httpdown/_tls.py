"""TLS: its settings, and what a handshake has agreed on."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, Union

from . import _arguments, _ffi
from ._errors import Status

Path = Union[str, "os.PathLike[str]"]

_VERSIONS = {"1.2": _ffi.TlsVersion.TLS_1_2, "1.3": _ffi.TlsVersion.TLS_1_3}
_VERSION_NAMES = {version: name for name, version in _VERSIONS.items()}
_CLIENT_AUTH = {"optional": _ffi.ClientAuth.OPTIONAL, "required": _ffi.ClientAuth.REQUIRED}
_TICKET_KEY = 48


class _Settings:
    """What `Certificate` and `Tls` have in common: their repr shows nothing that is secret."""

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)  # The dataclass is frozen.

    def __repr__(self) -> str:
        parts = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is None or value == field.default:
                continue
            # Any of the texts may hold a key.
            hidden = isinstance(value, bytes) or field.name == "ticket_keys"
            parts.append(f"{field.name}={'...' if hidden else repr(value)}")
        return f"httpdown.{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, init=False, repr=False)
class Certificate(_Settings):
    """A certificate chain and its private key, in PEM, for `Tls.more`.

    Each of the two is in a file (`cert_file`, `key_file`), or in memory (`cert`, `key`): set one of
    these. One file may hold both: then give its path twice. (Only if both are in files, they can be
    read again.) The chain begins with the server's own certificate; each certificate was issued by
    the next. The key is ECDSA, Ed25519, or RSA of at least 2,048 bits, and not encrypted.

    Raises TypeError and ValueError. The files are read when a server gets the certificate.
    """

    cert_file: str | None = None
    key_file: str | None = None
    cert: bytes = b""
    key: bytes = b""

    def __init__(
        self,
        *,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        cert: bytes | str = b"",
        key: bytes | str = b"",
    ) -> None:
        self._set(
            cert_file=_arguments.path("cert_file", cert_file),
            key_file=_arguments.path("key_file", key_file),
            cert=_arguments.pem("cert", cert),
            key=_arguments.pem("key", key),
        )


@dataclass(frozen=True, init=False, repr=False)
class Tls(_Settings):
    """How a server speaks TLS: `Server(..., tls=Tls(...))`.

    `cert_file`, `key_file`, `cert` and `key` are the server's certificate and its key, like in
    `Certificate`. This certificate is for all names that none of `more` has, and for clients that
    name none.

    - `more`: More certificates: chosen for clients that ask for one of their names (SNI), an exact
      one rather than one with a wildcard. A name may have several, with keys of different types: a
      client gets one whose signatures it can check, and ECDSA rather than RSA.
    - `client_auth`: "optional" asks clients for certificates: a client may have none, but a
      certificate that it has must be valid. "required" refuses clients without a valid certificate.
      Both need `ca_file` or `ca`. Default: no client is asked.
    - `ca_file`, `ca`: The CA certificates, in PEM, one of which must have issued a client's
      certificate.
    - `crl_file`, `crl`: Revocation lists, in PEM. Once there are lists, each certificate of a
      client's chain needs one from its issuer.
    - `min_version`: The oldest version of TLS that clients may use, "1.2" or "1.3". Default: "1.2".
    - `handshake_timeout`: How long a handshake may take, in seconds, from the moment when the
      connection was accepted. Default: 10.
    - `handshakes`: How many handshakes may be under way, from the end of the client's first
      message. Others wait for their turn. Default: 10000.
    - `ticket_keys`: The keys of session tickets, each of 48 random bytes, at most 16: the first
      encrypts, all decrypt. Servers with the same keys resume each other's sessions, so that after
      a restart clients need no full handshakes. Replace them now and then, by `Server.reload_tls`.
      Default: keys of the server's own, a new one every 6 hours.

    The repr shows no keys, and nothing else that is in memory. Raises TypeError and ValueError. The
    files are read when a server gets these settings.
    """

    cert_file: str | None = None
    key_file: str | None = None
    cert: bytes = b""
    key: bytes = b""
    more: tuple[Certificate, ...] = ()
    client_auth: Literal["optional", "required"] | None = None
    ca_file: str | None = None
    ca: bytes = b""
    crl_file: str | None = None
    crl: bytes = b""
    min_version: Literal["1.2", "1.3"] | None = None
    handshake_timeout: float | None = None
    handshakes: int | None = None
    ticket_keys: tuple[bytes, ...] = ()

    def __init__(
        self,
        *,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        cert: bytes | str = b"",
        key: bytes | str = b"",
        more: Iterable[Certificate] = (),
        client_auth: Literal["optional", "required"] | None = None,
        ca_file: Path | None = None,
        ca: bytes | str = b"",
        crl_file: Path | None = None,
        crl: bytes | str = b"",
        min_version: Literal["1.2", "1.3"] | None = None,
        handshake_timeout: float | None = None,
        handshakes: int | None = None,
        ticket_keys: Iterable[bytes] = (),
    ) -> None:
        _arguments.milliseconds("handshake_timeout", handshake_timeout)
        if handshakes is not None:
            _arguments.number("handshakes", handshakes, 1, 2**32 - 1)
        self._set(
            cert_file=_arguments.path("cert_file", cert_file),
            key_file=_arguments.path("key_file", key_file),
            cert=_arguments.pem("cert", cert),
            key=_arguments.pem("key", key),
            more=_certificates(more),
            client_auth=_arguments.choice("client_auth", client_auth, _CLIENT_AUTH),
            ca_file=_arguments.path("ca_file", ca_file),
            ca=_arguments.pem("ca", ca),
            crl_file=_arguments.path("crl_file", crl_file),
            crl=_arguments.pem("crl", crl),
            min_version=_arguments.choice("min_version", min_version, _VERSIONS),
            handshake_timeout=handshake_timeout,
            handshakes=handshakes,
            ticket_keys=_ticket_keys(ticket_keys),
        )


def _certificates(more: Iterable[Certificate]) -> tuple[Certificate, ...]:
    if not isinstance(more, Iterable):
        raise TypeError(f"more must be Certificates, not {type(more).__name__}")
    certificates = tuple(more)
    for certificate in certificates:
        if not isinstance(certificate, Certificate):
            raise TypeError(f"more must be Certificates, not {type(certificate).__name__}")
    return certificates


def _ticket_keys(given: Iterable[bytes]) -> tuple[bytes, ...]:
    # The bytes of one key are iterable, too.
    if isinstance(given, (bytes, bytearray, str)) or not isinstance(given, Iterable):
        raise TypeError(f"ticket_keys must be a list of bytes, not {type(given).__name__}")
    keys = tuple(given)
    for key in keys:
        if not isinstance(key, bytes):
            raise TypeError(f"a ticket key must be bytes, not {type(key).__name__}")
        if len(key) != _TICKET_KEY:
            raise ValueError(f"a ticket key must have {_TICKET_KEY} bytes, not {len(key)}")
    return keys


@dataclass(frozen=True)
class TlsInfo:
    """What the TLS handshake of a request's connection has agreed on: `Request.tls`."""

    version: Literal["1.2", "1.3"]
    """The version of TLS."""
    resumed: bool
    """Whether the session goes on from an earlier connection, by a ticket."""
    cipher_suite: str
    """The cipher suite, by its name in the IANA's registry: "TLS13_AES_256_GCM_SHA384"."""
    server_name: str | None
    """The name that the client has asked for (SNI), in lower case; None if it has named none."""
    alpn: str | None
    """The protocol that was agreed on (ALPN), "http/1.1" or "http/1.0"; None without ALPN."""
    client_certificate: bytes | None
    """The client's certificate, which was verified, in DER; None if there is none."""
    client_subject: str | None
    """The subject of the client's certificate (RFC 4514): "CN=alice,O=Example"."""
    client_names: tuple[str, ...]
    """Its alternative names: host names, addresses, mail addresses, URIs. Their kinds are not told
    apart: if a mere host name must not pass for a mail address, read the certificate."""
    client_fingerprint: bytes | None
    """The SHA-256 digest of the client's certificate."""


def to_c(tls: Tls) -> _ffi.Tls:
    """The settings as C takes them. The struct keeps the memory alive that it points to."""
    if not isinstance(tls, Tls):
        raise TypeError(f"tls must be a Tls, not {type(tls).__name__}")
    more = (_ffi.Certificate * len(tls.more))(
        *(
            _ffi.Certificate(
                cert_file=_file(each.cert_file),
                key_file=_file(each.key_file),
                cert=_ffi.lend(each.cert),
                key=_ffi.lend(each.key),
            )
            for each in tls.more
        )
    )
    ticket_keys = b"".join(tls.ticket_keys)
    raw = _ffi.Tls(
        struct_size=ctypes.sizeof(_ffi.Tls),
        cert_file=_file(tls.cert_file),
        key_file=_file(tls.key_file),
        cert=_ffi.lend(tls.cert),
        key=_ffi.lend(tls.key),
        more=ctypes.addressof(more),
        more_count=len(more),
        client_auth=_CLIENT_AUTH[tls.client_auth] if tls.client_auth else _ffi.ClientAuth.NONE,
        min_version=_VERSIONS[tls.min_version] if tls.min_version else 0,
        ca_file=_file(tls.ca_file),
        ca=_ffi.lend(tls.ca),
        crl_file=_file(tls.crl_file),
        crl=_ffi.lend(tls.crl),
        ticket_keys=_ffi.lend(ticket_keys),
        handshake_timeout_ms=_arguments.milliseconds("handshake_timeout", tls.handshake_timeout),
        handshakes=tls.handshakes or 0,
    )
    raw.memory = (tls, more, ticket_keys)
    return raw


def _file(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def read(pointer: int) -> TlsInfo | None:
    """What C knows of a request's connection; None if it has no TLS."""
    found = _ffi.TlsInfo(struct_size=ctypes.sizeof(_ffi.TlsInfo))
    status = _ffi.httpdown_request_tls(pointer, ctypes.byref(found))
    if status == Status.NOT_FOUND:
        return None
    if status:
        raise _ffi.failure(status)
    version: Any = _VERSION_NAMES[found.version]
    certificate = _bytes(found.client_certificate)
    names = _text(found.client_names)
    return TlsInfo(
        version=version,
        resumed=bool(found.resumed),
        cipher_suite=_text(found.cipher_suite) or "",
        server_name=_text(found.server_name),
        alpn=_text(found.alpn),
        client_certificate=certificate,
        client_subject=_text(found.client_subject),
        client_names=tuple(names.split("\n")) if names else (),
        client_fingerprint=None if certificate is None else bytes(found.client_fingerprint),
    )


def _bytes(borrowed: _ffi.Bytes) -> bytes | None:
    return None if borrowed.data is None else _ffi.copy(borrowed)


def _text(borrowed: _ffi.Bytes) -> str | None:
    found = _bytes(borrowed)
    return None if found is None else found.decode("utf-8", "replace")
