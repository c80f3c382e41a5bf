"""How long a stop takes with many idle connections, and how much memory they take: idle.py COUNT COMMAND...

The clients answer the server's FIN at once. COUNT is bounded by the hard limit of descriptors (ulimit -Hn).
"""

import re
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time

PATIENCE = 60  # seconds that nothing here takes


def connect(port: int, number: int) -> socket.socket:
    client = socket.socket()
    client.bind((f"127.0.0.{2 + number % 20}", 0))  # each address has some 28,000 ports
    client.connect(("127.0.0.1", port))
    client.sendall(b"GET / HTTP/1.1\r\nHost: idle\r\n\r\n")
    return client


def main(count: int, command: list[str]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(re.search(r":(\d+)/", server.stdout.readline())[1])

    def resident() -> int:
        with open(f"/proc/{server.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    before = resident()
    clients = [connect(port, number) for number in range(count)]
    idle = selectors.DefaultSelector()
    for client in clients:
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += client.recv(4096)
        client.setblocking(False)
        idle.register(client, selectors.EVENT_READ)
    if count:
        print(f"{(resident() - before) * 1024 / count:.0f} bytes per idle connection")

    begin = time.monotonic()
    server.send_signal(signal.SIGTERM)
    while idle.get_map() and time.monotonic() - begin < PATIENCE:
        for key, _ in idle.select(1):
            try:
                if key.fileobj.recv(4096):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            idle.unregister(key.fileobj)
            key.fileobj.close()
    status = server.wait(PATIENCE)
    print(f"stopped in {(time.monotonic() - begin) * 1000:.0f} ms, exit status {status}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
