"""A server for the clients of ../interop.py, which says what a handshake has agreed on.

    server.py CERTIFICATE KEY [TICKET_KEY]      (the ticket key in hexadecimal digits)

GET /tls answers with that, as JSON. GET /page is a page for browsers: its script asks for /tls,
sends something to /echo, and says in the document what has come back. GET /slow tells on the
output that it has begun, and ends its answer when a stop has begun.
"""

import json
import os
import sys
import threading

import httpdown

PAGE = """<!DOCTYPE html><title>interop</title><link rel=icon href="data:,"><p id=verdict>none</p>
<script>
function ask(method, path, body) {
    const request = new XMLHttpRequest();
    request.open(method, path, false);
    request.send(body);
    return request.responseText;
}
const sent = "x\u20ac".repeat(100000);
const verdict = ask("POST", "/echo", sent) === sent ? "the same" : "another body";
document.getElementById("verdict").textContent = `${verdict}; ${ask("GET", "/tls")}`;
</script>
"""

stopping = threading.Event()


def on_request(request: httpdown.Request) -> None:
    if request.path == "/tls":
        tls = request.tls
        kind = "resumed" if tls.resumed else "full"
        request.reply(200, json.dumps([tls.version, kind, tls.alpn]) + "\n")
    elif request.path == "/page":
        request.reply(200, PAGE, {"content-type": "text/html; charset=utf-8"})
    elif request.path == "/echo":
        request.reply(200, request.body(1 << 24), {"content-type": "text/plain; charset=utf-8"})
    elif request.path == "/slow":
        with request.start(200, {"content-type": "text/plain; charset=utf-8"}) as out:
            out.write("begun, ")
            print("slow", flush=True)
            stopping.wait()
            out.write("and ended")
    else:
        request.reply(404)


def on_phase(_: httpdown.Server, phase: httpdown.Phase) -> None:
    if phase != httpdown.Phase.SERVING:
        stopping.set()


def tell(server: httpdown.Server) -> None:
    print(f"serving on https://{server.address}/ with pid {os.getpid()}", flush=True)


def main(cert: str, key: str, ticket_key: str = "") -> None:
    keys = [bytes.fromhex(ticket_key)] if ticket_key else []
    tls = httpdown.Tls(cert_file=cert, key_file=key, ticket_keys=keys)
    report = httpdown.run(on_request, "127.0.0.1:0", started=tell, tls=tls, on_phase=on_phase)
    names = ("connections", "requests", "served", "conns_tls_failed")
    print(json.dumps({name: getattr(report, name) for name in names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
