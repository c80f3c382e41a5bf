"""The wheel and the source distribution: built, installed, used far from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import CHECKOUT, PYTHON

pytest.importorskip("hatchling", reason="hatchling, which builds packages, is missing (make tools)")

HELLO = """
import urllib.request
import httpdown

with httpdown.Server(lambda request: request.reply(200, "Hello, World!"), "127.0.0.1:0") as server:
    with urllib.request.urlopen(f"http://{server.address}/") as response:
        print(response.read().decode())
print(httpdown.__version__, httpdown.__file__)
"""
# Another one's, above where something is unpacked.
FOREIGN = """
[workspace]
members = ["nobody"]
[package]
name = "foreign"
version = "0.1.0"
"""


def run(
    *command: str, cwd: Path, without: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    for name in ("PYTHONPATH", *without):
        env.pop(name, None)
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)


def build_wheel(source: Path, into: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    # What cargo builds is not for speed, and kept from one run to the next; nothing is downloaded.
    cargo = {
        "CARGO_NET_OFFLINE": "true",
        "CARGO_PROFILE_WHEEL_LTO": "off",
        "CARGO_PROFILE_WHEEL_OPT_LEVEL": "0",
        "CARGO_PROFILE_WHEEL_CODEGEN_UNITS": "16",
        "CARGO_TARGET_DIR": str(CHECKOUT / "build" / "packages"),
    }
    without = () if "HTTPDOWN_LIBRARY" in environment else ("HTTPDOWN_LIBRARY",)
    command += ["-w", str(into), str(source)]
    return run(*command, cwd=into, without=without, **{**cargo, **environment})


def unpacked_sdist(tmp_path: Path) -> Path:
    code = "import hatchling.build, sys; hatchling.build.build_sdist(sys.argv[1])"
    built = run(sys.executable, "-c", code, str(tmp_path), cwd=PYTHON)
    assert built.returncode == 0, built.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    elsewhere = tmp_path / "elsewhere"
    with tarfile.open(sdist) as archive:
        archive.extractall(elsewhere, filter="data")
    (elsewhere / "Cargo.toml").write_text(FOREIGN)
    (unpacked,) = (path for path in elsewhere.iterdir() if path.is_dir())
    return unpacked


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def assert_serves(wheel: Path, tmp_path: Path) -> None:
    """Installed where nothing else is."""
    assert wheel.name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    installed = run(python, "-m", "pip", "install", "--no-index", str(wheel), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    # It has its own library.
    used = run(
        python, "-X", "dev", "-W", "error", "-c", HELLO, cwd=tmp_path, HTTPDOWN_LIBRARY="/nowhere"
    )
    assert (used.returncode, used.stderr) == (0, "")
    hello, rest = used.stdout.splitlines()
    version, place = rest.split()
    assert hello == "Hello, World!"
    assert f'version = "{version}"' in (CHECKOUT / "Cargo.toml").read_text("utf-8")
    assert place.startswith(str(tmp_path))


def test_an_installed_wheel_serves(tmp_path: Path) -> None:
    before = files(PYTHON)
    library = str(CHECKOUT / "build" / "libhttpdown.so.0")
    built = build_wheel(PYTHON, tmp_path, HTTPDOWN_LIBRARY=library)
    assert built.returncode == 0, built.stderr
    assert before == files(PYTHON)
    (wheel,) = tmp_path.glob("*.whl")
    assert_serves(wheel, tmp_path)


def test_a_wheel_of_the_source_distribution_serves(tmp_path: Path) -> None:
    unpacked = unpacked_sdist(tmp_path)
    kinds = {path.relative_to(unpacked).parts[0] for path in files(unpacked)}
    # Hatchling takes .gitignore along, whatever it is told.
    assert kinds - {".gitignore"} == {
        "LICENSE", "PKG-INFO", "README.md", "hatch_build.py", "httpdown", "pyproject.toml", "rust"
    }  # fmt: skip
    before = files(unpacked)
    # All have the time that the archive has for them, and cargo would take them for what it has built before.
    for path in before:
        path.touch()
    # TLS takes a minute to build, and is another crate's.
    cargo = tmp_path / "cargo"
    real = os.environ.get("CARGO", "cargo")
    cargo.write_text(f'#!/bin/sh\nexec "{real}" "$@" --no-default-features --features capi\n')
    cargo.chmod(0o755)
    built = build_wheel(unpacked, tmp_path, CARGO=str(cargo))
    assert built.returncode == 0, built.stderr
    assert before == files(unpacked)  # CARGO_TARGET_DIR says where to build.
    (wheel,) = tmp_path.glob("*.whl")
    assert_serves(wheel, tmp_path)

    zipfile.ZipFile(wheel).extractall(tmp_path / "wheel")
    if shutil.which("nm") is not None:
        library = str(tmp_path / "wheel" / "httpdown" / "libhttpdown.so.0")
        symbols = run("nm", library, cwd=tmp_path)
        assert "no symbols" in symbols.stdout + symbols.stderr


def test_a_source_distribution_of_the_source_distribution_is_the_same(tmp_path: Path) -> None:
    first = unpacked_sdist(tmp_path)
    code = "import hatchling.build, sys; hatchling.build.build_sdist(sys.argv[1])"
    again = tmp_path / "again"
    built = run(sys.executable, "-c", code, str(again), cwd=first)
    assert built.returncode == 0, built.stderr
    (sdist,) = again.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(again, filter="data")
    (second,) = (path for path in again.iterdir() if path.is_dir())
    names = [path.relative_to(first) for path in files(first)]
    assert names == [path.relative_to(second) for path in files(second)]
    for name in names:
        # The first has its licence from elsewhere, and so no License-File in its PKG-INFO.
        if (first / name).is_file() and name.name != "PKG-INFO":
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_without_cargo_it_is_said_what_is_missing(tmp_path: Path) -> None:
    built = build_wheel(PYTHON, tmp_path, PATH="/nowhere")
    assert built.returncode != 0
    assert "httpdown is built by cargo, which is not here" in built.stdout + built.stderr
    assert "Traceback" not in built.stdout + built.stderr


def test_what_lies_above_is_not_built_unless_it_is_httpdown(tmp_path: Path) -> None:
    alone = tmp_path / "a" / "python"
    shutil.copytree(PYTHON, alone)
    (tmp_path / "Cargo.toml").write_text(FOREIGN)
    built = build_wheel(alone, tmp_path)
    assert built.returncode != 0
    assert "httpdown's Rust sources are not here" in built.stdout + built.stderr
    assert "Traceback" not in built.stdout + built.stderr
