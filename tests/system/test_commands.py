"""velactl's commands that change circuits, on two running machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lab.autoconfigured import (
    Ends,
    Settings,
    addresses,
    asking,
    circuit,
    ends,
    interfaces,
    policy,
    wait_until_up,
)
from lab.circuit import ADDRESSES_A, NAME
from lab.daemon import Velad, velactl, waits_from_now
from lab.link import Interface, bridge
from lab.load import ping
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

ADD = (
    *("add", "vela7", "--remote", "10.201.0.2", "--keepalive", "1"),
    *("--address", "10.9.0.1/30", "--peer-address", "10.9.0.2/30"),
    *("--peer-interface", "vela7"),
)
NONE: dict[str, object] = {"addresses": []}
TAKEN_DOWN = "vela0 was taken down on the other end"
NETWORKS = ["10.9.0.0/16", "172.16.0.0/12", "fd00::/8"]


def stored(velad: Velad) -> dict[str, object]:
    document = json.loads((velad.directory / "state" / "circuits.json").read_text())
    found: dict[str, object] = document["circuits"]
    return found


def carriers(both: Ends, name: str) -> list[bool]:
    return [Interface(velad.namespace, name).carrier for velad in both]


def refused(velad: Velad, *argv: str) -> str:
    """Return the one line with which velactl fails; the status has the same circuits after it."""
    before = [(entry["name"], entry["state"]) for entry in velad.status()["circuits"]]
    made = interfaces(velad.namespace)
    done = velad.control(*argv, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("velactl: ")
    assert done.stderr.count("\n") == 1
    assert [(entry["name"], entry["state"]) for entry in velad.status()["circuits"]] == before
    assert interfaces(velad.namespace) == made
    return done.stderr.removeprefix("velactl: ").rstrip("\n")


@pytest.mark.parametrize("first", ["a", "b"])
def test_added_circuit_carries_frames_outlives_restarts_and_is_deleted_on_both(
    routers: TwoRouters, first: str
) -> None:
    with ends(routers, "", policy(networks=NETWORKS)) as both:
        asked_at, waited_s = time.time(), waits_from_now(*both)
        done = both.a.control(*ADD)
        added_at = time.time()
        assert done.stdout == "vela7: id 1, toward 10.201.0.2\n"
        for velad in both:
            up_at = velad.logged_at("circuit_state_changed", asked_at, circuit="vela7", state="up")
            assert up_at - added_at - waited_s() < 1.0
        wait_until_up(both, a="vela7", b="vela7")
        assert ping(routers.a.namespace, "10.9.0.2", count=2, interval_s=0.2).received == 2
        assert [velad.circuit("vela7")["origin"] for velad in both] == ["command", "peer"]

        order = (both.a, both.b) if first == "a" else (both.b, both.a)
        for velad in order:
            assert velad.stop() == 0
        for velad in order:
            velad.start()
        wait_until_up(both, a="vela7", b="vela7")
        assert ping(routers.a.namespace, "10.9.0.2", count=2, interval_s=0.2).received == 2

        both.a.control("delete", "vela7")
        assert interfaces(routers.a.namespace) == {"lo", "eth0"}
        both.b.wait_for(lambda status: not status["circuits"], 10, "its end to go")
        assert interfaces(routers.b.namespace) == {"lo", "eth0"}
        assert [stored(velad) for velad in both] == [{}, {}]


def test_deleted_circuit_can_be_added_again_at_once(routers: TwoRouters) -> None:
    with ends(routers, "", policy(networks=NETWORKS)) as both:
        for _ in range(3):
            both.a.control(*ADD)
            wait_until_up(both, a="vela7", b="vela7")
            both.a.control("delete", "vela7")
            both.b.wait_for(lambda status: not status["circuits"], 10, "its end to go")


def test_circuit_deleted_while_the_other_end_was_away_goes_when_it_is_back(
    routers: TwoRouters,
) -> None:
    with ends(routers, policy(), policy(networks=NETWORKS)) as both:
        both.a.control(*ADD)
        wait_until_up(both, a="vela7", b="vela7")
        assert both.b.stop() == 0
        both.a.control("delete", "vela7")

        both.b.start()

        eventually(lambda: "vela7" not in interfaces(routers.b.namespace), 10, "vela7 to go on b")
        eventually(lambda: stored(both.b) == {}, 10, "vela7 to be forgotten on b")


def test_added_circuits_get_the_next_free_id(routers: TwoRouters) -> None:
    config = asking(routers.b.ipv4, id=2)
    with ends(routers, config, policy(networks=NETWORKS)) as both:
        said = [
            both.a.control("add", f"vela{number}", "--remote", "10.201.0.2").stdout
            for number in (7, 8)
        ]
        both.a.control("delete", "vela7")
        said.append(both.a.control("add", "vela9", "--remote", "10.201.0.2").stdout)
        other = both.a.control("add", "vela10", "--remote", "10.201.0.9", "--no-wait").stdout

        assert said == [
            "vela7: id 1, toward 10.201.0.2\n",
            "vela8: id 3, toward 10.201.0.2\n",
            "vela9: id 1, toward 10.201.0.2\n",
        ]
        assert other == "vela10: id 1, toward 10.201.0.9\n"


def test_added_circuit_gets_an_id_that_a_remote_written_otherwise_does_not_have(
    routers: TwoRouters,
) -> None:
    with ends(routers, asking("fd00:201::2"), "") as both:
        done = both.a.control("add", "vela7", "--remote", "[FD00:201:0::2]:48621", "--no-wait")

        assert done.stdout == "vela7: id 2, toward [FD00:201:0::2]:48621\n"


@pytest.mark.parametrize("with_policy", [False, True], ids=["asks only", "may be asked"])
def test_circuit_taken_down_is_disabled_here_and_down_there_until_up(
    routers: TwoRouters, with_policy: bool
) -> None:
    policy_a = policy() if with_policy else ""
    with circuit(routers, policy_a=policy_a) as both:
        both.a.control("down", NAME)

        entry = both.a.circuit(NAME)
        assert (entry["state"], entry["worker"]) == ("disabled", None)
        entry = both.b.wait_for_state(NAME, "down")
        assert entry["reason"] == "the other end is stopping"
        assert carriers(both, NAME) == [False, False]
        # Its requests to resume change nothing.
        both.b.wait_for(
            lambda status: status["circuits"][0]["reason"] == TAKEN_DOWN, 10, TAKEN_DOWN
        )
        assert both.b.circuit(NAME)["state"] == "down"

        both.a.stop()
        both.a.start()
        assert both.a.circuit(NAME)["state"] == "disabled"
        assert carriers(both, NAME) == [False, False]

        both.a.control("up", NAME)
        wait_until_up(both)
        assert carriers(both, NAME) == [True, True]
        assert ping(routers.a.namespace, "172.16.16.2", count=2, interval_s=0.2).received == 2


def test_circuit_taken_down_by_the_responder_says_so_to_the_initiator(
    routers: TwoRouters,
) -> None:
    with circuit(routers) as both:
        both.b.control("down", NAME)

        assert both.b.circuit(NAME)["state"] == "disabled"
        entry = both.a.wait_for(
            lambda status: status["circuits"][0]["reason"] == TAKEN_DOWN, 10, "a refusal"
        )["circuits"][0]
        assert entry["state"] == "down"
        assert carriers(both, NAME) == [False, False]
        assert interfaces(routers.b.namespace) == {"lo", "eth0", "vela0"}

        both.b.control("up", NAME)
        wait_until_up(both)


def test_circuit_that_is_changed_while_it_is_taken_down_stays_so(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        both.a.control("down", NAME)

        both.a.configure(asking(routers.b.ipv4, mtu=1300))
        both.a.control("reload")

        assert both.a.circuit(NAME)["state"] == "disabled"
        both.a.stop()
        both.a.start()
        assert both.a.circuit(NAME)["state"] == "disabled"
        both.a.control("up", NAME)
        wait_until_up(both)
        assert both.b.circuit(NAME)["mtu"] == 1300


def test_circuit_that_was_taken_down_and_gone_is_up_for_good_after_up(routers: TwoRouters) -> None:
    config = asking(routers.b.ipv4)
    with Velad(routers.a.namespace, config) as velad:
        velad.control("down", NAME)
        velad.stop()
        velad.configure("")
        velad.start()

        velad.configure(config)
        velad.control("reload")
        assert velad.circuit(NAME)["state"] == "disabled"
        velad.control("up", NAME)
        velad.stop()
        velad.start()
        assert velad.circuit(NAME)["state"] != "disabled"

        # Taken out of the file, it is forgotten.
        velad.control("down", NAME)
        velad.configure("")
        velad.control("reload")
        velad.stop()
        velad.start()
        velad.configure(config)
        velad.control("reload")
        assert velad.circuit(NAME)["state"] != "disabled"


def test_circuit_taken_down_is_not_set_up_anew_when_its_other_end_has_another_address(
    routers: TwoRouters, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("a key for the test, 32 characters\n")
    key.chmod(0o600)
    listen = '[daemon]\nlisten = ["{}"]\n'
    config = asking(routers.b.ipv4, key_file=str(key))
    both_policies = policy(key_file=str(key))
    routers.a.namespace.run("ip", "addr", "add", "10.201.0.77/24", "dev", "eth0")
    with ends(routers, listen.format("10.201.0.1") + config, both_policies) as both:
        wait_until_up(both)
        both.b.control("down", NAME)
        both.a.stop()

        both.a.configure(listen.format("10.201.0.77") + config)
        both.a.start()

        both.a.wait_for(
            lambda status: status["circuits"][0]["reason"] == TAKEN_DOWN, 10, TAKEN_DOWN
        )
        entry = both.b.circuit(NAME)
        assert (entry["state"], entry["remote"]) == ("disabled", "10.201.0.1")


def test_commands_that_cannot_be_done_say_why_and_change_nothing(routers: TwoRouters) -> None:
    with ends(routers, asking(routers.b.ipv4), policy()) as both:
        wait_until_up(both)
        a, b = both
        to = ("--remote", "10.201.0.2")

        for command in ("delete", "up", "down", "restart", "status"):
            assert refused(a, command, "vela9") == (
                "there is no circuit vela9; did you mean vela0?"
            )
        assert refused(a, "add", "vela0", *to) == "there is a circuit vela0 already"
        assert refused(a, "add", "eth0", *to) == "eth0: an interface of this name exists already"
        assert refused(a, "delete", "vela0") == (
            "vela0 is in the configuration file; remove it there, and reload"
        )
        assert refused(b, "delete", "vela0") == (
            "vela0 was set up by 10.201.0.1, and is up; delete it there. "
            "Is that machine gone for good? velactl down vela0, then velactl delete vela0"
        )
        assert refused(a, "add", "vela9", *to, "--id", "1") == (
            "vela9: circuits.vela9.id: 1 toward 10.201.0.2 is taken by circuits.vela0.id; "
            "another one would be right"
        )
        assert refused(a, "add", "vela9", *to, "--bridge", "br9") == (
            "br9: there is no interface of this name"
        )
        assert refused(a, "add", "vela9", *to, "--key-file", "/nonexistent/key") == (
            "/nonexistent/key cannot be read: No such file or directory; create it"
        )
        about = [line for line in a.log().splitlines() if "vela9" in line]
        assert all("] command_refused " in line for line in about)


def test_circuits_of_others_are_back_before_the_peer_has_spoken(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        both.a.stop()
        # It is merely down: kept.
        both.b.wait_for_state(NAME, "down")
        assert set(stored(both.b)) == {NAME}
        both.b.stop()
        assert interfaces(routers.b.namespace) == {"lo", "eth0"}

        both.b.start()

        entry = both.b.circuit(NAME)
        assert entry["state"] in ("resolving", "connecting", "down")
        assert (entry["origin"], entry["id"]) == ("peer", 1)
        assert addresses(routers.b.namespace, NAME) == {"172.16.16.2/30", "fd00:16::2/64"}
        assert carriers_of(both.b) is False

        both.a.start()
        wait_until_up(both)


def carriers_of(velad: Velad) -> bool:
    return Interface(velad.namespace, NAME).carrier


def test_responder_that_restarts_brings_its_circuits_back_by_itself(routers: TwoRouters) -> None:
    with circuit(routers, keepalive=5.0) as both:
        both.b.kill()
        killed_at = time.time()
        both.b.start()
        waited_s = waits_from_now(*both)
        started_at = both.b.logged_at("daemon_started", killed_at)

        for velad in both:
            up_at = velad.logged_at("circuit_state_changed", killed_at, circuit=NAME, state="up")
            assert up_at - started_at - waited_s() < 2.0
        wait_until_up(both)


def test_circuit_removed_from_the_file_goes_on_both_ends_and_others_stay(
    routers: TwoRouters,
) -> None:
    other = asking(
        routers.b.ipv4,
        name="vela1",
        id=2,
        addresses=["172.16.17.1/30"],
        peer={"addresses": ["172.16.17.2/30"]},
    )
    with ends(routers, asking(routers.b.ipv4) + other, policy()) as both:
        wait_until_up(both)
        wait_until_up(both, a="vela1", b="vela1")
        workers = [velad.worker_pid("vela1") for velad in both]

        both.a.configure(other)
        both.a.reload()

        both.b.wait_for(lambda status: len(status["circuits"]) == 1, 10, "the circuit to go")
        assert interfaces(routers.a.namespace) == {"lo", "eth0", "vela1"}
        assert interfaces(routers.b.namespace) == {"lo", "eth0", "vela1"}
        eventually(lambda: set(stored(both.b)) == {"vela1"}, 10, "the circuit to be forgotten")
        assert [velad.worker_pid("vela1") for velad in both] == workers
        assert [velad.circuit("vela1")["state"] for velad in both] == ["up", "up"]


def test_changed_address_for_the_other_end_is_changed_there(routers: TwoRouters) -> None:
    def config(address: str) -> str:
        other = asking(
            routers.b.ipv4,
            name="vela1",
            id=2,
            addresses=["172.16.17.1/30"],
            peer={"addresses": ["172.16.17.2/30"]},
        )
        return asking(routers.b.ipv4, peer={"addresses": [address]}) + other

    # As many as there are: the one that changes does not count against itself.
    with ends(routers, config("172.16.16.2/30"), policy(max_circuits=2)) as both:
        wait_until_up(both)
        wait_until_up(both, a="vela1", b="vela1")
        workers = [velad.worker_pid("vela1") for velad in both]

        both.a.configure(config("172.16.20.2/30"))
        both.a.control("reload")

        eventually(
            lambda: (
                NAME in interfaces(routers.b.namespace)
                and addresses(routers.b.namespace, NAME) == {"172.16.20.2/30"}
            ),
            10,
            "the new address",
        )
        wait_until_up(both)
        assert [velad.worker_pid("vela1") for velad in both] == workers


@pytest.mark.parametrize(
    ("changed", "peer", "reason"),
    [
        (
            policy() + asking("10.201.0.77", name="vela9", addresses=["172.16.20.2/30"], peer=NONE),
            {"addresses": ["172.16.20.2/30"]},
            "on the other end, vela0: circuits.vela0.addresses: 172.16.20.2 is taken by "
            "circuits.vela9.addresses; another one would be right",
        ),
        (
            policy(accept=False),
            {"addresses": ["172.16.20.2/30"]},
            "autoconfigure.accept is false on the other end",
        ),
        (
            policy(),
            {"bridge": "br-lan"},
            "on the other end, br-lan: there is no interface of this name",
        ),
    ],
    ids=["conflict", "not accepting", "cannot be made"],
)
def test_change_that_the_other_end_refuses_leaves_its_circuit_as_it_was(
    routers: TwoRouters, changed: str, peer: dict[str, object], reason: str
) -> None:
    with circuit(routers) as both:
        both.b.configure(changed)
        both.b.control("reload")
        both.a.configure(asking(routers.b.ipv4, peer=peer))
        both.a.control("reload")

        entry = both.a.wait_for_state(NAME, "rejected")
        assert entry["reason"] == reason
        assert addresses(routers.b.namespace, NAME) == {"172.16.16.2/30", "fd00:16::2/64"}
        assert set(stored(both.b)) == {NAME}
        told = both.b.wait_for_state(NAME, "rejected")["reason"]
        assert (
            told == "the other end wants other settings for this circuit, and this end refuses them"
        )

        # What was wanted before is still to be had.
        both.a.configure(asking(routers.b.ipv4))
        both.a.control("reload")
        wait_until_up(both)


def test_changed_name_for_the_other_end_is_changed_there(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        both.a.configure(asking(routers.b.ipv4, peer={"interface": "vela9"}))
        both.a.control("reload")

        both.b.wait_for_state("vela9", "up")
        assert interfaces(routers.b.namespace) == {"lo", "eth0", "vela9"}
        eventually(lambda: set(stored(both.b)) == {"vela9"}, 10, "the new name to be kept")


def test_changed_id_replaces_the_circuit_on_the_other_end(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        both.a.configure(asking(routers.b.ipv4, id=2))
        both.a.control("reload")

        both.b.wait_for(
            lambda status: (
                [(each["id"], each["state"]) for each in status["circuits"]] == [(2, "up")]
            ),
            10,
            "id 2",
        )
        assert both.a.wait_for_state(NAME, "up")["id"] == 2


def test_changed_remote_takes_the_circuit_from_the_former_one(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        both.a.configure(asking("10.201.0.99"))
        both.a.control("reload")

        both.b.wait_for(lambda status: not status["circuits"], 10, "its end to go")
        assert interfaces(routers.b.namespace) == {"lo", "eth0"}


def test_state_file_that_makes_no_sense_is_set_aside(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        both.b.stop()
        path = both.b.directory / "state" / "circuits.json"
        damaged = path.read_text()[:-20]
        path.write_text(damaged)

        both.b.start()

        assert both.b.control("status").returncode == 0
        assert "state_unreadable" in both.b.log()
        assert (path.parent / "circuits.json.unreadable").read_text() == damaged
        # The initiator asks for it again.
        wait_until_up(both)
        assert set(stored(both.b)) == {NAME}


def test_stored_circuit_that_cannot_be_made_is_shown_and_tried_again(routers: TwoRouters) -> None:
    bridge(routers.a.namespace, "br9")
    away = ("--remote", "10.201.0.9", "--no-wait")
    with Velad(routers.a.namespace, "") as velad:
        velad.control("add", "vela7", *away, "--bridge", "br9")
        velad.control("add", "vela8", *away, "--bridge", "br9")
        velad.control("down", "vela7")
        assert velad.stop() == 0
        routers.a.namespace.run("ip", "link", "del", "br9")

        velad.start()

        for name in ("vela7", "vela8"):
            entry = velad.circuit(name)
            assert (entry["state"], entry["origin"]) == ("failed", "command")
            assert entry["reason"] == "br9: there is no interface of this name"
        assert refused(velad, "up", "vela7").startswith(
            "circuit vela7 does not exist at present: br9: "
        )
        assert refused(velad, "add", "vela7", "--remote", "10.201.0.9") == (
            "there is a circuit vela7 already"
        )
        velad.control("delete", "vela8")
        assert set(stored(velad)) == {"vela7"}

        bridge(routers.a.namespace, "br9")
        velad.wait_for_state("vela7", "disabled", timeout_s=15)
        assert [entry["name"] for entry in velad.status()["circuits"]] == ["vela7"]
        assert set(stored(velad)) == {"vela7"}


@pytest.mark.parametrize("kind", ["writable", "fifo", "foreign", "key"])
def test_reload_from_files_that_are_not_trusted_is_refused_at_once(
    routers: TwoRouters, tmp_path: Path, kind: str
) -> None:
    key = tmp_path / "key"
    key.write_text("a key for the test, 32 characters\n")
    key.chmod(0o600)
    with Velad(routers.a.namespace, asking(routers.b.ipv4, key_file=str(key))) as velad:
        path = velad.config_path
        match kind:
            case "writable":
                path.chmod(0o666)
                said = f"{path} can be changed by others (mode 0666); run chmod go-w on it"
            case "fifo":
                path.unlink()
                os.mkfifo(path, 0o600)
                said = f"{path} is not a regular file; name one that is"
            case "foreign":
                os.chown(path, 65534, 65534)
                said = f"{path} belongs to user 65534, not to root; run chown root on it"
            case _:
                key.chmod(0o644)
                said = (
                    f"{path}: circuits.vela0.key_file: {key} gives others access (mode 0644); "
                    "run chmod 600 on it"
                )

        assert refused(velad, "reload") == said


def test_circuit_that_requires_encryption_is_never_made_in_clear(
    routers: TwoRouters, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("a key for the test, 32 characters\n")
    key.chmod(0o600)
    with Velad(routers.a.namespace, asking(routers.b.ipv4)) as velad:
        required = ("add", "vela7", "--remote", "10.201.0.2", "--encryption", "required")

        assert refused(velad, *required) == (
            "velactl add: circuits.vela7.encryption: 'required' needs a key; "
            "peer_key or key_file would be right"
        )
        velad.configure(asking(routers.b.ipv4, key_file=str(key), encryption="required"))
        key.write_text("a key for the test\n")
        assert refused(velad, "reload").endswith("where encryption is required")


def test_ends_that_differ_on_encryption_say_so_and_carry_nothing(
    routers: TwoRouters, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("a key for the test, 32 characters\n")
    key.chmod(0o600)
    keyed: Settings = {"key_file": str(key)}
    encrypted: Settings = {**keyed, "encryption": "required"}
    for ours, theirs, why in (
        (encrypted, keyed, "this end requires encryption, and the other end does not encrypt"),
        (keyed, encrypted, "the other end requires encryption, and this end does not encrypt"),
    ):
        with ends(routers, asking(routers.b.ipv4, **ours), policy(**theirs)) as both:
            entry = both.a.wait_for_state(NAME, "rejected")
            assert entry["reason"] == why
            assert both.b.status()["circuits"] == []


def test_reload_tells_which_circuits_cannot_be_made_and_they_are_tried_again(
    routers: TwoRouters,
) -> None:
    with circuit(routers, policy_a=policy()) as both:
        # The kernel refuses IPv6 addresses of new interfaces.
        routers.a.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        routers.a.namespace.sysctl(f"net/ipv6/conf/{NAME}/disable_ipv6", 1)
        more = [*ADDRESSES_A, "fd00:18::1/64"]
        other = asking(
            routers.b.ipv4, name="vela1", id=2, addresses=["fd00:17::1/64"], peer={"addresses": []}
        )
        both.a.configure(policy() + asking(routers.b.ipv4, addresses=more) + other)
        done = both.a.control("reload", check=False)

        assert done.returncode == 1
        assert done.stderr == (
            "velactl: all else was reloaded, but "
            "vela0: vela0: cannot add address fd00:16::1/64: Permission denied; "
            "vela1: vela1: cannot add address fd00:17::1/64: Permission denied\n"
        )
        assert [each["state"] for each in both.a.status()["circuits"]] == ["failed"] * 2
        # Its other end is not told that it is gone.
        told = "a circuit with this id cannot be made on the other end at present"
        both.b.wait_for(
            lambda status: [each["reason"] for each in status["circuits"]] == [told], 10, told
        )

        routers.a.namespace.sysctl("net/ipv6/conf/default/disable_ipv6", 0)
        assert both.a.control("reload").returncode == 0
        wait_until_up(both)
        wait_until_up(both, a="vela1", b="vela1")


def test_stored_circuit_that_no_longer_fits_the_configuration_is_left_out_and_kept(
    routers: TwoRouters,
) -> None:
    with Velad(routers.a.namespace, "") as velad:
        velad.control("add", "vela7", "--remote", "10.201.0.9", "--no-wait")
        velad.control("add", "vela8", "--remote", "fd00:201::9", "--no-wait")
        both = stored(velad)
        assert velad.stop() == 0

        velad.configure('[daemon]\nlisten = ["10.201.0.1"]\n')
        velad.start()
        assert [entry["name"] for entry in velad.status()["circuits"]] == ["vela7"]
        assert "stored_circuit_not_started" in velad.log()
        assert "circuits.vela8.remote: needs IPv6" in velad.log()
        velad.control("down", "vela7")  # which saves
        assert stored(velad) == both
        assert velad.stop() == 0

        velad.configure("")
        velad.start()
        assert {entry["name"] for entry in velad.status()["circuits"]} == {"vela7", "vela8"}


def test_add_without_a_place_to_keep_it_is_refused_and_leaves_nothing(
    routers: TwoRouters,
) -> None:
    with ends(routers, "", policy(networks=NETWORKS)) as both:
        state = both.a.directory / "state"
        state.write_text("in the way")

        assert refused(both.a, *ADD) == (f"{state} is not a directory")
        assert both.b.status()["circuits"] == []

        state.unlink()
        both.a.control(*ADD)
        wait_until_up(both, a="vela7", b="vela7")


def test_full_state_directory_keeps_what_was_there(routers: TwoRouters, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12288,mode=700", "vlab-state", str(state)], check=True
    )
    try:
        with Velad(routers.a.namespace, "", directory=tmp_path) as velad:
            velad.control("add", "vela7", "--remote", "10.201.0.9", "--no-wait")
            before = stored(velad)
            (state / "other").write_bytes(bytes(4096))

            said = refused(velad, "add", "vela8", "--remote", "10.201.0.9")

            assert said == f"{state}/circuits.json: No space left on device"
            assert stored(velad) == before
            names = {each.name for each in state.iterdir()}
            assert names == {"circuits.json", "machine.key", "other"}
            (state / "other").unlink()
            velad.control("add", "vela8", "--remote", "10.201.0.9", "--no-wait")
            assert set(stored(velad)) == {"vela7", "vela8"}
    finally:
        subprocess.run(["umount", str(state)], check=True)


def test_velad_killed_while_circuits_are_added_leaves_a_whole_file(routers: TwoRouters) -> None:
    with Velad(routers.a.namespace, "") as velad:
        for round_number in range(3):
            added = []
            for number in range(6):
                name = f"vela{round_number}x{number}"
                if number == 5:
                    # Killed while, or right after, this one is saved.
                    os.kill(velad.pid, signal.SIGKILL)
                done = velactl(velad.control_socket, "add", name, "--remote", "10.201.0.9")
                if done.returncode == 0:
                    added.append(name)
            velad.kill()
            kept = stored(velad)
            assert set(added) <= set(kept)

            velad.start()
            assert {entry["name"] for entry in velad.status()["circuits"]} == set(kept)
            assert "state_unreadable" not in velad.log()


def test_help_names_every_command() -> None:
    done = velactl(Path("/nonexistent"), "--help")

    assert done.returncode == 0
    for command in ("status", "add", "delete", "up, down", "reload"):
        assert f"\n  {command} " in done.stdout
    done = velactl(Path("/nonexistent"), "add", "--help")
    assert "--peer-address ADDRESS/LENGTH" in done.stdout
    assert "default: the next free one" in done.stdout
