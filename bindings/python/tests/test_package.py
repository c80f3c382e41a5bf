"""The wheel: built, installed, used far from the checkout."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest
from conftest import CHECKOUT, PYTHON

HELLO = """
import urllib.request
import httpdown

with httpdown.Server(lambda request: request.reply(200, "Hello, World!"), "127.0.0.1:0") as server:
    with urllib.request.urlopen(f"http://{server.address}/") as response:
        print(response.read().decode())
print(httpdown.__version__, httpdown.__file__)
"""


def test_an_installed_wheel_serves(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["HTTPDOWN_LIBRARY"] = str(CHECKOUT / "build" / "libhttpdown.so.0")
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    before = sorted(path for path in PYTHON.rglob("*") if "__pycache__" not in path.parts)
    built = run(python, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(PYTHON))
    if "No matching distribution found for hatchling" in built.stderr:
        pytest.skip("hatchling, which builds the wheel, cannot be had: no network")
    assert built.returncode == 0, built.stderr
    assert before == sorted(path for path in PYTHON.rglob("*") if "__pycache__" not in path.parts)

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")
    installed = run(python, "-m", "pip", "install", "--no-index", str(wheel))
    assert installed.returncode == 0, installed.stderr
    env["HTTPDOWN_LIBRARY"] = "/nowhere"  # It has its own.
    used = run(python, "-X", "dev", "-W", "error", "-c", HELLO)
    assert (used.returncode, used.stderr) == (0, "")
    hello, rest = used.stdout.splitlines()
    version, place = rest.split()
    assert hello == "Hello, World!"
    assert f'version = "{version}"' in (CHECKOUT / "Cargo.toml").read_text("utf-8")
    assert place.startswith(str(tmp_path))
