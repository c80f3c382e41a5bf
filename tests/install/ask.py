"""Starts a hello program, asks it, stops it with SIGTERM; exits 0 if it has answered and ended well."""

import subprocess
import sys
import urllib.request

with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True) as server:
    try:
        url = server.stdout.readline().strip()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=30) as response:
            answer = response.status, response.headers["content-type"], response.read()
        server.terminate()
        code = server.wait(timeout=30)
    finally:
        server.kill()
print(url, answer, "exit status", code)
sys.exit(answer != (200, "text/plain; charset=utf-8", b"Hello, World!") or code)
