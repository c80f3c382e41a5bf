"""For uvicorn. GET anything: "Hello, World!". POST /echo: the body. GET /bytes/N: so many zeroes."""


async def app(scope, receive, send):
    path = scope["path"]
    if path == "/echo":
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
    elif path.startswith("/bytes/"):
        body = bytes(int(path.removeprefix("/bytes/")))
    else:
        body = b"Hello, World!"
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
