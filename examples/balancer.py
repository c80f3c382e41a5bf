"""A rolling restart behind nginx, under load: how many requests fail, with its default `max_fails` and with 0.

    make lib && PYTHONPATH=bindings/python python3 examples/balancer.py    # needs nginx; half a minute

Two replicas are in rotation, and are replaced in turns, one after the other. A replica that stops refuses
connections; nginx tries the other then. But by default (`max_fails=1 fail_timeout=10s`) it also takes the one that
has refused for dead, for 10 seconds, however soon it is back: if the other one is restarted meanwhile, there is none
left, and all requests fail with 502. With `max_fails=0` it tries every replica each time.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

RESTARTS = 8
CLIENTS = 8
REPLICA = """
import sys, httpdown
def hello(request):
    request.wait_cancelled(0.002)
    request.reply(200, "hello")
httpdown.Server(hello, sys.argv[1], ready_path="/healthz", stop_timeout=8, kill_timeout=1).run(
    lambda server: print("ready", flush=True))
"""
NGINX = """
daemon off; pid {dir}/pid; error_log {dir}/errors; worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3;
    uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;
    upstream replicas {{
        server 127.0.0.1:{one} {parameter};
        server 127.0.0.1:{two} {parameter};
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{front};
        location / {{
            proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
        }}
    }}
}}
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def replica(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", REPLICA, f"127.0.0.1:{port}"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    return started


class Load:
    """Clients that keep their connection to nginx and ask again and again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.over = threading.Event()
        self.counts = [[0, 0] for _ in range(CLIENTS)]  # requests, failures
        self.threads = [threading.Thread(target=self.run, args=(count,)) for count in self.counts]
        for thread in self.threads:
            thread.start()

    def run(self, count: list[int]) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.over.is_set():
            count[0] += 1
            try:
                client.request("GET", "/")
                response = client.getresponse()
                count[1] += response.read() != b"hello" or response.status != 200
            except (OSError, http.client.HTTPException):
                count[1] += 1
                client.close()
        client.close()

    def end(self) -> tuple[int, int]:
        self.over.set()
        for thread in self.threads:
            thread.join()
        return sum(count[0] for count in self.counts), sum(count[1] for count in self.counts)


def measure(parameter: str) -> tuple[int, int]:
    front, *ports = free_ports(3)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "nginx.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.write(NGINX.format(dir=directory, front=front, one=ports[0], two=ports[1], parameter=parameter))
        replicas = [replica(port) for port in ports]
        nginx = subprocess.Popen(["nginx", "-c", path, "-e", os.path.join(directory, "errors")])
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", front)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            load = Load(front)
            try:
                for number in range(RESTARTS):
                    time.sleep(0.5)
                    which = number % 2
                    replicas[which].send_signal(signal.SIGTERM)
                    replicas[which].wait()
                    replicas[which] = replica(ports[which])
                time.sleep(0.5)
            finally:
                result = load.end()
            return result
        finally:
            for each in (nginx, *replicas):
                each.terminate()
                each.wait()


if __name__ == "__main__":
    for setting in ("", "max_fails=0"):
        requests, failed = measure(setting)
        print(f"{setting or 'default':12} {RESTARTS} restarts, {requests} requests, {failed} failed", flush=True)
