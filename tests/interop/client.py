"""A client for ../interop.py: Python's ssl, below http.client. The others are called alike.

    client.py CA VERSION talk URL UPLOAD      (a GET, a POST, and a GET, on one connection)
    client.py CA VERSION get URL...           (each on a connection of its own)

Writes the bodies of the answers, as they come.
"""

import http.client
import socket
import ssl
import sys
import urllib.parse

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def connect(context, url, session=None):
    connection = http.client.HTTPSConnection(url.hostname, url.port, context=context)
    plain = socket.create_connection((url.hostname, url.port), timeout=60)
    connection.sock = context.wrap_socket(plain, server_hostname=url.hostname, session=session)
    return connection


def ask(connection, method, target, body=None):
    connection.request(method, target, body)
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"{method} {target}: {response.status}")
    while piece := response.read1(65536):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    response.close()  # Without this, http.client does not always know that it has read all.


def main(ca, version, what, *rest):
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.set_alpn_protocols(["http/1.1"])
    if what == "talk":
        url, upload = rest
        connection = connect(context, urllib.parse.urlsplit(url))
        ask(connection, "GET", "/")
        with open(upload, "rb") as file:
            ask(connection, "POST", "/echo", file.read())
        ask(connection, "GET", "/bytes/1000000")
        return
    session = None
    for url in map(urllib.parse.urlsplit, rest):
        connection = connect(context, url, session)
        ask(connection, "GET", f"{url.path}?{url.query}")
        session = connection.sock.session
        connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
