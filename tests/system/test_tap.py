"""vela.linux.tap: real interfaces, in namespaces."""

from __future__ import annotations

import json
import os
import re
import select
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from bpf_machines import run
from exhaustion import no_descriptors

from lab.capture import Capture
from lab.frames import await_operational
from lab.injector import Injector
from lab.link import Interface
from lab.namespace import Namespace
from lab.waiting import eventually
from vela.errors import DeviceError
from vela.linux.features import ALL_FEATURES, Feature, Features, probe
from vela.linux.flow_steering import queue_program, why_no_queues
from vela.linux.tap import Tap

pytestmark = pytest.mark.needs_net_admin

MAC = bytes.fromhex("02005e100001")
FRAME = (b"\xff" * 6 + bytes.fromhex("02005e100002") + b"\x88\xb5").ljust(60, b"\xee")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace("tap") as made:
        # Nobody but the test is to send anything.
        made.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        yield made


def make(namespace: Namespace, name: str = "vela0", mtu: int = 1471) -> Tap:
    with namespace.entered():
        return Tap(name, MAC, mtu)


def links(namespace: Namespace) -> set[str]:
    with namespace.entered():
        return {name for _, name in socket.if_nameindex()}


def shown(namespace: Namespace) -> str:
    return namespace.run("ip", "link", "show", "vela0").stdout


def test_tap_is_made_as_asked_and_gone_with_its_descriptor(namespace: Namespace) -> None:
    tap = make(namespace)
    interface = Interface(namespace, "vela0")

    assert (interface.mac, interface.mtu, tap.mtu) == (MAC, 1471, 1471)
    assert "UP" not in re.split(r"[<,>]", shown(namespace))
    assert not os.get_inheritable(tap.fd)
    assert os.get_blocking(tap.fd)

    tap.close()
    assert "vela0" not in links(namespace)


def test_tap_carries_frames_as_they_are(namespace: Namespace) -> None:
    """No packet information before them, in either direction (IFF_NO_PI)."""
    interface = Interface(namespace, "vela0")
    with closing(make(namespace)) as tap:
        interface.set_up()
        tap.set_carrier(True)
        # A new carrier lets frames out only when the kernel's link watch has seen it.
        eventually(lambda: "state UP" in shown(namespace), 5, "vela0 to be operational")
        with Capture(interface) as seen, namespace.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("vela0", 0))
            os.write(tap.fd, FRAME)
            assert seen.wait_for(lambda packet: not packet.outgoing).data == FRAME

            raw.send(FRAME)
            assert select.select([tap.fd], [], [], 5)[0]
            assert os.read(tap.fd, 2000) == FRAME


def test_tap_shows_the_carrier_that_it_is_given(namespace: Namespace) -> None:
    interface = Interface(namespace, "vela0")
    with closing(make(namespace)) as tap:
        interface.set_up()
        assert not interface.carrier
        tap.set_carrier(True)
        assert interface.carrier
        tap.set_carrier(False)
        assert not interface.carrier


def test_tap_of_a_name_that_exists_is_refused_and_left_alone(namespace: Namespace) -> None:
    namespace.run("ip", "link", "add", "vela0", "type", "bridge")
    namespace.run("ip", "tuntap", "add", "vela1", "mode", "tap")
    with closing(make(namespace, "vela2")):
        for name in ("vela0", "vela1", "vela2"):
            with pytest.raises(DeviceError) as caught:
                make(namespace, name)
            assert str(caught.value) == f"{name}: an interface of this name exists already"

    assert links(namespace) == {"lo", "vela0", "vela1"}


@pytest.mark.parametrize("mtu", [67, 65522])
def test_tap_with_an_mtu_that_the_kernel_refuses_leaves_nothing(
    namespace: Namespace, mtu: int
) -> None:
    with pytest.raises(DeviceError, match=f"vela0: cannot set an MTU of {mtu}: "):
        make(namespace, mtu=mtu)

    assert links(namespace) == {"lo"}


def test_tap_with_a_mac_that_the_kernel_refuses_leaves_nothing(namespace: Namespace) -> None:
    with namespace.entered(), pytest.raises(DeviceError, match="vela0: cannot set its MAC: "):
        Tap("vela0", b"\x01" + bytes(5), 1471)

    assert links(namespace) == {"lo"}


def test_tap_without_a_descriptor_for_it_is_refused_in_words(namespace: Namespace) -> None:
    with (
        namespace.entered(),
        no_descriptors(),
        pytest.raises(DeviceError, match="vela0: cannot create a TAP: Too many open files"),
    ):
        Tap("vela0", MAC, 1471)


def test_tap_mtu_changes_while_it_is_in_use(namespace: Namespace) -> None:
    with closing(make(namespace)) as tap, namespace.entered():
        tap.set_mtu(8971)
        assert (Interface(namespace, "vela0").mtu, tap.mtu) == (8971, 8971)

        with pytest.raises(DeviceError):
            tap.set_mtu(10)
        assert tap.mtu == 8971


@pytest.mark.parametrize(
    ("features", "blocking", "tso", "uso"),
    [
        (ALL_FEATURES, True, "on", "on"),
        (ALL_FEATURES - {Feature.USO}, True, "on", "off"),
        (ALL_FEATURES - {Feature.TSO}, True, "off", "on"),
        (ALL_FEATURES - {Feature.RWF_NOWAIT}, False, "on", "on"),
        (frozenset(), False, "off", "off"),
    ],
)
def test_tap_has_what_the_features_allow(
    namespace: Namespace, features: Features, blocking: bool, tso: str, uso: str
) -> None:
    with namespace.entered():
        if features - probe():
            pytest.skip("this kernel has less")
        tap = Tap("vela0", MAC, 1471, virtio_header=True, features=features)
    with closing(tap):
        shown = namespace.run("ethtool", "-k", "vela0").stdout
        assert os.get_blocking(tap.fd) is blocking
        assert re.findall(r"tcp-segmentation-offload: (\w+)", shown) == [tso]
        assert re.findall(r"tx-udp-segmentation: (\w+)", shown) == [uso]
        assert re.findall(r"tx-checksumming: (\w+)", shown) == ["on"]


@pytest.mark.parametrize("virtio_header", [False, True])
def test_tap_that_does_not_block_takes_every_frame(
    namespace: Namespace, virtio_header: bool
) -> None:
    """More than any queue or buffer has room for, from the supervisor's own write()."""
    with namespace.entered():
        tap = Tap("vela0", MAC, 1471, virtio_header=virtio_header, features=frozenset())
    with closing(tap):
        Interface(namespace, "vela0").set_up()
        for _ in range(5000):
            tap.write(memoryview(FRAME))
        (shown,) = json.loads(namespace.run("ip", "-j", "-s", "link", "show", "vela0").stdout)
        with pytest.raises(BlockingIOError):
            os.read(tap.fd, 2000)

    assert shown["stats64"]["rx"]["packets"] == 5000


def queued(fd: int) -> int:
    """Return how many frames there are to be read."""
    found = 0
    while select.select([fd], [], [], 0)[0]:
        os.read(fd, 2048)
        found += 1
    return found


def udp_frame(port: int) -> bytes:
    header = bytes.fromhex("4500001c00004000401100000a0000010a000002")
    packet = header + port.to_bytes(2) + bytes.fromhex("00090008") + bytes(2)
    return (b"\xff" * 6 + bytes.fromhex("02005e100002") + b"\x08\x00" + packet).ljust(60, b"\0")


@pytest.mark.skipif(bool(why_no_queues()), reason="may not load extended BPF")
@pytest.mark.parametrize("queues", [2, 8])
def test_flows_are_spread_over_the_queues_that_are_in_use(
    namespace: Namespace, queues: int
) -> None:
    with namespace.entered():
        tap = Tap("vela0", MAC, 1471, queues=queues)
    with closing(tap), namespace.entered():
        namespace.run("ip", "link", "set", "vela0", "up")
        tap.set_carrier(True)
        await_operational(Interface(namespace, "vela0"))
        fds = [tap.fd, *tap.further]
        assert len(fds) == queues
        frames = [udp_frame(port) for port in range(200)]
        with Injector(Interface(namespace, "vela0")) as injector:

            def inject() -> list[int]:
                for each in frames:
                    injector.send(each)
                return [queued(fd) for fd in fds]

            assert inject() == [200] + [0] * (queues - 1)
            tap.spread(queues)
            wanted = Counter(run(queue_program(queues), b"", each) for each in frames)
            assert inject() == [wanted[queue] for queue in range(queues)]
            # What a worker may have changed is set again, and this stays.
            tap.restore()
            assert inject() == [wanted[queue] for queue in range(queues)]
            tap.spread(1)
            assert inject() == [200] + [0] * (queues - 1)


@pytest.mark.skipif(bool(why_no_queues()), reason="may not load extended BPF")
def test_adopted_tap_goes_on_with_its_queues_and_has_those_that_are_wanted(
    namespace: Namespace,
) -> None:
    with namespace.entered():
        tap = Tap("vela0", MAC, 1471, queues=3)
        first, *further = map(os.dup, (tap.fd, *tap.further))
        before = [os.fstat(fd).st_ino for fd in further]
        tap.spread(3)
        same = Tap("vela0", b"", 0, adopted=first, queues=3, further=further)
        assert same.further == further
        assert [os.fstat(fd).st_ino for fd in same.further] == before
        same.close()

        fewer = Tap("vela0", b"", 0, adopted=os.dup(tap.fd), further=list(map(os.dup, tap.further)))
        assert fewer.further == []
        fewer.close()
        # Those that another velad had are gone with it.
        for fd in tap.further:
            os.close(fd)
        tap.further.clear()
        more = Tap("vela0", b"", 0, adopted=os.dup(tap.fd), queues=2)
        assert len(more.further) == 1
        more.close()
        tap.close()
        # One that was made with one queue stays so.
        single = Tap("vela0", MAC, 1471)
        adopted = Tap("vela0", b"", 0, adopted=os.dup(single.fd), queues=2)
        assert adopted.further == []
        adopted.close()
        single.close()


def test_tap_without_descriptors_for_its_queues_leaves_nothing(namespace: Namespace) -> None:
    with namespace.entered():
        for spare in range(6):
            try:
                with no_descriptors(spare):
                    tap = Tap("vela0", MAC, 1471, queues=2)
            except DeviceError:
                assert links(namespace) == {"lo"}
            else:
                tap.close()
                assert spare >= 2
                return
    pytest.fail("too many descriptors are needed")
