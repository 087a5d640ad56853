"""What the other end does not allow: nothing is made there, and the initiator says why."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.autoconfigured import Ends, asking, circuit, ends, interfaces, policy, wait_until_up
from lab.circuit import MAC_B, NAME, circuit_table
from lab.daemon import Velad
from lab.dnsmasq import name_server
from lab.errors import LabError
from lab.link import Interface, bridge
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

KEY = "a key for the test, 32 characters\n"
OTHER_KEY = "another key, also of 32 characters\n"


def key_file(directory: Path, key: str, mode: int = 0o600) -> str:
    path = directory / f"key-{mode:o}-{key[:7].strip()}"
    path.write_text(key)
    path.chmod(mode)
    return str(path)


def reason_of(both: Ends, state: str) -> str:
    """Return why A's circuit is in a state, as soon as it is and there is a reason."""

    def told(status: Mapping[str, Any]) -> bool:
        (entry,) = status["circuits"]
        return bool(entry["state"] == state and entry["reason"])

    (entry,) = both.a.wait_for(told, 8, f"a reason to be {state}")["circuits"]
    return str(entry["reason"])


def nothing_is_made_on(both: Ends, routers: TwoRouters, *others: str) -> bool:
    names = [entry["name"] for entry in both.b.status()["circuits"]]
    made = interfaces(routers.b.namespace) - {"lo", "eth0", *others}
    return not made and set(names) <= set(others)


REJECTED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "address outside networks": (
        {"networks": ["10.0.0.0/8"]},
        {},
        "address 172.16.16.2/30 lies in none of autoconfigure.networks on the other end: "
        "10.0.0.0/8",
    ),
    "subnet wider than networks": (
        {"networks": ["172.16.16.0/30", "fd00::/8"]},
        {"addresses": ["172.16.16.2/24"]},
        "address 172.16.16.2/24 lies in none of autoconfigure.networks on the other end: "
        "172.16.16.0/30, fd00::/8",
    ),
    "no networks": (
        {"networks": None},
        {},
        "address 172.16.16.2/30 lies in none of autoconfigure.networks on the other end, "
        "which is empty",
    ),
    "bridge not listed": (
        {},
        {"bridge": "br-wan"},
        "bridge 'br-wan' is none of autoconfigure.bridges on the other end: br-lan",
    ),
    "bridge listed and absent": (
        {},
        {"bridge": "br-lan"},
        "on the other end, br-lan: there is no interface of this name",
    ),
    "interface name not matching": (
        {},
        {"interface": "eth1"},
        "interface 'eth1' does not match autoconfigure.interfaces on the other end, 'vela*'",
    ),
    "interface name taken": (
        {"interfaces": "*"},
        {"interface": "eth0"},
        "on the other end, eth0: an interface of this name exists already",
    ),
    "no circuits": (
        {"max_circuits": 0},
        {},
        "autoconfigure.max_circuits is 0 on the other end, and 0 are set up",
    ),
    "not accepting": ({"accept": False}, {}, "autoconfigure.accept is false on the other end"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_request_against_policy_is_rejected_with_the_reason(routers: TwoRouters, case: str) -> None:
    changes, peer, reason = REJECTED[case]
    with ends(routers, asking(routers.b.ipv4, peer=peer), policy(**changes)) as both:
        assert reason_of(both, "rejected") == reason
        assert nothing_is_made_on(both, routers)
        assert not (both.b.directory / "state" / "circuits.json").exists()


def test_request_that_fits_after_a_reload_of_the_policy_is_accepted(routers: TwoRouters) -> None:
    with ends(routers, asking(routers.b.ipv4), policy(accept=False)) as both:
        reason_of(both, "rejected")

        both.b.configure(policy())
        both.b.control("reload")
        # Asked again after 2, 4, 8 seconds.
        wait_until_up(both)


def test_second_circuit_beyond_the_number_is_rejected_and_the_first_stays(
    routers: TwoRouters,
) -> None:
    second = asking(
        routers.b.ipv4, name="vela1", id=2, addresses=None, peer={"addresses": ["172.16.17.2/30"]}
    )
    with circuit(routers, policy_b=policy(max_circuits=1)) as both:
        both.a.configure(asking(routers.b.ipv4) + second)
        both.a.control("reload")

        entry = both.a.wait_for_state("vela1", "rejected")
        assert entry["reason"] == (
            "autoconfigure.max_circuits is 1 on the other end, and 1 are set up"
        )
        assert nothing_is_made_on(both, routers, "vela0")
        assert both.b.circuit("vela0")["state"] == "up"


def test_circuit_id_of_a_static_circuit_there_gets_no_second_one(routers: TwoRouters) -> None:
    static = circuit_table(routers.a.ipv4, mac=MAC_B, peer_mac=None)
    config = asking(routers.b.ipv4, peer={"interface": "vela5"})
    with ends(routers, config, policy() + static) as both:
        assert reason_of(both, "rejected") == (
            "on the other end, vela5: circuits.vela5.id: 1 toward 10.201.0.1 is taken by "
            "circuits.vela0.id; another one would be right"
        )
        assert nothing_is_made_on(both, routers, "vela0")
        assert both.b.circuit("vela0")["origin"] == "config"


def test_circuit_that_cannot_be_carried_there_is_rejected_and_never_up(
    routers: TwoRouters, tmp_path: Path
) -> None:
    """Its id is a static circuit's there, whose name has the same address."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    routers.b.namespace.resolv_conf = resolv_conf
    static = circuit_table("router1.example.net", mac=MAC_B, peer_mac=None)
    with (
        name_server(routers.b.namespace, "router1.example.net,10.201.0.1"),
        Velad(routers.b.namespace, policy() + static) as b,
    ):
        b.wait_for_state("vela0", "unmonitored")
        with Velad(routers.a.namespace, asking(routers.b.ipv4, peer={"interface": "vela5"})) as a:
            both = Ends(a, b)
            assert reason_of(both, "rejected") == (
                "on the other end, vela0 already uses circuit id 1 toward 10.201.0.1"
            )
            assert nothing_is_made_on(both, routers, "vela0")
            assert "state=up" not in a.log()


def test_circuits_that_cannot_be_kept_there_are_rejected_and_never_up(routers: TwoRouters) -> None:
    """The second one's saving waits for what else comes."""
    second = asking(routers.b.ipv4, name="vela1", id=2, addresses=[], peer={"addresses": []})
    with Velad(routers.b.namespace, policy()) as b:
        state = b.directory / "state"
        state.write_text("in the way")
        with Velad(routers.a.namespace, asking(routers.b.ipv4) + second) as a:
            told = f"on the other end, {state} is not a directory"
            a.wait_for(
                lambda status: [each["reason"] for each in status["circuits"]] == [told] * 2,
                10,
                told,
            )
            assert "state=up" not in a.log()
            assert nothing_is_made_on(Ends(a, b), routers)

            state.unlink()
            wait_until_up(Ends(a, b), a="vela0", b="vela0")
            wait_until_up(Ends(a, b), a="vela1", b="vela1")


@pytest.mark.parametrize("which", ["initiator", "responder"])
def test_circuit_whose_interface_is_taken_later_is_down_on_the_other_end(
    routers: TwoRouters, which: str
) -> None:
    with circuit(routers) as both:
        velad, other = both if which == "initiator" else (both.b, both.a)
        os.kill(velad.pid, signal.SIGSTOP)
        velad.namespace.run("ip", "link", "del", NAME)
        velad.namespace.run("ip", "link", "add", NAME, "type", "bridge")
        os.kill(velad.pid, signal.SIGCONT)

        velad.wait_for_state(NAME, "failed")
        told = f"on the other end, {NAME}: an interface of this name exists already"
        other.wait_for(lambda status: status["circuits"][0]["reason"] == told, 10, told)
        assert other.circuit(NAME)["state"] == "rejected"
        assert not Interface(other.namespace, NAME).carrier

        velad.namespace.run("ip", "link", "del", NAME)
        wait_until_up(both)
        assert [Interface(each.namespace, NAME).carrier for each in both] == [True, True]


def test_name_and_addresses_of_a_circuit_there_are_not_given_twice(routers: TwoRouters) -> None:
    static = circuit_table(
        "10.201.0.77", mac=MAC_B, peer_mac=None, addresses=["172.16.16.2/30", "fd00:16::2/64"]
    )
    with ends(routers, asking(routers.b.ipv4), policy() + static) as both:
        assert reason_of(both, "rejected") == "on the other end, there is a circuit vela0 already"
        assert nothing_is_made_on(both, routers, "vela0")

        both.a.configure(asking(routers.b.ipv4, peer={"interface": "vela5"}))
        both.a.control("reload")

        # Of the two addresses the first; a reason is one line.
        reason = (
            "on the other end, vela5: circuits.vela5.addresses: 172.16.16.2 is taken by "
            "circuits.vela0.addresses; another one would be right"
        )
        both.a.wait_for(lambda status: status["circuits"][0]["reason"] == reason, 8, reason)
        assert nothing_is_made_on(both, routers, "vela0")


UNANSWERED = (
    "no answer from 10.201.0.2:48621: no velad there, a firewall between, "
    "or its autoconfigure does not list this machine or has another key"
)


@pytest.mark.parametrize(
    ("responder", "counted"),
    [
        ("", "control_disabled"),
        (policy(sources=["10.201.0.77", "2001:db8::/32"]), "control_unlisted"),
        (policy(sources=None), "control_unlisted"),
    ],
    ids=["no autoconfigure", "source not listed", "neither key nor sources"],
)
def test_request_from_whom_nobody_lets_in_is_not_answered(
    routers: TwoRouters, responder: str, counted: str
) -> None:
    with ends(routers, asking(routers.b.ipv4), responder) as both:
        assert reason_of(both, "connecting") == UNANSWERED
        both.b.wait_for(lambda status: status["rx_dropped"][counted] >= 3, 5)
        assert nothing_is_made_on(both, routers)


def test_key_of_both_ends_lets_in_whom_no_list_names(routers: TwoRouters, tmp_path: Path) -> None:
    key = key_file(tmp_path, KEY)
    with circuit(routers, policy_b=policy(sources=None, key_file=key), key_file=key) as both:
        assert [velad.circuit(NAME)["state"] for velad in both] == ["up", "up"]


def test_key_for_all_circuits_is_used_where_a_circuit_names_none(
    routers: TwoRouters, tmp_path: Path
) -> None:
    key = key_file(tmp_path, KEY)
    with circuit(
        routers,
        policy_a=policy(key_file=key, accept=False),
        policy_b=policy(key_file=key),
    ) as both:
        assert [velad.circuit(NAME)["state"] for velad in both] == ["up", "up"]


@pytest.mark.parametrize("key", [OTHER_KEY, None], ids=["wrong key", "no key"])
def test_message_without_the_right_key_is_counted_and_not_answered(
    routers: TwoRouters, tmp_path: Path, key: str | None
) -> None:
    responder = policy(key_file=key_file(tmp_path, KEY))
    own: dict[str, Any] = {} if key is None else {"key_file": key_file(tmp_path, key)}
    with ends(routers, asking(routers.b.ipv4, **own), responder) as both:
        assert reason_of(both, "connecting") == UNANSWERED
        both.b.wait_for(lambda status: status["rx_dropped"]["control_tag"] >= 3, 5)
        assert nothing_is_made_on(both, routers)


def test_initiator_that_hears_wrong_tags_says_so(routers: TwoRouters, tmp_path: Path) -> None:
    """Both ends configure the circuit, so each hears the other one's requests."""
    config_a = asking(routers.b.ipv4, key_file=key_file(tmp_path, KEY))
    config_b = asking(routers.a.ipv4, addresses=None, key_file=key_file(tmp_path, OTHER_KEY))
    with ends(routers, config_a, config_b) as both:
        assert reason_of(both, "connecting") == (
            "wrong key from 10.201.0.2:48621: its messages carry a wrong tag, "
            "so the keys of both ends differ"
        )


@pytest.mark.parametrize("table", ["autoconfigure", "circuits.vela0"])
def test_key_that_others_can_read_is_refused(
    routers: TwoRouters, tmp_path: Path, table: str
) -> None:
    key = key_file(tmp_path, KEY, mode=0o644)
    if table == "autoconfigure":
        config = policy(key_file=key)
    else:
        config = asking(routers.b.ipv4, key_file=key)
    velad = Velad(routers.a.namespace, config)
    with pytest.raises(LabError, match="exited with status 2 before it was ready"), velad:
        pass

    assert velad.log() == (
        f"{velad.config_path}: {table}.key_file: {key} gives others access (mode 0644); "
        "run chmod 600 on it\n"
    )
    assert interfaces(routers.a.namespace) == {"lo", "eth0"}


def test_bridge_that_is_listed_and_there_is_joined(routers: TwoRouters) -> None:
    bridge(routers.b.namespace, "br-lan")
    with circuit(routers, peer={"bridge": "br-lan", "addresses": None}) as both:
        assert both.b.circuit(NAME)["state"] == "up"
