"""Sockets of a running velad: several listening addresses, and the ports circuits send from."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from lab.capture import Capture
from lab.daemon import Velad
from lab.datagrams import VELA_PORT, udp_socket
from lab.frames import Outlet, await_operational, numbered
from lab.headers import datagram
from lab.injector import Injector
from lab.link import Interface
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
