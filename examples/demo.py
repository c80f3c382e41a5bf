"""A slow server that stops without losing a request: the same as demo.c, in Python.

    PYTHONPATH=bindings/python python3 examples/demo.py &
    curl 'http://127.0.0.1:8080/?duration=3s' & sleep 1; kill %1; wait
"""

import argparse
import functools
import os
import re
import sys

import httpdown

UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
PART = r"(\d+\.?\d*|\.\d+)(ns|us|ms|s|m|h)"


def duration(text: str) -> float:
    """Seconds, of a duration as Go writes it: 300ms, 1.5s, 1m30s."""
    seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(PART, text))
    if (text != "0" and not re.fullmatch(f"({PART})+", text, re.ASCII)) or seconds > 2**63 / 1e9:
        raise ValueError("bad duration; write 300ms, 1.5s or 1m")
    return seconds


def on_request(request: httpdown.Request) -> None:
    text = request.query.get("duration", "0")
    try:
        seconds = duration(text)
    except ValueError as error:
        return request.reply(400, f"{error}\n")
    with request.start(200, {"content-type": "text/plain; charset=utf-8"}) as out:
        out.write(f"going to sleep {text} with pid {os.getpid()}\n")
        if not request.wait_cancelled(seconds):
            out.write(f"slept {text} with pid {os.getpid()}\n")


def tell(scheme: str, server: httpdown.Server) -> None:
    by_unix = server.address.port is None
    url = server.address if by_unix else f"{scheme}://{server.address}/"
    print(f"serving on {url} with pid {os.getpid()}", flush=True)


def tell_end(r: httpdown.Report) -> None:
    print(f"stopped: {r.requests} requests, {r.served} served, {r.killed} killed")


def main() -> None:
    flags = argparse.ArgumentParser(allow_abbrev=False)
    flags.add_argument("-addr", "--addr", default="127.0.0.1:8080")
    flags.add_argument("-stop-timeout", "--stop-timeout", type=duration, default=10)
    flags.add_argument("-kill-timeout", "--kill-timeout", type=duration, default=1)
    flags.add_argument("-tls-cert", "--tls-cert")
    flags.add_argument("-tls-key", "--tls-key")
    options = vars(flags.parse_args())
    cert, key = options.pop("tls_cert"), options.pop("tls_key")
    if cert or key:
        options.update(tls=httpdown.Tls(cert_file=cert, key_file=key), reload_on_hup=True)
    started = functools.partial(tell, "https" if cert else "http")
    try:
        report = httpdown.run(on_request, options.pop("addr"), started=started, **options)
    except httpdown.HttpdownError as error:
        if error.report is not None:
            tell_end(error.report)
        sys.exit(f"{sys.argv[0]}: {error}")
    tell_end(report)


if __name__ == "__main__":
    main()
