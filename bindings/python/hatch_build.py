"""Builds the Rust library and puts it into the wheel, beside the package."""

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        if version != "editable":  # That finds the library in the checkout, built by `make lib`.
            build_data["force_include"][str(self.library())] = "httpdown/libhttpdown.so.0"

    def library(self) -> Path:
        """The one that HTTPDOWN_LIBRARY names, or else one built for this."""
        named = os.environ.get("HTTPDOWN_LIBRARY")
        if named:
            return Path(named).resolve(strict=True)
        checkout = Path(self.root).parents[1]
        target = checkout / "target"
        command = ["cargo", "rustc", "--release", "--locked", "--lib", "--crate-type", "cdylib", "--target-dir", str(target)]
        subprocess.run(command, cwd=checkout, check=True)
        return target / "release" / "libhttpdown.so"
