"""A server for asyncio that sends back what comes, and streams that end when it stops.

PYTHONPATH=bindings/python python3 examples/asyncio_echo.py 127.0.0.1:8080

    curl -T - http://127.0.0.1:8080/echo     sends back what you type
    curl -N http://127.0.0.1:8080/ticks      a tick each second, until the server drains

SIGTERM or Ctrl-C stops it: uploads are echoed to their end, and streams say goodbye.
"""

import asyncio
import contextlib
import signal
import sys

import httpdown.aio


async def echo(request):
    async with request.start(200) as reply:
        async for piece in request:
            await reply.write(piece)


async def ticks(request):
    async with request.start(200, {"content-type": "text/plain"}) as reply:
        is_over = False
        while not is_over:
            await reply.write("tick\n")
            with contextlib.suppress(asyncio.TimeoutError):
                # Also returns when the client has left; then the next write fails.
                await asyncio.wait_for(request.wait_draining(), timeout=1)
                is_over = True
        await reply.write("goodbye\n")


async def handle(request):
    handler = {"/echo": echo, "/ticks": ticks}.get(request.path)
    if handler is None:
        request.reply(404, "try /echo or /ticks\n")
    else:
        await handler(request)


async def main(bind):
    async with httpdown.aio.Server(bind) as server:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop_begin)
        print(f"serving on {server.address}", flush=True)
        await server.serve(handle)
    report = server.report()
    print(f"{report.served} served, {report.killed} killed", flush=True)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8080"))
