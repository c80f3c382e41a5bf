"""What became of each request, and lines of an access log."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from typing import Any

from conftest import BY_UNIX, any_address, fetch, is_client

import httpdown
from httpdown import RequestEnd, RequestRecord


def recorded(handler: Any, *paths: str) -> tuple[list[RequestRecord], httpdown.Report]:
    """What was told of requests for these paths, and the report at the end."""
    records: list[RequestRecord] = []
    server = httpdown.Server(
        handler, any_address(), on_done=records.append, ready_path="/ready", idle_grace=0.005
    )
    with server:
        for path in paths:
            fetch(server, path, "POST" if path == "/post" else "GET", b"body", Referer="r\xe9f")
    return records, server.report()


def test_a_record_tells_what_was_asked_and_answered() -> None:
    def echo(request: httpdown.Request) -> None:
        request.reply(201, request.body(10))

    before = time.time()
    (record,), report = recorded(echo, "/post")
    assert (record.end, record.status, record.version) == (RequestEnd.SERVED, 201, 11)
    assert (record.method, record.target, record.tls) == ("POST", "/post", False)
    assert (record.received, record.sent) == (4, 4)
    assert (record.conn_id, record.number) == (0, 1)
    assert (record.referer, record.user_agent) == ("r\xe9f", None)
    assert is_client(record.peer)
    assert before - 1 <= record.began <= time.time()
    moments = [record.head, record.called, record.answered, record.flushed, record.ended]
    assert moments == sorted(moments)  # type: ignore[type-var]
    assert report.requests == report.served == 1


def test_lines_of_an_access_log() -> None:
    (record,), _ = recorded(lambda request: request.reply(200, "hi"), "/a?b")
    host = "unix:" if BY_UNIX else r"127\.0\.0\.1"
    date = r"\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000"
    common = record.common_log()
    assert re.fullmatch(rf'{host} - - \[{date}\] "GET /a\?b HTTP/1\.1" 200 2', common), common
    assert record.combined_log() == common + r' "r\xe9f" "-"'
    value = json.loads(record.json())
    assert (value["target"], value["end"], value["sent"]) == ("/a?b", "served", 2)
    assert value["referer"] == "r\ufffdf" and value["user_agent"] is None
    assert value["flushed_us"] == round((record.flushed or 0) * 1_000_000)
    forged = dataclasses.replace(record, target="/" + "x" * 1000 + '"\n', status=0)
    assert forged.common_log().endswith(r'xxx\"\x0a HTTP/1.1" 000 2')


def test_the_records_are_the_columns_of_the_report() -> None:
    def handler(request: httpdown.Request) -> None:
        with request.start(200) as reply:
            reply.write(b"all")

    records, report = recorded(handler, "/", "/ready", "/")
    assert [record.target for record in records] == ["/", "/ready", "/"]
    assert len(records) == report.requests == report.served == 3
    assert records[1].called is None


def test_a_request_has_data_of_the_programs_own() -> None:
    seen = []

    def handler(request: httpdown.Request) -> None:
        seen.append(request.data)
        request.data = {"user": "alice"}
        request.reply(200, "hi")
        seen.append(request.data)

    recorded(handler, "/")
    assert seen == [None, {"user": "alice"}]
