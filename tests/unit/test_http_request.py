from __future__ import annotations

from http import HTTPStatus

import pytest

from vela.supervisor.export.request import (
    MAX_HEAD,
    BadRequest,
    Request,
    Response,
    format_head,
    parse_request,
)

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: 192.0.2.1:9486\r\nAccept: text/plain\r\n\r\n"


def test_request_of_prometheus_is_parsed() -> None:
    assert parse_request(SCRAPE) == Request("GET", "/metrics")


def test_request_truncated_at_any_byte_waits_for_the_rest() -> None:
    assert [parse_request(SCRAPE[:length]) for length in range(len(SCRAPE))] == [None] * len(SCRAPE)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/?a=/b", "/"),
        (b"http://192.0.2.1:9486/metrics?x", "/metrics"),
        (b"http://192.0.2.1:9486", "/"),
    ],
)
def test_path_is_the_target_without_authority_and_query(target: bytes, path: str) -> None:
    request = parse_request(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")

    assert request == Request("GET", path)


@pytest.mark.parametrize(
    "received",
    [
        b"GET / HTTP/1.1\r\n\r\n",  # RFC 9112, 3.2: a Host is required
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * MAX_HEAD,
    ],
)
def test_request_that_is_malformed_is_refused(received: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(received)


def test_answer_has_the_length_of_its_body_and_ends_the_connection() -> None:
    response = Response(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"no\n", (("Allow", "GET"),))

    # The example of RFC 9110, 5.6.7.
    assert format_head(response, 784111777.0) == (
        b"HTTP/1.1 405 Method Not Allowed\r\n"
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        b"Content-Type: text/plain\r\n"
        b"Content-Length: 3\r\n"
        b"Connection: close\r\n"
        b"Cache-Control: no-store\r\n"
        b"X-Content-Type-Options: nosniff\r\n"
        b"Allow: GET\r\n\r\n"
    )
