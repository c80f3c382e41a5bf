#!/usr/bin/env python3
"""An option is described in one place. In a copy of the sources, this adds one of each kind there and nowhere else, has
the rest made from it, and then sets them from Rust, C, C++ and Python. Needs Python 3.11."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
CARGO = os.environ.get("CARGO", "cargo")
TARGET = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))

ADDED = """
[[option]]
name = "sample_timeout"
kind = "duration"
default = 1500
clock = "real"
why = "It is a sample."
text = "How long a sample takes, which is a part of {stop_timeout}. {forever}: it does not end."

[[option]]
name = "sample_flag"
kind = "flag"
text = "{true}: {ready} is sampled."

[[option]]
name = "sample_name"
kind = "text"
says = "no name"
text = "What the sample is called."

[[option]]
name = "sample_count"
kind = "count"
says = "none"
text = "The number of samples."
"""

# Where httpdown_options would otherwise end with a field that only fills it up, this takes its place.
FILLER = """
[[option]]
name = "sample_filler"
kind = "flag"
text = "{true}: it is filled."
"""
IS_FILLED = "options.reserved is not 0" in (ROOT / "src/ffi/options.rs").read_text()

RUST = """
use httpdown::Server;
use std::time::Duration;

fn main() {
    let _ = Server::builder()
        .sample_timeout(Duration::MAX)
        .sample_flag(true)
        .sample_count(std::num::NonZeroUsize::MIN)
        .sample_name("rust");
}
"""

C = """
#include <httpdown.h>

const httpdown_options options = {
    .struct_size = sizeof options,
    .sample_timeout_ms = HTTPDOWN_FOREVER,
    .sample_flag = 1,
    .sample_name = "c",
    .sample_count = 2,
    .reserved = 0,
};
"""

CPP = """
#include <httpdown.hpp>

void set(httpdown::options &options) {
    options.sample_timeout = httpdown::forever;
    options.sample_flag = true;
    options.sample_count = 2;
    options.sample_name = "cpp";
}
"""

PYTHON = """
import inspect
from httpdown import Server, _ffi

names = {"sample_timeout", "sample_flag", "sample_count", "sample_name"}
assert names <= inspect.signature(Server).parameters.keys()
assert all(f"`{name}`" in Server.__doc__ for name in names)
fields = [name for name, _ in _ffi.Options._fields_]
assert fields[-5:] == ["sample_timeout_ms", "sample_flag", "sample_name", "sample_count", "reserved"], fields
assert "Default: 1.5." in Server.__doc__
"""


def run(*command: str, cwd: Path, **env: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


class Options(unittest.TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.copy = Path(folder.name)
        for name in ("src", "include", "bindings", "tests", "examples"):
            shutil.copytree(ROOT / name, self.copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Cargo.toml", "Cargo.lock", "build.rs", "cbindgen.toml", "README.md"):
            shutil.copy(ROOT / name, self.copy / name)

    def generate(self, *args: str) -> None:
        run(sys.executable, "bindings/options.py", *args, cwd=self.copy)

    def add(self, text: str) -> None:
        with (self.copy / "src/options.toml").open("a") as source:
            source.write((FILLER if IS_FILLED else "") + text)

    def test_the_files_are_made_from_the_description(self) -> None:
        self.generate("--check")

    def test_one_that_is_added_in_one_place_is_in_every_language(self) -> None:
        self.add(ADDED)
        with self.assertRaisesRegex(AssertionError, "not made from src/options.toml"):
            self.generate("--check")
        self.generate()
        self.generate("--check")
        (self.copy / "examples/sample.rs").write_text(RUST)
        # The header is made anew, too. The samples that nobody reads are dead code, which is no error here.
        run(CARGO, "check", "--quiet", "--example", "sample", cwd=self.copy, HTTPDOWN_UPDATE_HEADER="1",
            CARGO_TARGET_DIR=TARGET)
        (self.copy / "sample.c").write_text(C)
        (self.copy / "sample.cpp").write_text(CPP)
        cc, cxx = os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")
        warnings = ["-Wall", "-Wextra", "-Werror", "-Iinclude", "-Ibindings/cpp", "-fsyntax-only"]
        for source in ("sample.c", "tests/abi/abi.c"):
            run(cc, "-std=c11", *warnings, source, cwd=self.copy)
        run(cxx, "-std=c++17", *warnings, "sample.cpp", cwd=self.copy)
        # The package looks for the library when it is imported.
        library = str(ROOT / "build/libhttpdown.so")
        run(sys.executable, "-c", PYTHON, cwd=self.copy, PYTHONPATH="bindings/python", HTTPDOWN_LIBRARY=library)

    def test_a_field_of_c_cannot_move(self) -> None:
        source = self.copy / "src/options.toml"
        before, first, second, rest = source.read_text().split("[[option]]", 3)
        source.write_text("[[option]]".join((before, second, first, rest)))
        with self.assertRaisesRegex(AssertionError, "would move"):
            self.generate()

    def test_a_gap_that_nobody_would_write_is_refused(self) -> None:
        self.add(ADDED[ADDED.index("[[option]]\nname = \"sample_flag\"") :])
        with self.assertRaisesRegex(AssertionError, "a gap before sample_name"):
            self.generate()

    def test_what_makes_no_sense_is_refused(self) -> None:
        for text in (
            '[[option]]\nname = "a"\nkind = "colour"\ntext = ""\n',
            '[[option]]\nname = "a"\nkind = "duration"\ntext = ""\n',
            '[[option]]\nname = "a"\nkind = "flag"\ntext = "{nobody}"\n',
            '[[option]]\nname = "a"\nkind = "flag"\ntext = ""\nsize = 3\n',
        ):
            before = (self.copy / "src/options.toml").read_text()
            self.add(text)
            with self.assertRaises(AssertionError):
                self.generate()
            (self.copy / "src/options.toml").write_text(before)


if __name__ == "__main__":
    unittest.main()
