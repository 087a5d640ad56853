"""The heads of HTTP requests and of answers to them. Pure. RFC 9110, RFC 9112."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from http import HTTPStatus

MAX_HEAD = 8192  # bytes; Prometheus sends 300, a browser 1000

_END = b"\r\n\r\n"
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_ABSOLUTE = re.compile(r"(?i:https?)://[^/?#]*")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class BadRequest(Exception):
    """What came is no request that may be answered otherwise than by 400."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """Without the query; as it came, not decoded."""


@dataclass(frozen=True, slots=True)
class Response:
    status: HTTPStatus
    content_type: str
    body: bytes
    fields: tuple[tuple[str, str], ...] = ()
    """Further header fields."""


def parse_request(received: bytes | bytearray) -> Request | None:
    """Return the request at the beginning of received; None: its head is not complete.

    Raises BadRequest. A request with a body is one, too: there is nothing to send here.
    """
    end = received.find(_END)
    head = bytes(received if end < 0 else received[:end])
    if len(head) > MAX_HEAD:
        raise BadRequest("the head is too long")
    # Each line feed ends a line. A last carriage return may still get its own.
    if re.search(rb"(?<!\r)\n", head) or re.search(rb"\r[^\n]", head) or b"\0" in head:
        raise BadRequest("a line does not end as it should")
    if end < 0:
        return None
    line, *lines = head.split(b"\r\n")
    matched = _REQUEST_LINE.fullmatch(line)
    if matched is None:
        raise BadRequest("the first line is no request")
    fields: dict[bytes, int] = {}
    for each in lines:
        field = _FIELD.fullmatch(each)
        if field is None:
            raise BadRequest("a line is no header field")
        name = field[1].lower()
        fields[name] = fields.get(name, 0) + 1
        if name == b"transfer-encoding" or (name == b"content-length" and field[2] != b"0"):
            raise BadRequest("a request has no body here")
    if fields.get(b"host", 0) != 1 and (matched[3] == b"1" or b"host" in fields):
        raise BadRequest("there must be one Host")
    target = matched[2].decode("ascii")
    path = _ABSOLUTE.sub("", target, count=1) if not target.startswith("/") else target
    path = path.partition("?")[0]
    if path == "" and target != path:
        path = "/"
    if not path.startswith("/"):
        raise BadRequest("the target is no path")
    return Request(matched[1].decode("ascii"), path)


def format_head(response: Response, unix_time: float) -> bytes:
    """Return the head of an answer, after which the connection ends."""
    fields = (
        ("Date", _date(unix_time)),
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        ("Connection", "close"),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *response.fields,
    )
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in fields]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def _date(unix_time: float) -> str:
    # Not strftime(), whose names are those of the locale. RFC 9110, 5.6.7.
    at = time.gmtime(unix_time)
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04} "
        f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
    )
