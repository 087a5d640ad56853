"""Ends that do not agree on encryption, and somebody on the path who would talk them out of it.

Whatever is tried: the circuit never comes up, no frame crosses in clear, and the status says why.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import Settings, asking, policy
from lab.capture import Capture, Packet
from lab.circuit import NAME
from lab.daemon import Velad
from lab.errors import LabError
from lab.headers import datagram
from lab.link import Interface, Regime, veth
from lab.namespace import Namespace
from lab.topology import TwoRouters, router
from vela.public_key import format_public_key
from vela.signaling.codec import HEADER_LENGTH
from vela.signaling.signer import TAG_LENGTH
from vela.supervisor.config.identity import generate

pytestmark = pytest.mark.needs_net_admin

OFFER, NOISE_1, NOISE_2, GENERATION = 22, 23, 24, 25
TLVS = (OFFER, NOISE_1, NOISE_2, GENERATION)
ETHERNET, IPV4, UDP = 14, 20, 8
KEYS = {
    "one": b"thirty-two bytes, and some more.\n",
    "other": b"thirty-two other bytes, and more\n",
}

Change = Callable[[int, bytes], bytes | None]
"""A TLV's number and value; returns its new value, None: none."""


@pytest.fixture
def psk(tmp_path: Path) -> Callable[[str], str]:
    def path_of(name: str) -> str:
        path = tmp_path / name
        path.write_bytes(KEYS[name])
        path.chmod(0o600)
        return str(path)

    return path_of


class Machine:
    """An identity: its file's path, and its public key as a configuration has it."""

    def __init__(self, path: Path) -> None:
        self.public = format_public_key(generate(path))
        self.daemon = f'[daemon]\nidentity = "{path}"\n'


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Machine, Machine, Machine]:
    a, b, c = (Machine(tmp_path / f"{name}.key") for name in "abc")
    return a, b, c


def frames(packets: Iterable[Packet]) -> list[bytes]:
    """Return what crossed in datagrams of circuit 1."""
    found = (datagram(packet.data) for packet in packets)
    return [each.udp.payload for each in found if each and each.udp.payload[:1] == b"\1"]


def reason(velad: Velad, *states: str) -> str:
    """Return why the circuit is in one of these states, as soon as velad says so."""
    status = velad.wait_for(
        lambda status: any(
            each["state"] in states and each["reason"] for each in status["circuits"]
        ),
        20,
        "a reason",
    )
    return str(status["circuits"][0]["reason"])


@contextmanager
def refused(
    routers: TwoRouters, config_a: str, config_b: str, never_up: Iterable[str] = "ab"
) -> Iterator[tuple[Velad, Velad]]:
    """Both ends; and at the end: these were never up, and no frame crossed in clear."""
    with (
        Capture(routers.a.underlay) as capture,
        Velad(routers.b.namespace, config_b) as b,
        Velad(routers.a.namespace, config_a) as a,
    ):
        yield a, b
        for name, velad in (("a", a), ("b", b)):
            assert name not in never_up or "state=up" not in velad.log()
        assert [
            each[:16].hex() for each in frames(capture.packets()) if each[1] & 0xFE != 0x42
        ] == []


@pytest.mark.parametrize("required_at", ["a", "b"])
def test_one_end_requires_and_the_other_does_not(
    framed: TwoRouters, psk: Callable[[str], str], required_at: str
) -> None:
    levels = ("required", "none") if required_at == "a" else ("none", "required")
    at: list[Settings] = [{"encryption": each, "key_file": psk("one")} for each in levels]
    for_a, for_b = at
    with refused(framed, asking(framed.b.ipv4, **for_a), policy(**for_b)) as (a, _):
        assert "encrypt" in reason(a, "rejected")


def test_pre_shared_keys_differ(framed: TwoRouters, psk: Callable[[str], str]) -> None:
    for_a, for_b = (settings(psk(each)) for each in ("one", "other"))
    with refused(framed, asking(framed.b.ipv4, **for_a), policy(**for_b)) as (a, b):
        b.wait_for(dropped("control_tag"), 10, "a wrong tag")
        assert reason(a, "connecting", "down", "rejected")


def test_peer_key_is_another_machines(
    framed: TwoRouters, machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, c = machines
    config_a = a.daemon + asking(framed.b.ipv4, encryption="required", peer_key=c.public)
    config_b = b.daemon + policy(sources=None, encryption="required", peers=[a.public])
    with refused(framed, config_a, config_b) as (velad_a, velad_b):
        velad_b.wait_for(dropped("control_handshake"), 10, "a failed handshake")
        assert reason(velad_a, "connecting", "down", "rejected")


def test_one_end_has_a_key_and_the_other_an_identity(
    framed: TwoRouters, psk: Callable[[str], str], machines: tuple[Machine, Machine, Machine]
) -> None:
    a, b, _ = machines
    key = settings(psk("one"))
    config_a = a.daemon + asking(framed.b.ipv4, peer_key=b.public, **key)
    with refused(framed, config_a, policy(**key)) as (velad_a, _):
        assert "encrypts by" in reason(velad_a, "rejected")


def test_static_circuit_cannot_require_encryption(
    routers: TwoRouters, psk: Callable[[str], str]
) -> None:
    config = asking(routers.b.ipv4, autoconfigure=False, **settings(psk("one")))
    velad = Velad(routers.a.namespace, config.partition("[circuits.vela0.peer]")[0])
    with pytest.raises(LabError), velad:
        pass
    assert "encryption" in velad.log()


def settings(key_file: str) -> Settings:
    return {"encryption": "required", "key_file": key_file}


def dropped(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: int(status["rx_dropped"].get(name, 0)) > 0


# Somebody on the path.


class Attacker(threading.Thread):
    """A wire between two interfaces, with somebody on it who changes TLVs of control messages."""

    def __init__(self, ends: tuple[Interface, Interface], change: Change) -> None:
        super().__init__(daemon=True)
        self._sockets = [_raw(each) for each in ends]
        self._change = change
        self.changed = 0
        self._ended, self._end = socket.socketpair()

    def run(self) -> None:
        one, other = self._sockets
        to = {one: other, other: one}
        while True:
            ready, _, _ = select.select([one, other, self._ended], [], [])
            if self._ended in ready:
                return
            for each in ready:
                to[each].send(self._seen(each.recv(1 << 16)))

    def close(self) -> None:
        self._end.send(b"x")
        self.join(10)
        for each in (*self._sockets, self._ended, self._end):
            each.close()

    def _seen(self, frame: bytes) -> bytes:
        if frame[12:14] != b"\x08\x00" or frame[ETHERNET + 9] != socket.IPPROTO_UDP:
            return frame
        head, body = frame[: ETHERNET + IPV4 + UDP], frame[ETHERNET + IPV4 + UDP :]
        if body[:1] == b"\0":
            new = rewritten(body, self._change)
            self.changed += new != body
            body = new
        return with_lengths(head, body)


def with_lengths(head: bytes, body: bytes) -> bytes:
    """Return the frame with new lengths, a new IPv4 checksum, and none of UDP."""
    ip, udp = bytearray(head[ETHERNET : ETHERNET + IPV4]), bytearray(head[ETHERNET + IPV4 :])
    udp[4:8] = (UDP + len(body)).to_bytes(2) + b"\0\0"
    ip[2:4] = (IPV4 + UDP + len(body)).to_bytes(2)
    ip[10:12] = b"\0\0"
    total = sum(int.from_bytes(ip[at : at + 2]) for at in range(0, IPV4, 2))
    total = (total & 0xFFFF) + (total >> 16)
    ip[10:12] = (0xFFFF - ((total & 0xFFFF) + (total >> 16))).to_bytes(2)
    return head[:ETHERNET] + bytes(ip) + bytes(udp) + body


def rewritten(message: bytes, change: Change) -> bytes:
    """Return a control message with its TLVs changed; the tag stays, as nobody else has the key."""
    made, at, end = message[:HEADER_LENGTH], HEADER_LENGTH, len(message) - TAG_LENGTH
    while at + 3 <= end:
        number, length = message[at], int.from_bytes(message[at + 1 : at + 3])
        value = message[at + 3 : at + 3 + length]
        new = change(number, value)
        if new is not None:
            made += bytes([number]) + len(new).to_bytes(2) + new
        at += 3 + length
    return made + message[end:]


def _raw(interface: Interface) -> socket.socket:
    made = interface.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
    made.bind((interface.name, 0x0003))
    return made


@contextmanager
def somebody_between(change: Change) -> Iterator[tuple[TwoRouters, Attacker]]:
    with ExitStack() as stack:
        a, b, middle = (stack.enter_context(Namespace(name)) for name in ("a", "b", "mid"))
        cables = [veth(each, "eth0", middle, f"to{each.name[-4:]}") for each in (a, b)]
        made = [
            router(each, end, n)
            for n, (each, (end, _)) in enumerate(zip((a, b), cables, strict=True), 1)
        ]
        routers = TwoRouters(*made)
        routers.set_regime(Regime.FRAMES)
        path = Attacker((cables[0][1], cables[1][1]), change)
        path.start()
        stack.callback(path.close)
        yield routers, path


def stripped(wanted: int) -> Change:
    return lambda number, value: None if number == wanted else value


def flipped(wanted: int) -> Change:
    """Change the last byte's lowest bit."""
    return lambda number, value: (
        value[:-1] + bytes([value[-1] ^ 1]) if number == wanted and value else value
    )


def identity_configs(
    routers: TwoRouters, machines: tuple[Machine, Machine, Machine]
) -> tuple[str, str]:
    a, b, _ = machines
    return (
        a.daemon + asking(routers.b.ipv4, encryption="required", peer_key=b.public),
        b.daemon + policy(sources=None, encryption="required", peers=[a.public]),
    )


def test_somebody_between_who_changes_nothing_is_not_noticed(
    machines: tuple[Machine, Machine, Machine],
) -> None:
    """The positive control: what keeps the others down is what was changed."""
    with somebody_between(lambda _, value: value) as (routers, path):
        config_a, config_b = identity_configs(routers, machines)
        with Velad(routers.b.namespace, config_b) as b, Velad(routers.a.namespace, config_a) as a:
            a.wait_for_state(NAME, "up", timeout_s=15)
            b.wait_for_state(NAME, "up", timeout_s=15)
        assert path.changed == 0


@pytest.mark.parametrize("by", ["psk", "identity"])
@pytest.mark.parametrize("number", TLVS)
@pytest.mark.parametrize("change", [stripped, flipped])
def test_somebody_between_changes_a_tlv(
    psk: Callable[[str], str],
    machines: tuple[Machine, Machine, Machine],
    change: Callable[[int], Change],
    number: int,
    by: str,
) -> None:
    """With identities alone, the messages of the handshake have no tag that would tell."""
    with somebody_between(change(number)) as (routers, path):
        if by == "identity":
            configs = identity_configs(routers, machines)
        else:
            key = settings(psk("one"))
            configs = asking(routers.b.ipv4, **key), policy(**key)
        # The initiator has all that it needs before it tells the generation that it can receive;
        # the responder, who is not told, has no carrier.
        never_up = "b" if number == GENERATION else "ab"
        with refused(routers, *configs, never_up) as (a, _):
            a.wait_for(lambda _: path.changed >= 2, 20, "two changed messages")
            assert reason(a, "connecting", "down", "rejected")
