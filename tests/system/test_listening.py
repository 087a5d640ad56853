"""Sockets of a running velad: several listening addresses, and the ports circuits send from."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from lab.autoconfigured import Ends, asking, asking_back, ends, policy, wait_until_up
from lab.capture import Capture
from lab.circuit import CIRCUIT_ID, NAME
from lab.daemon import Velad
from lab.datagrams import VELA_PORT, udp_socket
from lab.frames import Outlet, await_operational, numbered
from lab.headers import datagram
from lab.injector import Injector
from lab.link import Interface
from lab.load import ping
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin


def circuit(name: str, circuit_id: int, remote: str, source_port: str = "'auto'") -> str:
    return (
        f"[circuits.{name}]\nid = {circuit_id}\nremote = '{remote}'\nautoconfigure = false\n"
        f"source_port = {source_port}\n"
    )


def start(stack: ExitStack, router: Router, config: str) -> Velad:
    router.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
    velad = stack.enter_context(Velad(router.namespace, config))
    for each in velad.status()["circuits"]:
        velad.wait_for_state(each["name"], "unmonitored")
        await_operational(Interface(router.namespace, each["name"]))
    return velad


@pytest.mark.parametrize(
    "listen",
    ['["10.201.0.1", "fd00:201::1"]', '["fd00:201::1", "10.201.0.1"]', '["::", "0.0.0.0"]'],
)
def test_circuits_on_several_listening_addresses_carry_frames_both_ways(
    routers: TwoRouters, listen: str
) -> None:
    config_a = f"[daemon]\nlisten = {listen}\n" + "".join(
        circuit(f"vela{i}", i, remote) for i, remote in ((4, "10.201.0.2"), (6, "fd00:201::2"))
    )
    config_b = "".join(
        circuit(f"vela{i}", i, remote) for i, remote in ((4, "10.201.0.1"), (6, "fd00:201::1"))
    )
    with ExitStack() as stack:
        a = start(stack, routers.a, config_a)
        start(stack, routers.b, config_b)
        ways = [
            (source, target, name)
            for name in ("vela4", "vela6")
            for source, target in ((routers.a, routers.b), (routers.b, routers.a))
        ]
        outlets = [
            stack.enter_context(Outlet(Interface(target.namespace, name)))
            for _, target, name in ways
        ]

        for source, _, name in ways:
            with Injector(Interface(source.namespace, name)) as injector:
                for number in range(50):
                    injector.send(numbered(f"{source.ipv4} {name}"[-16:], number))

        for outlet, (source, _, name) in zip(outlets, ways, strict=True):
            eventually(lambda each=outlet: len(each.frames()) >= 50, 10, name)  # type: ignore[misc]
            mark = f"{source.ipv4} {name}"[-16:]
            assert outlet.frames() == [(mark, number) for number in range(50)]
        status = a.status()
        assert len(status["listen"]) == 2
        # The workers got them all: nothing was left to the supervisor to say.
        assert not any(status["rx_dropped"].values())
        families = [each["family"] for each in status["circuits"]]
        assert families == ["ipv4", "ipv6"]


def test_circuit_hears_its_remote_at_whichever_address_is_listened_on(
    routers: TwoRouters,
) -> None:
    """The circuit's own group is the first IPv4 one; its remote writes to the other."""
    routers.a.underlay.add_address("10.201.0.11/24")
    config = '[daemon]\nlisten = ["10.201.0.1", "10.201.0.11"]\n'
    with ExitStack() as stack:
        start(stack, routers.a, config + circuit("vela0", 1, "10.201.0.2"))
        outlet = stack.enter_context(Outlet(Interface(routers.a.namespace, "vela0")))
        sender = stack.enter_context(udp_socket(routers.b.namespace, "10.201.0.2"))

        for number in range(10):
            to = "10.201.0.1" if number % 2 else "10.201.0.11"
            sender.sendto(b"\1" + numbered("either", number), (to, VELA_PORT))

        eventually(lambda: len(outlet.frames()) >= 10, 5, "10 frames")
    assert sorted(outlet.frames()) == [("either", number) for number in range(10)]


@pytest.mark.usefixtures("framed")
@pytest.mark.parametrize("version", [4, 6])
def test_circuits_send_from_the_port_that_is_configured(routers: TwoRouters, version: int) -> None:
    remote = "10.201.0.2" if version == 4 else "fd00:201::2"
    config = (
        circuit("listen1", 1, remote, "'listen'")
        + circuit("listen2", 2, remote, "'listen'")
        + circuit("number", 3, remote, "5000")
        + circuit("auto1", 4, remote)
        + circuit("auto2", 5, remote)
    )
    with ExitStack() as stack:
        velad = start(stack, routers.a, config)
        underlay = stack.enter_context(Capture(routers.b.underlay))
        ports: dict[int, int] = {}
        for circuit_id, each in enumerate(velad.status()["circuits"], start=1):
            with Injector(Interface(routers.a.namespace, each["name"])) as injector:
                injector.send(numbered(each["name"], 0))
            want = bytes([circuit_id]) + numbered(each["name"], 0)
            packet = underlay.wait_for(
                lambda packet, want=want: (  # type: ignore[misc]
                    (found := datagram(packet.data)) is not None and found.udp.payload == want
                )
            )
            found = datagram(packet.data)
            assert found is not None
            assert found.udp.destination_port == 48621
            ports[circuit_id] = found.udp.source_port

    assert (ports[1], ports[2], ports[3]) == (48621, 48621, 5000)
    assert 49152 <= ports[4] <= 65535
    assert 49152 <= ports[5] <= 65535
    assert ports[4] != ports[5]


def test_circuit_whose_source_port_is_taken_says_so_and_comes_up_once_it_is_free(
    routers: TwoRouters,
) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(udp_socket(routers.a.namespace, "0.0.0.0", 5000))
        config = circuit("vela0", 1, "10.201.0.2", "5000") + circuit("vela1", 2, "10.201.0.2")
        velad = stack.enter_context(Velad(routers.a.namespace, config))
        failed = velad.wait_for_state("vela0", "failed")
        velad.wait_for_state("vela1", "unmonitored")

        other.close()

        velad.wait_for_state("vela0", "unmonitored")
    assert failed["reason"] == "the source port 5000 is taken"


CONTROL = 0
SECOND = {"ipv4": "10.201.0.22", "ipv6": "fd00:201::22"}
"""B's, beside those of the topology, which its kernel prefers."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """Which of B's addresses datagrams have on the way: to them, and from them."""

    asked: set[str]
    answered: set[str]


def spoken(capture: Capture, circuit_id: int) -> Spoken:
    """Return it of all control messages, or of all frames of a circuit, at A's interface."""
    found = [(packet.outgoing, datagram(packet.data)) for packet in capture.packets()]
    said = [
        (outgoing, each.ip)
        for outgoing, each in found
        if each is not None and each.udp.payload[:1] == bytes([circuit_id])
    ]
    return Spoken(
        {str(ip.destination) for outgoing, ip in said if outgoing},
        {str(ip.source) for outgoing, ip in said if not outgoing},
    )


def second_address(routers: TwoRouters, outer: str) -> str:
    address = SECOND[outer]
    if outer == "ipv4":
        routers.b.underlay.add_address(f"{address}/32")
    else:
        # Deprecated, so that the kernel prefers the other one (RFC 6724, section 5, rule 3).
        routers.b.namespace.run(
            *("ip", "address", "add", f"{address}/128", "dev", routers.b.underlay.name),
            *("nodad", "preferred_lft", "0"),
        )
    return address


def check_crossing(routers: TwoRouters) -> None:
    for source, target in ((routers.a, "172.16.16.2"), (routers.b, "172.16.16.1")):
        pings = ping(source.namespace, target, count=3, size=1400, interval_s=0.2)
        assert pings.received == 3, pings.output


def listening(*addresses: str) -> str:
    return f"[daemon]\nlisten = {json.dumps(addresses)}\n"


LISTENS = {
    "each": ("10.201.0.2", "fd00:201::2", *SECOND.values()),
    "all": ("::",),
    "all of both": ("::", "0.0.0.0"),
}


@pytest.mark.parametrize("outer", ["ipv4", "ipv6"])
@pytest.mark.parametrize("listen", LISTENS)
def test_circuit_is_set_up_at_the_second_address_that_is_asked(
    routers: TwoRouters, outer: str, listen: str
) -> None:
    for each in SECOND:
        second_address(routers, each)
    second = SECOND[outer]
    config_b = listening(*LISTENS[listen]) + policy()
    with (
        Capture(routers.a.underlay) as capture,
        ends(routers, asking(second), config_b) as both,
    ):
        wait_until_up(both)
        assert both.b.circuit(NAME)["origin"] == "peer"
        check_crossing(routers)

        # Nothing came past the workers.
        assert not any(both.b.status()["rx_dropped"].values())
        for circuit_id in (CONTROL, CIRCUIT_ID):
            assert spoken(capture, circuit_id) == Spoken({second}, {second})


@pytest.mark.parametrize("source_port", ["auto", "listen"])
@pytest.mark.parametrize("listen", LISTENS)
def test_circuit_of_both_ends_is_at_the_second_address_that_one_of_them_names(
    routers: TwoRouters, listen: str, source_port: str
) -> None:
    """The other one asks from its first address, which is not the remote's there."""
    for each in SECOND:
        second_address(routers, each)
    second = SECOND["ipv4"]
    config_b = listening(*LISTENS[listen]) + asking_back(routers.a.ipv4, source_port=source_port)
    with (
        Capture(routers.a.underlay) as capture,
        ends(routers, asking(second), config_b) as both,
    ):
        wait_until_up(both)
        check_crossing(routers)

        assert spoken(capture, CIRCUIT_ID) == Spoken({second}, {second})
        # By what either end believes there is no NAT: frames come from ports of their own.
        ports = {
            found.udp.source_port
            for packet in capture.packets()
            if (found := datagram(packet.data)) and found.udp.payload[:1] == bytes([CIRCUIT_ID])
            if not packet.outgoing
        }
        assert (ports == {VELA_PORT}) is (source_port == "listen")


@pytest.mark.parametrize("outer", ["ipv4", "ipv6"])
def test_circuit_is_asked_for_from_the_address_that_the_kernel_would_take(
    routers: TwoRouters, outer: str
) -> None:
    """The responder names it, among those that may ask."""
    for each in SECOND:
        second_address(routers, each)
    own = routers.b.ipv4 if outer == "ipv4" else routers.b.ipv6
    config_b = listening(*reversed(LISTENS["each"])) + asking(
        routers.a.ipv4 if outer == "ipv4" else routers.a.ipv6
    )
    with (
        Capture(routers.a.underlay) as capture,
        Velad(routers.a.namespace, policy(sources=[own])) as a,
        Velad(routers.b.namespace, config_b) as b,
    ):
        wait_until_up(Ends(a, b))
        ping(routers.a.namespace, "172.16.16.1", count=1)

        for circuit_id in (CONTROL, CIRCUIT_ID):
            assert spoken(capture, circuit_id) == Spoken({own}, {own})


@pytest.mark.parametrize("source_port", ["'auto'", "'listen'"])
def test_static_circuit_is_from_the_address_that_the_kernel_would_take(
    routers: TwoRouters, source_port: str
) -> None:
    second_address(routers, "ipv4")
    config_b = listening("10.201.0.22", "10.201.0.2")
    with ExitStack() as stack:
        a = start(stack, routers.a, circuit("vela0", 1, "10.201.0.2"))
        start(stack, routers.b, config_b + circuit("vela0", 1, "10.201.0.1", source_port))
        outlet = stack.enter_context(Outlet(Interface(routers.a.namespace, "vela0")))
        injector = stack.enter_context(Injector(Interface(routers.b.namespace, "vela0")))

        injector.send(numbered("from B", 0))

        eventually(outlet.frames, 5, "the frame")
        assert not any(a.status()["rx_dropped"].values())
