"""velactl doctor, where something real is wrong: each fault is named, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import old_kernel
import pytest

from lab.autoconfigured import Ends, asking, asking_back, circuit, ends, policy, wait_until_up
from lab.circuit import NAME, static_circuit
from lab.daemon import Velad, entry_point
from lab.link import bridge
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

PORT = 48621


def doctor(velad: Velad, *argv: str) -> dict[str, Any]:
    """Return what it says, run where velad runs. Its exit status fits that."""
    command, env = entry_point("velactl", "vela.supervisor.velactl")
    line = (*command, "--socket", str(velad.control_socket), "doctor", "--json", *argv)
    done = velad.namespace.run(*line, env=env, check=False)
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if said["healthy"] else 3), done.stderr
    assert said["healthy"] == (not said["findings"])
    return said


def checks(velad: Velad) -> set[tuple[str | None, str]]:
    return {(each["circuit"], each["check"]) for each in doctor(velad)["findings"]}


def found(velad: Velad, check: str, name: str | None = NAME) -> dict[str, Any]:
    """Wait until this is found, and nothing else. Return the finding."""

    def only() -> dict[str, Any]:
        findings: list[dict[str, Any]] = doctor(velad)["findings"]
        fits = [each["check"] for each in findings] == [check]
        return findings[0] if fits else {}

    one = eventually(only, 20, f"{check} alone: {velad.log_tail()}")
    assert one["circuit"] == name
    assert one["advice"]
    return one


def dropped_by_rp_filter(namespace: Namespace) -> int:
    shown = namespace.run("nstat", "-az", "TcpExtIPReversePathFilter").stdout
    return int(shown.split("TcpExtIPReversePathFilter")[1].split()[0])


def finds_nothing(velad: Velad) -> bool:
    return bool(doctor(velad)["healthy"])


def test_doctor_of_a_working_circuit_finds_nothing(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        for velad in both:
            assert doctor(velad) == {"healthy": True, "findings": []}
        command, env = entry_point("velactl", "vela.supervisor.velactl")
        line = (*command, "--socket", str(both.a.control_socket), "doctor", NAME)

        done = routers.a.namespace.run(*line, env=env)

        assert done.stdout == "looked at this machine and 1 circuit: nothing is wrong\n"


def test_doctor_in_another_namespace_says_so(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        done = both.a.control("doctor", "--json", check=False)

        (one,) = json.loads(done.stdout)["findings"]
        assert (one["circuit"], one["check"]) == (None, "namespace")
        assert str(both.a.pid) in one["seen"]


@pytest.mark.parametrize("dropping", ["a", "b"])
def test_doctor_names_a_firewall(routers: TwoRouters, dropping: str) -> None:
    namespace = (routers.a if dropping == "a" else routers.b).namespace
    chain = f"type filter hook input priority 0\n udp dport {PORT} drop"
    rules = f"table inet f {{\n chain c {{\n {chain}\n }}\n}}\n"
    namespace.run("nft", "-f", "-", stdin=rules)
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        eventually(lambda: "no answer from" in found(both.a, "firewall")["seen"], 20, "a reason")
        assert "UDP 48621" in found(both.a, "firewall")["advice"]

        namespace.run("nft", "flush", "ruleset")

        wait_until_up(both)
        assert finds_nothing(both.a)


def test_doctor_names_a_firewall_that_drops_frames_alone(routers: TwoRouters) -> None:
    # The first byte after the UDP header is the circuit id, 0 for control messages.
    chain = f"type filter hook input priority 0\n udp dport {PORT} @th,64,8 != 0 drop"
    rules = f"table inet f {{\n chain c {{\n {chain}\n }}\n}}\n"
    routers.a.namespace.run("nft", "-f", "-", stdin=rules)
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        eventually(lambda: "frames do not" in found(both.a, "firewall")["seen"], 20, "a reason")
        assert "both ways" in found(both.a, "firewall")["advice"]


def test_doctor_names_what_somebody_changed_by_hand(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        routers.a.namespace.run("ip", "link", "set", NAME, "mtu", "1300")

        assert "MTU of 1300" in found(both.a, "interface")["seen"]


def test_doctor_names_a_wrong_key(routers: TwoRouters, tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        path = tmp_path / f"key{number}"
        path.write_text(f"{number}" * 64 + "\n")
        path.chmod(0o600)
        paths.append(str(path))
    config_a = asking(routers.b.ipv4, key_file=paths[0])
    config_b = asking_back(routers.a.ipv4, key_file=paths[1])
    with ends(routers, config_a, config_b) as both:
        for velad in both:
            eventually(lambda each=velad: (NAME, "wrong_key") in checks(each), 20, "a wrong key")  # type: ignore[misc]
            assert "the keys of both ends differ" in found(velad, "wrong_key")["seen"]


def test_doctor_names_a_missing_bridge(routers: TwoRouters) -> None:
    with circuit(routers, bridge="br-none") as both:
        assert "br-none" in found(both.a, "missing_bridge")["seen"]

        bridge(routers.a.namespace, "br-none")

        eventually(lambda: finds_nothing(both.a), 10, "nothing wrong")


def test_doctor_names_a_duplicate_mac(routers: TwoRouters) -> None:
    mac = "02:00:5e:10:00:01"
    config_a = asking(routers.b.ipv4, mac=mac)
    config_b = asking_back(routers.a.ipv4, mac=mac)
    with ends(routers, config_a, config_b) as both:
        for velad in both:
            assert mac in found(velad, "duplicate_mac")["seen"]


def test_doctor_names_a_route_into_the_circuit(routers: TwoRouters) -> None:
    route = f"{routers.b.ipv4}/32 via 172.16.16.2 dev {NAME}"
    with circuit(routers) as both:
        routers.a.namespace.run("ip", "route", "add", *route.split())

        assert route in found(both.a, "route")["seen"]


def test_doctor_names_a_strict_rp_filter_that_has_dropped(routers: TwoRouters) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    with circuit(routers) as both:
        a.sysctl(f"net/ipv4/conf/{NAME}/rp_filter", 1)
        assert finds_nothing(both.a)  # strict, and it drops nothing
        b.run("ip", "address", "add", "10.99.0.1/32", "dev", "eth0")
        a.run("ip", "route", "add", "10.99.0.0/24", "via", routers.b.ipv4)
        # Resolved before: the kernel does not answer an ARP request from there.
        assert ping(b, "172.16.16.1", count=1).received == 1
        b.run("ping", "-c", "1", "-W", "1", "-I", "10.99.0.1", "172.16.16.1", check=False)
        assert dropped_by_rp_filter(a) == 1

        one = found(both.a, "rp_filter")

        assert one["advice"] == f"sysctl -w net.ipv4.conf.{NAME}.rp_filter=2"
        a.sysctl(f"net/ipv4/conf/{NAME}/rp_filter", 2)
        assert finds_nothing(both.a)


# What the kernel answers to SO_RCVBUFFORCE without the privilege. net.core.rmem_max then counts.
UNPRIVILEGED = """
import socket
set_option = socket.socket.setsockopt
def limited(self, level, option, *value):
    if (level, option) == (socket.SOL_SOCKET, 33):
        raise PermissionError(1, "Operation not permitted")
    return set_option(self, level, option, *value)
socket.socket.setsockopt = limited
"""


def test_doctor_names_a_receive_buffer_that_the_kernel_clipped(routers: TwoRouters) -> None:
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    if allowed >= 8 << 20:
        pytest.skip("this machine allows as much as velad wants")
    with Velad(routers.a.namespace, "", before=UNPRIVILEGED) as velad:
        one = found(velad, "receive_buffer", None)

        assert f"{allowed} of {8 << 20} bytes" in one["seen"]
        assert f"net.core.rmem_max={8 << 20}" in one["advice"]


@pytest.mark.skipif(not old_kernel.SUPPORTED, reason="the filter is for other machines")
def test_doctor_names_a_missing_kernel_feature_and_none_that_is_disabled(
    routers: TwoRouters,
) -> None:
    without = (sys.executable, old_kernel.__file__, "rwf_nowait")
    with Velad(routers.a.namespace, "", prefix=without) as velad:
        assert "rwf_nowait" in found(velad, "kernel_features", None)["seen"]
    with Velad(routers.a.namespace, '[daemon]\ndisable_features = ["uso"]\n') as velad:
        assert finds_nothing(velad)


@contextmanager
def larger_than_the_path(routers: TwoRouters, fragmentation: str) -> Iterator[Ends]:
    with static_circuit(routers, mtu=1500, fragmentation=fragmentation) as both:
        ping(routers.a.namespace, "172.16.16.2", count=2, interval_s=0.2, size=1472)
        yield Ends(both.a.velad, both.b.velad)


@pytest.mark.parametrize(("fragmentation", "words"), [("off", "dropped"), ("ip", "IP fragments")])
def test_doctor_names_an_mtu_above_the_path(
    routers: TwoRouters, fragmentation: str, words: str
) -> None:
    with larger_than_the_path(routers, fragmentation) as both:
        assert words in found(both.a, "mtu")["seen"]


def test_doctor_names_a_nat_that_lets_nothing_in(routers: TwoRouters) -> None:
    remote = "198.51.101.1"
    routers.b.namespace.run("ip", "address", "add", f"{remote}/32", "dev", "eth0")
    routers.a.namespace.run("ip", "route", "add", remote, "dev", "eth0")
    config_a = asking(remote, keepalive=40.0)
    with ends(routers, config_a, policy(sources=["10.201.0.0/24"])) as both:
        wait_until_up(both)

        assert "40 s apart" in found(both.a, "nat")["seen"]
