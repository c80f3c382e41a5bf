"""Answers that are files."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import any_address, connect, fetch

import httpdown
from httpdown import AlreadyReplied, InvalidArgument, Request, Server, content_type

CONTENT = b"0123456789"


@pytest.fixture(name="path")
def make_path(tmp_path: Path) -> Path:
    path = tmp_path / "digits.txt"
    path.write_bytes(CONTENT)
    os.utime(path, (784111777, 784111777))
    return path


def answer(handler: Callable[[Request], object], *arguments: Any, **headers: str) -> Any:
    with Server(handler, any_address(), threads=2) as server:
        return fetch(server, *arguments, **headers)


def test_bytes_of_an_open_file(path: Path) -> None:
    def handler(request: Request) -> None:
        with path.open("rb") as file:
            file.read(3)
            if request.path == "/all":
                request.reply_fd(file)
            elif request.path == "/part":
                request.reply_fd(file.fileno(), 203, {"X-Own": "yes"}, offset=2, length=3)
            else:
                request.reply_fd(file, offset=8)
            # It is still ours.
            assert file.read() == CONTENT[3:]

    with Server(handler, any_address()) as server:
        for target, status, body in (
            ("/all", 200, CONTENT),
            ("/part", 203, b"234"),
            ("/rest", 200, b"89"),
        ):
            response: Any = fetch(server, target)
            assert (response.status, response.body) == (status, body)
            head: Any = fetch(server, target, "HEAD")
            assert (head.headers["Content-Length"], head.body) == (str(len(body)), b"")
        assert fetch(server, "/part").headers["X-Own"] == "yes"


@pytest.mark.parametrize("kind", [str, os.fsencode, Path, open, os.open])
def test_a_file_is_what_the_client_asks_for(path: Path, kind: Any) -> None:
    def handler(request: Request) -> None:
        own = {"Cache-Control": "max-age=5"}
        if kind is open:
            with open(path, encoding="utf-8") as file:
                request.reply_file(file, own)
        elif kind is os.open:
            descriptor = os.open(path, os.O_RDONLY)
            request.reply_file(descriptor, own)
            os.close(descriptor)
        else:
            request.reply_file(kind(path), own)

    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    with Server(handler, any_address()) as server:
        whole: Any = fetch(server)
        assert (whole.status, whole.body) == (200, CONTENT)
        assert whole.headers["Last-Modified"] == date
        assert whole.headers["Cache-Control"] == "max-age=5"
        type_ = None if kind in (open, os.open) else "text/plain; charset=utf-8"
        assert whole.headers["Content-Type"] == type_
        for fields, status, body in (
            ({"If-None-Match": whole.headers["ETag"]}, 304, b""),
            ({"If-Modified-Since": date}, 304, b""),
            ({"Range": "bytes=-2"}, 206, b"89"),
            ({"Range": "bytes=10-"}, 416, b"the file is shorter\n"),
        ):
            response: Any = fetch(server, **fields)
            assert (response.status, response.body) == (status, body), fields
        assert fetch(server, "/", "POST").headers["Allow"] == "GET, HEAD"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    response = answer(lambda request: request.reply_file(tmp_path / "none"))
    assert (response.status, response.body) == (404, b"not found\n")


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ValueError, ("a\0b",)),
        (TypeError, (True,)),
        (ValueError, (-1,)),
        (OSError, (12345,)),
        (TypeError, (None,)),
        (ValueError, ("digits.txt", {"X": "two\r\nlines"})),
    ],
)
def test_files_that_make_no_sense(error: type[Exception], arguments: tuple[Any, ...]) -> None:
    def handler(request: Request) -> None:
        with pytest.raises(error):
            request.reply_file(*arguments)
        # Nothing has happened.
        request.reply(200)

    assert answer(handler).status == 200


def test_what_cannot_be_sent(path: Path) -> None:
    def handler(request: Request) -> None:
        for arguments in ({"offset": -1}, {"length": -1}, {"length": 2**64}):
            with path.open("rb") as file, pytest.raises(ValueError, match="must be from"):
                request.reply_fd(file, **arguments)
        with path.open("rb") as file, pytest.raises(InvalidArgument, match="the file has 10 bytes"):
            request.reply_fd(file, offset=11)

    assert answer(handler).status == 500

    def piped(request: Request) -> None:
        reader, writer = os.pipe()
        with pytest.raises(InvalidArgument, match="not a regular file"):
            request.reply_file(reader)
        os.close(reader)
        os.close(writer)

    assert answer(piped).status == 500


def test_no_descriptor_is_lost(path: Path) -> None:
    counts: queue.Queue[list[int]] = queue.Queue()

    def handler(request: Request) -> None:
        with path.open("rb") as file:
            request.reply(200)
            count = [len(os.listdir("/proc/self/fd"))]
            for call in (request.reply_fd, request.reply_file):
                with pytest.raises(AlreadyReplied):
                    call(file)
            counts.put([*count, len(os.listdir("/proc/self/fd"))])

    with Server(handler, any_address()) as server:
        # The connection is this process's, too, so it stays open meanwhile.
        with closing(connect(server)) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            before, after = counts.get(timeout=10)
    assert before == after


def test_a_stop_lets_a_file_come_to_its_end(path: Path) -> None:
    os.truncate(path, 32 << 20)
    with Server(lambda request: request.reply_file(path), any_address()) as server:
        with closing(connect(server)) as connection:
            connection.request("GET", "/")
            response = connection.getresponse()
            server.stop_begin()
            while server.phase < httpdown.Phase.DRAINING:
                pass
            assert len(response.read()) == 32 << 20
        assert server.wait().served == 1


def test_content_types() -> None:
    assert content_type("a/b.HTML") == "text/html; charset=utf-8"
    assert content_type(b"\xff") == "application/octet-stream"
    assert content_type(Path("x.css")) == "text/css; charset=utf-8"
