"""Sockets that a program is started with, by systemd's protocol."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from typing import Any

from conftest import LONG, PYTHON

# Gives a socket the number 3, and says for which process it is.
LAUNCHER = """
import os, sys
socket = int(sys.argv[1])
if socket != 3:
    os.dup2(socket, 3)
    os.close(socket)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
os.execv(sys.executable, [sys.executable, "-X", "dev", "-W", "error", "-c", sys.argv[2]])
"""

PRELUDE = """
import asyncio, json, os, subprocess, sys
import httpdown, httpdown.aio

ENV = [sys.executable, "-c", "import os; print([name for name in os.environ if 'LISTEN' in name])"]

def listen_variables():
    # What this process knows, and what its children get: from C, and from Python.
    here = [name for name in os.environ if "LISTEN" in name]
    child = subprocess.check_output(ENV, text=True).strip()
    copy = subprocess.check_output(ENV, text=True, env=dict(os.environ)).strip()
    return [here, child, copy]
"""


def run(text: str) -> tuple[Any, bytes]:
    """Runs a program with a socket, and asks it for "/". Gives what it printed, and the answer."""
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        fd = inherited.fileno()
        with subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(fd), PRELUDE + text],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PYTHON)},
        ) as program:
            try:
                client = http.client.HTTPConnection(*inherited.getsockname(), timeout=LONG)
                with contextlib.closing(client):
                    client.request("GET", "/")
                    body = client.getresponse().read()
                out, _ = program.communicate(timeout=LONG)
                assert program.returncode == 0
            finally:
                program.kill()
        # Who has passed it on still has it: nobody is refused.
        socket.create_connection(inherited.getsockname(), LONG).close()
        return json.loads(out), body


def test_a_server_finds_its_socket_and_nobody_else_does() -> None:
    said, body = run("""
answered = __import__("threading").Event()

def hello(request):
    request.reply(200, "hello")
    answered.set()

try:
    httpdown.Server(hello, "fd:nobody")
except httpdown.AddressInvalid as error:
    why = str(error)
with httpdown.Server(hello, "fd:web"):
    variables = listen_variables()
    answered.wait()
print(json.dumps([why, variables]))
""")
    why, variables = said
    assert body == b"hello"
    assert 'no inherited socket has this name; there are "web"' in why
    assert variables == [[], "[]", "[]"]


def test_asyncio_finds_it_too() -> None:
    said, body = run("""
async def main():
    async with httpdown.aio.Server("fd:web") as server:
        async for request in server:
            request.reply(200, "hello")
            break

asyncio.run(main())
print(json.dumps(listen_variables()))
""")
    assert (said, body) == ([[], "[]", "[]"], b"hello")


def test_a_program_that_reads_the_variables_itself_keeps_them() -> None:
    said, body = run("""
answered = __import__("threading").Event()

def hello(request):
    request.reply(200, "hello")
    answered.set()

with httpdown.Server(hello, fds=[3], fds_shared=True):
    here, child, _ = listen_variables()
    answered.wait()
print(json.dumps([here, child]))
""")
    here, child = said
    assert body == b"hello"
    assert sorted(here) == ["LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"]
    assert "LISTEN_FDS" in child
