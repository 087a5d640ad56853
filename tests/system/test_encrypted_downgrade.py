"""Somebody on the path who takes out of the handshake what is about encryption, or changes it."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from marked_load import MARK, load
from sealed_circuit import generation, identity_configs, psk_configs, psk_file
from sealed_wire import PORT, circuit_datagrams
from thorough import first_of

from lab.autoconfigured import Ends, ends, wait_until_up
from lab.capture import Capture
from lab.link import Interface, Regime, veth
from lab.namespace import Namespace
from lab.topology import UNDERLAY, TwoRouters, router
from lab.waiting import eventually
from vela.signaling.codec import HEADER_LENGTH
from vela.signaling.messages import Tlv
from vela.signaling.signer import TAG_LENGTH

pytestmark = pytest.mark.needs_net_admin

CHANGES = 6
_LARGEST_FRAME = 65536
_ETHERNET, _IPV4, _UDP = 14, 20, 8
_PAYLOAD = _ETHERNET + _IPV4 + _UDP
_PADDING = Tlv.PADDING.number

Change = Callable[[bytearray, int], None]
"""Changes the TLV that begins there in a control message."""


def strip(message: bytearray, at: int) -> None:
    """The lengths of all stay, as that of a CONFIRM has to."""
    message[at] = _PADDING


def flip(message: bytearray, at: int) -> None:
    """One bit of the last byte of the value."""
    message[at + 2 + int.from_bytes(message[at + 1 : at + 3])] ^= 1


class Middle:
    """Carries frames from one cable to the other, and changes TLVs of one number.

    It runs in a thread. changed: how many messages were changed so far.
    """

    def __init__(self, number: int, change: Change) -> None:
        self.changed = 0
        self._number, self._change = number, change

    @contextmanager
    def between(self, *ports: Interface) -> Iterator[None]:
        ending = Event()
        with ExitStack() as stack:
            sockets = []
            for port in ports:
                opened = port.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
                sockets.append(stack.enter_context(opened))
                opened.bind((port.name, 0x0003))  # ETH_P_ALL
            thread = Thread(target=self._carry, args=(sockets, ending))
            thread.start()
            try:
                yield
            finally:
                ending.set()
                thread.join()

    def _carry(self, sockets: list[socket.socket], ending: Event) -> None:
        others = dict(zip(sockets, reversed(sockets), strict=True))
        while not ending.is_set():
            for each in select.select(sockets, [], [], 0.05)[0]:
                frame, address = each.recvfrom(_LARGEST_FRAME)
                if address[2] != socket.PACKET_OUTGOING:
                    others[each].send(self._tampered(frame))

    def _tampered(self, frame: bytes) -> bytes:
        """Return the frame, changed if it is a control message over IPv4 with such a TLV."""
        message = bytearray(frame[_PAYLOAD:])
        udp = frame[_ETHERNET - 2 : _ETHERNET + 1] == b"\x08\x00\x45" and frame[23] == 17
        if not udp or int.from_bytes(frame[36:38]) != PORT or message[:2] != b"\0\1":
            return frame
        at, end = HEADER_LENGTH, len(message) - TAG_LENGTH
        while at < end:
            if message[at] == self._number:
                self._change(message, at)
                self.changed += 1
                # Without a checksum, which IPv4 allows.
                return frame[: _PAYLOAD - 2] + b"\0\0" + bytes(message)
            at += 3 + int.from_bytes(message[at + 1 : at + 3])
        return frame


@contextmanager
def routers_with(middle: Middle) -> Iterator[TwoRouters]:
    """Two routers, whose cables end at the one in the middle."""
    with Namespace("a") as a, Namespace("middle") as between, Namespace("b") as b:
        made, ports = [], []
        for number, namespace in ((1, a), (2, b)):
            end, port = veth(namespace, UNDERLAY, between, f"port{number}")
            namespace.run("ethtool", "-K", UNDERLAY, "tx", "off")
            ports.append(port)
            made.append(router(namespace, end, number))
        both = TwoRouters(*made)
        both.set_regime(Regime.FRAMES)
        with middle.between(*ports):
            yield both


def configs(routers: TwoRouters, directory: Path, pattern: str) -> tuple[str, str]:
    if pattern == "psk":
        return psk_configs(routers, psk_file(directory))
    return identity_configs(routers, directory)


def were_up(both: Ends) -> list[bool]:
    """Tell of each end whether its circuit ever was up."""
    return [" state=up" in velad.log() for velad in both]


@pytest.mark.parametrize("pattern", first_of(["identity", "psk"], 1))
@pytest.mark.parametrize("change", [strip, flip])
@pytest.mark.parametrize(
    "tlv", [Tlv.CIPHERS, Tlv.NOISE_1, Tlv.NOISE_2, Tlv.GENERATION], ids=lambda tlv: tlv.name
)
def test_who_changes_the_handshake_gets_no_frame(
    tlv: Tlv, change: Change, pattern: str, tmp_path: Path
) -> None:
    middle = Middle(tlv.number, change)
    with (
        routers_with(middle) as routers,
        Capture(routers.a.underlay) as capture,
        load(routers),
        ends(routers, *configs(routers, tmp_path, pattern)) as both,
    ):
        eventually(lambda: middle.changed >= CHANGES, 30, f"{CHANGES} changed messages")
        found = were_up(both)
        packets = capture.packets()

    frames = list(circuit_datagrams(packets))
    assert found == [False, False]
    # The initiator has its keys when the last one, GENERATION, is still to be told. It asks whether
    # frames cross.
    assert all(each.is_sealed and each.outgoing for each in frames)
    assert tlv is Tlv.GENERATION or not frames
    assert not any(MARK in packet.data for packet in packets)


def test_who_changes_nothing_is_not_noticed(tmp_path: Path) -> None:
    """The positive control: it is the changes that keep circuits down."""
    middle = Middle(0, strip)
    with (
        routers_with(middle) as routers,
        ends(routers, *configs(routers, tmp_path, "identity")) as both,
    ):
        wait_until_up(both)
        assert [generation(velad) for velad in both] == [1, 1]
    assert middle.changed == 0
