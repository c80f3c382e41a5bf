"""The bindings say what the header says, and the right library is found."""

from __future__ import annotations

import ctypes
import inspect
import os
import random
import re
import shutil
import subprocess
import sys
import urllib.parse
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, PYTHON, Counted

from httpdown import MockClock, Report, Server, Status, Tls, _errors, _ffi, _server

TEXT = (CHECKOUT / "include" / "httpdown.h").read_text("utf-8")
HEADER = re.sub(r"//[^\n]*|/\*.*?\*/", "", TEXT, flags=re.DOTALL)

STRUCTS: dict[str, type[ctypes.Structure]] = {
    "httpdown_options": _ffi.Options,
    "httpdown_stats": _ffi.Stats,
    "httpdown_stop_report": _ffi.StopReport,
    "httpdown_event": _ffi.Event,
    "httpdown_request_record": _ffi.RequestRecord,
    "httpdown_bytes": _ffi.Bytes,
    "httpdown_header": _ffi.Header,
    "httpdown_credentials": _ffi.Credentials,
    "httpdown_item": _ffi.Item,
    "httpdown_certificate": _ffi.Certificate,
    "httpdown_tls": _ffi.Tls,
    "httpdown_tls_info": _ffi.TlsInfo,
    "httpdown_restart_options": _ffi.RestartOptions,
    "httpdown_restarts": _ffi.Restarts,
}
ENUMS: dict[str, tuple[str, type[IntEnum] | type[IntFlag]]] = {
    "httpdown_status": ("STATUS_", _errors.Status),
    "httpdown_phase_code": ("PHASE_", _ffi.Phase),
    "httpdown_conn_state": ("CONN_", _ffi.ConnState),
    "httpdown_dispatch": ("DISPATCH_", _ffi.Dispatch),
    "httpdown_log_level": ("LOG_", _ffi.LogLevel),
    "httpdown_event_kind": ("EVENT_", _ffi.EventKind),
    "httpdown_stat_kind": ("STAT_", _ffi.StatKind),
    "httpdown_request_end": ("END_", _ffi.RequestEnd),
    "httpdown_log_format": ("LOG_", _ffi.LogFormat),
    "httpdown_tls_version": ("", _ffi.TlsVersion),
    "httpdown_client_auth": ("CLIENT_AUTH_", _ffi.ClientAuth),
    "httpdown_ready_kind": ("", _ffi.Ready),
    "httpdown_restart_state": ("RESTART_", _ffi.RestartState),
    "httpdown_restart_flag": ("RESTART_", _ffi.RestartFlag),
}
SCALARS: dict[str, Any] = {
    "void": None,
    "bool": ctypes.c_bool,
    "int": ctypes.c_int,
    "double": ctypes.c_double,
    "size_t": ctypes.c_size_t,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
}


# Functions of C that the package has no use for, and why.
NOT_CALLED = {
    "httpdown_options_init": "ctypes makes a struct of zeros",
    "httpdown_tls_init": "the same",
    "httpdown_restart_options_init": "the same",
    "httpdown_restart_begin": "its callbacks would run Python code on a thread of the library's",
    "httpdown_run": "only Python's own signal handlers run Python code",
    "httpdown_run_all": "the same",
    "httpdown_stop": "it is httpdown_stop_begin, and httpdown_wait in slices, for Ctrl-C",
    "httpdown_next": "httpdown_next_item takes events, too",
    "httpdown_request_defer": "requests of the queue are owned",
    "httpdown_request_header": "headers has all of them",
    "httpdown_request_header_count": "the same",
    "httpdown_request_data": "an attribute of the Request has it",
    "httpdown_request_set_data": "the same",
    "httpdown_request_server": "a Request knows its Server",
    "httpdown_reply_text": "reply sets the Content-Type itself",
    "httpdown_reply_borrowed": "its callback would run Python code on a thread of the library's",
    "httpdown_str": "Python knows how long a bytes is",
    "httpdown_bytes_equal": "Python compares",
    "httpdown_query_value": "urllib decodes queries",
    "httpdown_percent_decode": "urllib decodes paths",
    "httpdown_version": "called when the package is imported",
}
# Fields of the options that no option of the same name sets, and what does.
SET_OTHERWISE = {
    "struct_size": "always",
    "reserved": "for an option to come",
    "addr": "bind",
    "fd_count": "fds",
    "handler": "the queue is used, and no callback",
    "user_data": "the same",
    "destroy": "the same",
    "stats": "events are pulled",
    "on_conn_state": "the same",
    "on_phase": "the same",
    "on_log": "the same",
    "pull_events": "which observers there are",
    "dispatch": "always the queue",
    "pool_threads": "threads",
    "restart": "only Python's own signal handlers run Python code: run restarts",
    "on_done": "records are pulled",
}


def ctype(text: str, field: bool = False) -> Any:
    """The ctypes type for a type of C."""
    text = text.replace("const", "").strip()
    if text.endswith("_fn"):
        return ctypes.c_void_p
    if not text.endswith("*"):
        return SCALARS[text] if text in SCALARS else STRUCTS[text]
    target = text[:-1].strip()
    if target.endswith("*"):
        is_text = target[:-1].strip() == "char"
        return ctypes.POINTER(ctypes.c_char_p if is_text else ctypes.c_void_p)
    if target == "char":
        # Of httpdown_bytes it is not NUL-terminated.
        return ctypes.c_void_p if field == "data" else ctypes.c_char_p
    if target in SCALARS and target != "void":
        return ctypes.POINTER(SCALARS[target])
    # Within a struct, a pointer to a struct is a plain address.
    is_known = target in STRUCTS and not field
    return ctypes.POINTER(STRUCTS[target]) if is_known else ctypes.c_void_p


def declaration(text: str) -> tuple[str, str]:
    """The type and the name of a parameter or a field."""
    found = re.fullmatch(r"(.*?)(\w+)", text.strip(), re.DOTALL)
    assert found
    return " ".join(found[1].split()), found[2]


def prototypes() -> dict[str, tuple[str, list[str]]]:
    """Of each function: what it returns, and the types of its parameters."""
    body = HEADER[HEADER.index('extern "C"') :].replace("HTTPDOWN_MUST_USE", "")
    found = {}
    pattern = r"^([\w \t*]+?)\b(httpdown_\w+)\(([^)]*)\);"
    for result, name, parameters in re.findall(pattern, body, re.MULTILINE):
        parts = [] if parameters.strip() == "void" else parameters.split(",")
        found[name] = (result.strip(), [declaration(part)[0] for part in parts])
    return found


def test_the_header_is_understood() -> None:
    assert len(prototypes()) == len(re.findall(r"\bhttpdown_\w+\([^)]*\);", HEADER))
    assert len(prototypes()) > 40


@pytest.mark.parametrize("name", prototypes())
def test_a_function(name: str) -> None:
    result, parameters = prototypes()[name]
    function = getattr(_ffi, name)
    assert list(function.argtypes) == [ctype(parameter) for parameter in parameters]
    assert function.restype == ctype(result)
    source = Path(_ffi.__file__).read_text("utf-8").replace("\n#    ", "")
    comments = [
        " ".join(line.split()) for line in source.splitlines() if line.strip().startswith("# ")
    ]
    spaced = " ".join(comment.replace("* ", "*") for comment in comments)
    wanted = re.search(rf"[^;]*\b{name}\([^)]*\);", HEADER[HEADER.index('extern "C" {') + 12 :])
    assert wanted
    words = re.sub(r"#.*|HTTPDOWN_MUST_USE", "", wanted[0])
    assert " ".join(words.split()).lstrip("; ").replace("* ", "*") in spaced


def test_no_function_is_bound_that_the_header_has_not() -> None:
    bound = {name for name in vars(_ffi) if name.startswith("httpdown_")}
    assert bound == set(prototypes())


@pytest.mark.last
def test_every_function_of_the_header_is_called() -> None:
    assert sorted(set(prototypes()) - Counted.called) == sorted(NOT_CALLED)


def test_every_option_of_the_header_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"float": 7.0, "int": 3, "bool": True, "str": "/path"}
    parameters = inspect.signature(Server).parameters
    tls = Tls(cert_file="cert.pem", key_file="key.pem")
    given: dict[str, Any] = {"fds": [0], "tls": tls, "clock": MockClock()}
    fields = [name for name, _ in _ffi.Options._fields_ if name not in SET_OTHERWISE]
    for field in fields:
        name = field.removesuffix("_ms")
        if name not in given:
            kind = str(parameters[name].annotation).split()[0]
            given[name] = values[kind]
    started = []

    def start(options: _ffi.Options) -> None:
        started.extend(field for field in fields if getattr(options, field))
        raise NotImplementedError

    monkeypatch.setattr(_server, "_start", start)
    with pytest.raises(NotImplementedError):
        Server(print, **given)
    assert started == fields


def test_every_enum_and_struct_is_known() -> None:
    enums = re.findall(r"typedef enum \{[^}]*\} (\w+);", HEADER)
    structs = re.findall(r"typedef struct \{[^}]*\} (\w+);", HEADER)
    assert (set(enums), set(structs)) == (set(ENUMS), set(STRUCTS))


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum(name: str) -> None:
    prefix, ours = ENUMS[name]
    body = re.search(rf"typedef enum \{{([^}}]*)\}} {name};", HEADER)
    assert body
    values = re.findall(rf"HTTPDOWN_{prefix}(\w+) = (\d+)", body[1])
    assert {key: int(value) for key, value in values} == {
        key: int(value) for key, value in ours.__members__.items()
    }


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct(name: str) -> None:
    body = re.search(rf"typedef struct \{{([^}}]*)\}} {name};", HEADER)
    assert body
    wanted: list[tuple[str, Any]] = []
    for field in body[1].split(";")[:-1]:
        array = re.fullmatch(r"\s*(char|uint8_t) (\w+)\[(\d+)\]", field)
        if array:
            item = {"char": ctypes.c_char, "uint8_t": ctypes.c_uint8}[array[1]]
            wanted.append((array[2], item * int(array[3])))
        else:
            kind, field_name = declaration(field)
            wanted.append((field_name, ctype(kind, field=field_name)))  # type: ignore[arg-type]
    assert STRUCTS[name]._fields_ == wanted


def test_constants() -> None:
    constants = dict(re.findall(r"#define HTTPDOWN_(NOW|FOREVER) (\d+)", HEADER))
    assert (int(constants["NOW"]), int(constants["FOREVER"])) == (_ffi.NOW, _ffi.FOREVER)
    assert "#define HTTPDOWN_TO_END UINT64_MAX\n" in HEADER
    assert ctypes.c_uint64(-1).value == _ffi.TO_END


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_sizes_and_offsets(tmp_path: Path) -> None:
    lines = []
    wanted = []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        wanted.append(ctypes.sizeof(struct))
        for field in struct._fields_:
            lines.append(f'printf("%zu\\n", offsetof({name}, {field[0]}));')
            wanted.append(getattr(struct, field[0]).offset)
    source = tmp_path / "sizes.c"
    includes = "#include <httpdown.h>\n#include <stdio.h>\n"
    source.write_text(includes + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    include = f"-I{CHECKOUT / 'include'}"
    subprocess.run(["cc", include, str(source), "-o", str(tmp_path / "sizes")], check=True)
    printed = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True)
    assert [int(line) for line in printed.stdout.split()] == wanted


def test_queries_mean_what_they_mean_to_urllib() -> None:
    pick = random.Random(7)
    parts = ["a", "b", "=", "&", "+", "%", "%2", "%41", "%00", "%ff", "%C3%BC", "%zz", ";", "?"]
    for _ in range(2000):
        text = "".join(pick.choices(parts, k=pick.randrange(12)))
        query = text.encode()
        rest = _ffi.Bytes(ctypes.cast(ctypes.c_char_p(query), ctypes.c_void_p), len(query))
        pair = _ffi.Header()
        found = []
        while _ffi.httpdown_query_next(ctypes.byref(rest), ctypes.byref(pair)):
            found.append((decoded(pair.name), decoded(pair.value)))
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True, encoding="latin-1")
        assert found == [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


def decoded(encoded: _ffi.Bytes) -> bytes:
    buffer = ctypes.create_string_buffer(100)
    length = ctypes.c_size_t()
    _ffi.httpdown_query_decode(encoded, buffer, len(buffer), ctypes.byref(length))
    return buffer.raw[: length.value]


def test_the_report_has_every_field() -> None:
    raw = [field[0] for field in _ffi.StopReport._fields_[1:]]
    assert [field.replace("_ms", "") for field in raw] == list(Report.__annotations__)


def test_every_status_that_is_raised_has_an_exception() -> None:
    others = {Status.OK, Status.WOULD_BLOCK, Status.NOT_FOUND, Status.PANIC}
    assert set(_errors.CLASSES) == set(Status) - others
    for status in Status:
        error = _ffi.failure(status)
        assert str(error) == _ffi.httpdown_status_string(status).decode()
    assert type(_ffi.failure(Status.PANIC)) is _errors.HttpdownError
    assert type(_ffi.failure(Status.WOULD_BLOCK)) is TimeoutError


def imported(package: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(package), **environment}
    command = [sys.executable, "-c", "import httpdown; print(httpdown._ffi._find())"]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd="/")


def test_where_the_library_is_found(tmp_path: Path) -> None:
    built = CHECKOUT / "build" / "libhttpdown.so.0"
    package = tmp_path / "a" / "b" / "c"
    shutil.copytree(PYTHON / "httpdown", package / "httpdown")
    # As pip would have it.
    (package / "httpdown-1.dist-info").mkdir()
    metadata = package / "httpdown-1.dist-info" / "METADATA"
    metadata.write_text(f"Metadata-Version: 2.1\nName: httpdown\nVersion: {_ffi.VERSION}\n")

    nowhere = imported(package)
    assert nowhere.returncode == 1
    assert "ImportError" in nowhere.stderr and "HTTPDOWN_LIBRARY" in nowhere.stderr
    wrong = imported(package, HTTPDOWN_LIBRARY="/nowhere/libhttpdown.so")
    assert wrong.returncode == 1 and "ImportError" in wrong.stderr
    assert imported(package, HTTPDOWN_LIBRARY=str(built)).stdout.strip() == str(built)

    metadata.write_text("Metadata-Version: 2.1\nName: httpdown\nVersion: 7.8.9\n")
    other = imported(package, HTTPDOWN_LIBRARY=str(built))
    assert other.returncode == 1 and "this package needs 7.8.9" in other.stderr

    metadata.write_text(f"Metadata-Version: 2.1\nName: httpdown\nVersion: {_ffi.VERSION}\n")
    bundled = package / "httpdown" / "libhttpdown.so.0"
    shutil.copy(built, bundled)
    assert imported(package, HTTPDOWN_LIBRARY="/nowhere").stdout.strip() == str(bundled)
