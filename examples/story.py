"""Shows the graceful stop, as a person would try it: story.py PROGRAM."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import time

BEGIN = time.monotonic()


def say(who: str, what: str) -> None:
    print(f"{time.monotonic() - BEGIN:5.2f}s  {who:8}{what.rstrip()}", flush=True)


def main(program: str) -> int:
    server = subprocess.Popen([program, "-addr", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    say("server", line)
    port = int(re.search(r":(\d+)/", line)[1])

    say("client", "GET /?duration=3s")
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request("GET", "/?duration=3s")
    response = client.getresponse()
    say("client", f"got: {response.readline().decode()}")

    time.sleep(1)
    say("you", f"kill -TERM {server.pid}")
    server.send_signal(signal.SIGTERM)
    refused = False
    while not refused:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            refused = True
        except ConnectionResetError:
            continue  # half-way through its handshake when the listener closed
    say("another", "a new connection is refused")

    whole = response.read().decode()
    client.close()
    say("client", f"got: {whole}")
    report = server.stdout.readline()  # what follows is for programs
    status = server.wait(timeout=30)
    say("server", report)
    say("server", f"exit status {status}")
    if status == 0 and whole.startswith("slept"):
        print("Stopped, and nothing was lost.")
        return 0
    print("Something was lost.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
