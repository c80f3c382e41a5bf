"""Builds the Rust library, and puts it into the wheel; puts the Rust sources into an sdist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What cargo needs to build the library; the manifest, which is changed, comes on top. It names
# the example, so that has to be there.
SOURCES = (
    "Cargo.lock",
    "build.rs",
    "cbindgen.toml",
    "examples/lossmeter",
    "include",
    "src",
)
# Whoever unpacks an sdist in a folder that is within somebody's workspace does not join it.
NO_WORKSPACE = "\n[workspace]\n"


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "sdist":
            build_data["force_include"].update(self.sources())
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        if version != "editable":  # That finds the library in the checkout, built by `make lib`.
            build_data["force_include"][str(self.library())] = "httpdown/libhttpdown.so.0"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        for path in self.temporary:
            path.unlink()
        self.temporary.clear()

    temporary: list[Path] = []

    def sources(self) -> dict[str, str]:
        """What of the Rust sources goes where in an sdist."""
        rust = self.rust()
        manifest = (rust / "Cargo.toml").read_text("utf-8")
        if NO_WORKSPACE not in manifest:
            manifest += NO_WORKSPACE
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", delete=False) as changed:
            changed.write(manifest)
        self.temporary.append(Path(changed.name))
        os.chmod(changed.name, 0o644)
        found = {str(rust / name): f"rust/{name}" for name in SOURCES}
        found[changed.name] = "rust/Cargo.toml"
        # In an sdist it lies above.
        license = next(path for path in (rust / "LICENSE", rust.parent / "LICENSE") if path.is_file())
        return {**found, str(license): "LICENSE"}

    def library(self) -> Path:
        """The one that HTTPDOWN_LIBRARY names, or else one built for this."""
        named = os.environ.get("HTTPDOWN_LIBRARY")
        if named:
            return Path(named).resolve(strict=True)
        cargo = os.environ.get("CARGO", "cargo")
        command = [cargo, "rustc", "--profile", "wheel", "--locked", "--lib"]
        command += ["--crate-type", "cdylib", "--message-format", "json-render-diagnostics"]
        try:
            built = subprocess.run(command, cwd=self.rust(), stdout=subprocess.PIPE, text=True)
        except FileNotFoundError:
            give_up(
                "httpdown is built by cargo, which is not here: install Rust (https://rustup.rs), "
                "or set HTTPDOWN_LIBRARY to the path of a libhttpdown.so.0 that is built already"
            )
        if built.returncode != 0:
            give_up("httpdown's library cannot be built: cargo has said why")
        # Where that is, is cargo's business: CARGO_TARGET_DIR, its configuration, the target.
        for message in map(json.loads, built.stdout.splitlines()):
            if message["reason"] == "compiler-artifact" and "cdylib" in message["target"]["kind"]:
                for name in message["filenames"]:
                    if name.endswith(".so"):
                        return Path(name)
        give_up("httpdown's library cannot be built: cargo has made no shared library")

    def rust(self) -> Path:
        """Where the Rust sources are: in an sdist here, in the checkout two folders up."""
        here = Path(self.root)
        for folder in (here / "rust", *here.parents[1:2]):
            if is_httpdown(folder):
                return folder
        give_up(
            f"httpdown's Rust sources are not here: {here} is neither in httpdown's repository nor "
            "a source distribution; set HTTPDOWN_LIBRARY to the path of a built libhttpdown.so.0"
        )


def is_httpdown(folder: Path) -> bool:
    manifest = folder / "Cargo.toml"
    if not (manifest.is_file() and (folder / "include" / "httpdown.h").is_file()):
        return False
    return re.search(r'^name = "httpdown"$', manifest.read_text("utf-8"), re.MULTILINE) is not None


def give_up(why: str) -> NoReturn:
    sys.exit(f"error: {why}")
