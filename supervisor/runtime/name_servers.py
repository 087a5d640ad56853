"""What the configured name servers answer, where getaddrinfo only says that none helped.

Blocks: for the resolver helper. A query and its response: RFC 1035, section 4.
"""

from __future__ import annotations

import secrets
import socket
import struct
from pathlib import Path

from vela.address import Family

RESOLV_CONF = Path("/etc/resolv.conf")
PORT = 53
MAX_SERVERS = 3  # MAXNS (resolv.h): glibc reads no more
TIMEOUT_S = 1.0  # for each server; getaddrinfo has waited already

_HEADER = struct.Struct("!6H")
_RECURSION_DESIRED = 0x0100
_RCODE_MASK = 0x000F
_TYPES = {None: 1, Family.IPV4: 1, Family.IPV6: 28}
_CLASS_IN = 1
# RFC 1035, section 4.1.1
_RCODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def examine(host: str, family: Family | None) -> str:
    """Ask each name server for host. Return what each does, in a sentence for the operator."""
    outcomes = {server: _ask(server, host, family) for server in _servers()}
    said = ", ".join(f"{server} {outcome}" for server, outcome in outcomes.items())
    answered = any(outcome.startswith("answers") for outcome in outcomes.values())
    return f"{'name server' if answered else 'no name server answered:'} {said}"


def _servers() -> list[str]:
    """Return the servers of resolv.conf; without any, this machine (resolv.conf(5))."""
    try:
        lines = RESOLV_CONF.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    words = (line.split() for line in lines)
    servers = [each[1] for each in words if len(each) > 1 and each[0] == "nameserver"]
    return servers[:MAX_SERVERS] or ["127.0.0.1"]


def _ask(server: str, host: str, family: Family | None) -> str:
    number = secrets.randbits(16)
    try:
        query = _query(number, host, family)
        (kind, _, _, _, address), *_ = socket.getaddrinfo(
            server, PORT, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
        with socket.socket(kind, socket.SOCK_DGRAM) as asking:
            asking.settimeout(TIMEOUT_S)
            asking.connect(address)
            asking.send(query)
            return _outcome(asking.recv(65535), number)
    except TimeoutError:
        return "does not answer"
    except ConnectionRefusedError:
        return "is not running"
    except UnicodeError:
        return "cannot be asked for such a name"
    except OSError as err:
        return f"cannot be reached: {err.strerror}"


def _query(number: int, host: str, family: Family | None) -> bytes:
    """Return a query. Raises UnicodeError if host cannot be a name."""
    labels = host.encode("idna").rstrip(b".").split(b".")
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    header = _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0)
    return header + name + struct.pack("!2H", _TYPES[family], _CLASS_IN)


def _outcome(response: bytes, number: int) -> str:
    if len(response) < _HEADER.size:
        return "answers nonsense"
    answered, flags, *_ = _HEADER.unpack_from(response)
    if answered != number:
        return "answers nonsense"
    code = flags & _RCODE_MASK
    if not code:
        return "answers slowly or not always"
    return f"answers {_RCODES.get(code, f'code {code}')}"
