"""For gunicorn. GET anything: "Hello, World!". POST /echo: the body. GET /bytes/N: so many zeroes."""


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/echo":
        stream, parts = environ["wsgi.input"], []
        while part := stream.read(65536):
            parts.append(part)
        body = b"".join(parts)
    elif path.startswith("/bytes/"):
        body = bytes(int(path.removeprefix("/bytes/")))
    else:
        body = b"Hello, World!"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
