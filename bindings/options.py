#!/usr/bin/env python3
"""Makes the lines about options, in every language, from src/options.toml.

    bindings/options.py           writes them into the files below
    bindings/options.py --check   only says whether that would change something

Where they stand is marked, in comments, by "options" and a name, "begin" and "end". Needs Python 3.11 and rustfmt.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
SOURCE = "src/options.toml"
RUST, BUILDER = "src/options.rs", "src/server/builder.rs"
C_STRUCT, C_READ = "src/ffi/types.rs", "src/ffi/options.rs"
CPP = "bindings/cpp/httpdown.hpp"
PYTHON, CTYPES = "bindings/python/httpdown/_server.py", "bindings/python/httpdown/_ffi.py"
ABI = "tests/abi/abi.c"


@dataclass(frozen=True)
class Kind:
    """How a kind of option is written in each language. `{0}` is its name, or what the caller says."""

    c: str
    ctypes: str
    rust: str = ""
    rust_argument: str = ""
    rust_value: str = "{0}"
    cpp: str = ""
    cpp_value: str = "from.{0}"
    python: str = ""
    python_value: str = ""


KINDS = {
    "duration": Kind(
        c="u32",
        ctypes="c_uint32",
        rust="Duration",
        rust_argument="Duration",
        cpp="std::optional<milliseconds> {0}{{}}",
        cpp_value="to_ms(from.{0})",
        python="float | None = None",
        python_value='_arguments.milliseconds("{0}", {0})',
    ),
    "flag": Kind(
        c="c_int",
        ctypes="c_int",
        rust="bool",
        rust_argument="bool",
        cpp="bool {0} = false",
        python="bool = False",
        python_value="bool({0})",
    ),
    "count": Kind(
        c="u32",
        ctypes="c_uint32",
        rust="Option<NonZeroUsize>",
        rust_argument="NonZeroUsize",
        rust_value="Some({0})",
        cpp="std::uint32_t {0} = 0",
        python="int | None = None",
        python_value='_arguments.count("{0}", {0})',
    ),
    "size": Kind(
        c="u64",
        ctypes="c_uint64",
        rust="Option<u64>",
        rust_argument="u64",
        rust_value="Some({0})",
        cpp="std::uint64_t {0} = 0",
        python="int | None = None",
        python_value='_arguments.size("{0}", {0})',
    ),
    "text": Kind(
        c="*const c_char",
        ctypes="c_char_p",
        rust="Option<String>",
        rust_argument="impl Into<String>",
        rust_value="Some({0}.into())",
        cpp="std::string {0}{{}}",
        python="str | None = None",
        python_value='_arguments.optional_text("{0}", {0})',
    ),
    "int": Kind(c="c_int", ctypes="c_int"),
    "bits": Kind(c="u32", ctypes="c_uint32"),
    "group": Kind(c="*const httpdown_{0}", ctypes="c_void_p"),
    "callback": Kind(c="httpdown_{0}_fn", ctypes="c_void_p"),
}

# What the fields of httpdown_options before these take, each as large as a pointer.
C_BEFORE = 15

NAMES = {
    "rust": {
        "ready": "[`Server::is_ready`]",
        "run": "[`Server::run`]",
        "report": "the [`Report`](crate::Report)",
        "now": "0",
        "forever": "[`Duration::MAX`]",
        "true": "True",
        "addr": "[`Builder::listen`]",
        "fds": "listeners that were made elsewhere",
        "tls": "[`tls`](Builder::tls)",
        "too_slow": "[`Error::TooSlow`](crate::Error::TooSlow)",
        "too_large": "[`Error::TooLarge`](crate::Error::TooLarge)",
        "client": "[`Client`](crate::Client)",
    },
    "c": {
        "ready": "httpdown_ready",
        "run": "httpdown_run",
        "report": "the report",
        "now": "HTTPDOWN_NOW",
        "forever": "HTTPDOWN_FOREVER",
        "true": "Not 0",
        "addr": "`addr`",
        "fds": "`fds`",
        "tls": "`tls`",
        "too_slow": "TOO_SLOW",
        "too_large": "TOO_LARGE",
        "client": "httpdown_request_client_addr",
    },
    "cpp": {
        "ready": "`ready`",
        "run": "`run`",
        "report": "the report",
        "now": "0",
        "forever": "`forever`",
        "true": "True",
        "addr": "`addr`",
        "fds": "`fds`",
        "tls": "`tls`",
        "too_slow": "TOO_SLOW",
        "too_large": "TOO_LARGE",
        "client": "`request::client_addr`",
    },
    "python": {
        "ready": "`ready`",
        "run": "`run`",
        "report": "the Report",
        "now": "0",
        "forever": "`math.inf`",
        "true": "True",
        "addr": "`bind`",
        "fds": "`fds`",
        "tls": "`tls`",
        "too_slow": "TooSlow",
        "too_large": "TooLarge",
        "client": "`Request.client_addr`",
    },
}


@dataclass(frozen=True)
class Option:
    name: str
    kind: str
    text: str
    default: int | str | None = None
    says: str | None = None
    why: str | None = None
    clock: str | None = None
    argument: str = "value"
    type: str | None = None
    by_hand: bool = False
    only: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: {self.kind} is no kind")
        if self.kind == "duration" and (self.default is None or self.clock not in ("server", "real")):
            raise ValueError(f"{self.name}: a duration has a default and a clock")

    @property
    def of(self) -> Kind:
        return KINDS[self.kind]

    @property
    def c_type(self) -> str:
        return self.of.c.format(self.type or self.name.removeprefix("on_"))

    @property
    def c_name(self) -> str:
        return self.name + "_ms" if self.kind == "duration" else self.name

    @property
    def c_size(self) -> int:
        return 8 if self.kind in ("size", "text", "group", "callback") else 4

    @property
    def is_plain(self) -> bool:
        """Whether it is more than a field of C."""
        return self.of.rust != ""

    def default_in(self, language: str) -> str | None:
        """The default as words."""
        if self.kind == "flag":
            return {"rust": "false", "c": "0", "cpp": "false", "python": "False"}[language]
        if self.says is not None or self.kind != "duration":
            return self.says
        if self.default == "forever":
            return "no limit"
        if self.default == 0:
            return "0" if language == "python" else "no time"
        assert isinstance(self.default, int)
        if language == "c":
            return f"{self.default:,}"
        if language == "python":
            return f"{self.default / 1000:g}"
        number, unit = (self.default, "millisecond")
        for more, larger in ((1000, "second"), (60, "minute")):
            if number % more == 0:
                number, unit = number // more, larger
            else:
                break
        return f"{number} {unit}{'' if number == 1 else 's'}"


class Language:
    """The names that the texts use, in one language."""

    def __init__(self, language: str, options: list[Option]) -> None:
        self.language = language
        self.names = dict(NAMES[language])
        for option in options:
            if language == "rust":
                self.names[option.name] = f"[`{option.name}`](Builder::{option.name})"
            else:
                name = option.c_name if language == "c" else option.name
                self.names[option.name] = f"`{name}`"

    def doc(self, option: Option) -> str:
        text = re.sub(r"\{(\w+)\}", lambda found: self.names[found[1]], option.text)
        if self.language == "rust":
            text = re.sub(r"(?<!`)(Connection: close|\"Keep-Alive: timeout=N\"|[A-Z]+_[A-Z]+)", self._as_code, text)
        default = option.default_in(self.language)
        if default is not None:
            text += f" Default: {default}."
        if option.clock is not None and self.language in ("rust", "c"):
            server = "[clock](Builder::clock)" if self.language == "rust" else "`clock`"
            text += f" On the server's {server}." if option.clock == "server" else " In real time."
        return text

    @staticmethod
    def _as_code(found: re.Match[str]) -> str:
        return f"`{found[1].strip(chr(34))}`"


def comment(text: str, indent: int, mark: str, width: int) -> str:
    before = " " * indent + mark + " "
    lines = textwrap.wrap(text, width - len(before), break_long_words=False, break_on_hyphens=False)
    return "".join(before + line + "\n" for line in lines)


def reserved(options: list[Option]) -> bool:
    """Whether C's struct needs a field to fill it up. A gap that no field fills is never written by some programs, and a
    later library would read it."""
    at = 8 * C_BEFORE
    for option in options:
        if at % option.c_size != 0:
            raise SystemExit(f"{SOURCE}: there would be a gap before {option.name}; a number or a flag has room there")
        at += option.c_size
    return at % 8 != 0


def rust_fields(options: list[Option]) -> str:
    return "".join(f"    pub(crate) {option.name}: {option.of.rust},\n" for option in options)


def rust_defaults(options: list[Option]) -> str:
    def value(option: Option) -> str:
        match option.default:
            case "forever":
                return "Duration::MAX"
            case 0:
                return "Duration::ZERO"
            case int(ms) if ms % 1000 == 0:
                return f"Duration::from_secs({ms // 1000})"
            case int(ms):
                return f"Duration::from_millis({ms})"
        return "false" if option.kind == "flag" else "None"

    lines = ""
    for option in options:
        if option.why is not None:
            lines += comment(option.why, 12, "//", 120)
        lines += f"            {option.name}: {value(option)},\n"
    return lines


def rust_setters(options: list[Option]) -> str:
    rust = Language("rust", options)
    lines = ""
    for option in options:
        lines += comment(rust.doc(option), 4, "///", 120)
        lines += f"    pub fn {option.name}(mut self, {option.argument}: {option.of.rust_argument}) -> Self {{\n"
        lines += f"        self.options.{option.name} = {option.of.rust_value.format(option.argument)};\n"
        lines += "        self\n    }\n\n"
    return lines


def documented(language: str, options: list[Option], line: Callable[[Option], str]) -> str:
    """A line for each option, with its documentation before it."""
    names = Language(language, options)
    return "".join(comment(names.doc(option), 4, "///", 120) + f"    {line(option)}\n" for option in options)


def c_field(option: Option) -> str:
    return f"pub {option.c_name}: {option.c_type},"


def c_fields(options: list[Option]) -> str:
    lines = documented("c", options, c_field)
    if reserved(options):
        lines += "    /// For an option to come: 0.\n    pub reserved: u32,\n"
    return lines


def c_size(options: list[Option]) -> str:
    pointers = sum(option.kind in ("text", "group", "callback") for option in options) + C_BEFORE
    longs = sum(option.kind == "size" for option in options)
    ints = sum(option.c_size == 4 for option in options) + reserved(options)
    return (
        f"    let pointers = size_of::<usize>() * {pointers};\n"
        f"    let longs = size_of::<[u64; {longs}]>();\n"
        f"    let ints = size_of::<u32>() * {ints};\n"
    )


def c_read(options: list[Option]) -> str:
    lines = ""
    if reserved(options):
        lines += "    if raw.reserved != 0 {\n"
        lines += '        return Err(Error::Unsupported("options.reserved is not 0".into()));\n    }\n'
    for option in options:
        field, setter = f"raw.{option.c_name}", f"builder = builder.{option.name}"
        match option.kind:
            case "duration":
                lines += f"    {setter}(duration_or({field}, defaults.{option.name}));\n"
            case "flag":
                lines += f"    {setter}({field} != 0);\n"
            case "count":
                limit = "threads" if option.name.endswith("_threads") else "count"
                lines += f'    if let Some(count) = {limit}({field}, "options.{option.c_name}")? {{\n'
                lines += f"        {setter}(count);\n    }}\n"
            case "size":
                lines += f"    if {field} != 0 {{\n        {setter}({field});\n    }}\n"
            case "text":
                lines += "    // SAFETY: the header's preface: NULL or NUL-terminated.\n"
                lines += f'    if let Some(text) = unsafe {{ text({field}, "options.{option.c_name}")? }} {{\n'
                lines += f"        {setter}(text);\n    }}\n"
            case "group" if not option.by_hand:
                lines += f"    // SAFETY: the header's preface: NULL or a httpdown_{option.type or option.name}.\n"
                lines += f"    builder = unsafe {{ {option.name}::set(builder, {field})? }};\n"
    return lines


def cpp_fields(options: list[Option]) -> str:
    return documented("cpp", options, lambda option: option.of.cpp.format(option.name) + ";")


def cpp_give(options: list[Option]) -> str:
    lines = ""
    for option in options:
        if option.kind == "text":
            lines += f"        {option.name}_ = std::move(from.{option.name});\n"
            lines += f'        raw_.{option.c_name} = texts_.give({option.name}_, "{option.name}");\n'
        else:
            lines += f"        raw_.{option.c_name} = {option.of.cpp_value.format(option.name)};\n"
    return lines


def cpp_kept(options: list[Option]) -> str:
    return "".join(f"    std::string {option.name}_{{}};\n" for option in options if option.kind == "text")


def python_parameters(options: list[Option]) -> str:
    return "".join(f"        {option.name}: {option.of.python},\n" for option in options)


def python_docs(options: list[Option]) -> str:
    python = Language("python", options)
    return "\n" + "".join(
        textwrap.fill(
            f"`{option.name}`: {python.doc(option)}",
            100,
            initial_indent="    - ",
            subsequent_indent="      ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n"
        for option in options
    ) + "\n"


def python_give(options: list[Option]) -> str:
    def value(option: Option) -> str:
        check = option.of.python_value.format(option.name)
        return check.replace(".count(", ".threads(") if option.name.endswith("_threads") else check

    def line(option: Option) -> str:
        line = f"            {option.c_name}={value(option)},\n"
        if len(line) <= 101:
            return line
        call, arguments = value(option).removesuffix(")").split("(", 1)
        indent = " " * 12
        return f"{indent}{option.c_name}={call}(\n{indent}    {arguments}\n{indent}),\n"

    return "".join(map(line, options))


def ctypes_fields(options: list[Option]) -> str:
    lines = "".join(f'        ("{option.c_name}", {option.of.ctypes}),\n' for option in options)
    return lines + ('        ("reserved", c_uint32),\n' if reserved(options) else "")


def abi_offsets(options: list[Option]) -> str:
    at, lines = 8 * C_BEFORE, ""
    for option in options:
        lines += f"AT(httpdown_options, {option.c_name}, {at});\n"
        at += option.c_size
    return lines + f"SIZE(httpdown_options, {at + 4 * reserved(options)});\n"


def between(text: str, begin: str, end: str, lines: str, path: str) -> str:
    """The text, with these lines between the two lines that begin and end so."""
    pattern = rf"(?ms)^([^\n]*{re.escape(begin)}[^\n]*\n).*?^([^\n]*{re.escape(end)})"
    new, count = re.subn(pattern, lambda found: found[1] + lines + found[2], text)
    if count != 1:
        raise SystemExit(f"{path}: {count} times {begin!r} and {end!r}")
    return new


def generate(root: Path) -> None:
    with (root / SOURCE).open("rb") as source:
        options = [Option(**option) for option in tomllib.load(source)["option"]]
    plain = [option for option in options if option.is_plain]
    in_c = [option for option in options if option.only in (None, "c")]
    shared = [option for option in plain if option.only is None]
    marked = {
        RUST: {"fields": rust_fields(plain), "defaults": rust_defaults(plain)},
        BUILDER: {"setters": rust_setters(plain)},
        C_STRUCT: {"fields": c_fields(in_c), "size": c_size(in_c)},
        C_READ: {"read": c_read(in_c)},
        CPP: {"fields": cpp_fields(shared), "give": cpp_give(shared), "kept": cpp_kept(shared)},
        PYTHON: {"parameters": python_parameters(shared), "give": python_give(shared)},
        CTYPES: {"fields": ctypes_fields(in_c)},
        ABI: {"offsets": abi_offsets(in_c)},
    }
    for path, parts in marked.items():
        text = (root / path).read_text()
        for name, lines in parts.items():
            text = between(text, f"options: begin {name}", f"options: end {name}", lines, path)
        if path == ABI:
            check_order((root / path).read_text(), text)
        if path == PYTHON:
            begin = "Durations are in seconds; 0 is no time at all, `math.inf` is no limit:"
            text = between(text, begin, "The observers `stats`,", python_docs(shared), path)
        (root / path).write_text(text)
    rust = [str(root / path) for path in marked if path.endswith(".rs")]
    subprocess.run(["rustfmt", "--edition", "2024", *rust], check=True)


def check_order(old: str, new: str) -> None:
    """Refuses to move a field of C's: programs that are compiled know where it is."""
    old_fields, new_fields = (re.findall(r"^AT\(httpdown_options,.*$", text, re.M) for text in (old, new))
    if old_fields != new_fields[: len(old_fields)]:
        raise SystemExit(f"{SOURCE}: a field of httpdown_options would move; new ones come last")


def files() -> list[str]:
    return [SOURCE, RUST, BUILDER, C_STRUCT, C_READ, CPP, PYTHON, CTYPES, ABI]


def stale() -> list[str]:
    """The files whose lines are not those of the description."""
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        for path in files():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_text((ROOT / path).read_text())
        generate(copy)
        return [path for path in files() if (copy / path).read_text() != (ROOT / path).read_text()]


def main() -> None:
    match sys.argv[1:]:
        case []:
            generate(ROOT)
        case ["--check"]:
            if old := stale():
                raise SystemExit(f"not made from {SOURCE} (make options): {', '.join(old)}")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
