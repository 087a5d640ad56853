"""What is usually wrong: velad's status and configuration, and facts of the host, as findings.

Pure, but for the local address toward a remote, which is asked for by a function that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from vela.reasons import Cause

from ..states import WELL
from . import no_answer
from .client import Document
from .host import Host
from .status import asked
from .text import duration, plural

# RFC 4787, REQ-5 wants two minutes; many NATs forget a UDP mapping after 30 s.
NAT_MEMORY_S = 30.0

LocalAddress = Callable[[str, int], str | None]
"""Returns the address from which this host sends to an address and port; None: no route."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong."""

    circuit: str | None
    """None: it concerns the machine."""
    check: str
    seen: str
    advice: str


def diagnose(
    status: Document,
    config: Document,
    host: Host,
    local_address: LocalAddress,
    only: Container[str] | None = None,
) -> Iterator[Finding]:
    """Yield what is wrong with the machine, and with circuits of a status.

    config: as `velactl show-config --json` has it under "config".
    only: the names of the circuits to look at; None: all.
    """
    yield from _of_machine(status, config, host)
    port = status["listen"][0].rpartition(":")[2]  # all have the same
    tables = config["circuits"]
    for circuit in status["circuits"]:
        if circuit["state"] == "disabled" or not (only is None or circuit["name"] in only):
            continue
        trouble = circuit["state"] not in WELL
        yield from _by_reason(circuit, status, tables, trouble, port)
        table = tables.get(circuit["name"], {})
        yield from _of_nat(circuit, table, trouble, local_address, port)
        yield from _of_frames(circuit, host, trouble)


# The machine.


def _of_machine(status: Document, config: Document, host: Host) -> Iterator[Finding]:
    if host.is_elsewhere:
        yield Finding(
            None,
            "namespace",
            f"velad, pid {status['pid']}, runs in another network namespace than this command; "
            "rp_filter and local addresses were not looked at",
            "run velactl doctor in its namespace: ip netns exec NAME velactl doctor",
        )
    if host.clock < host.installed_at:
        yield Finding(
            None,
            "clock",
            "the clock is earlier than the installation of VELA, so times in the log are wrong",
            "set the clock, and let NTP keep it",
        )
    buffer = status["receive_buffer"]
    if buffer["granted_bytes"] < buffer["wanted_bytes"]:
        yield Finding(
            None,
            "receive_buffer",
            f"the kernel granted receive buffers of {buffer['granted_bytes']} of "
            f"{buffer['wanted_bytes']} bytes, so bursts are lost; net.core.rmem_max is "
            f"{'unknown' if host.rmem_max is None else host.rmem_max}",
            f"sysctl -w net.core.rmem_max={buffer['wanted_bytes']}, and restart velad",
        )
    for machine in status.get("wrong_keys", ()):
        yield Finding(
            None,
            "wrong_key",
            f"wrong key from {machine['address']}: {plural(machine['messages'], 'message')}, "
            f"the last {duration(machine['last_seconds'])} ago; {machine['error']}",
            _KEYS,
        )
    python = [each["name"] for each in status["circuits"] if _engine(each) == "python"]
    if python and config["daemon"]["engine"] != "python":
        yield Finding(
            None,
            "engine",
            f"the Python engine carries the frames of {', '.join(python)}, at a tenth of the rate",
            'build the package with a C compiler, or write engine = "python"',
        )
    disabled = set(config["daemon"]["disable_features"] or ())
    missing = [each for each in status["unused_features"] if each not in disabled]
    if missing and not python and config["daemon"]["engine"] != "python":
        yield Finding(
            None,
            "kernel_features",
            f"this kernel lacks {', '.join(missing)}, so velad uses slower ways",
            "run a newer kernel; docs/configuration.md says from which version each is there",
        )


def _engine(circuit: Document) -> str | None:
    return circuit["worker"]["engine"] if circuit["worker"] else None


# A circuit.


def _of_frames(circuit: Document, host: Host, trouble: bool) -> Iterator[Finding]:
    name = circuit["name"]
    strict = {name} if name in host.strict_interfaces else set()
    if trouble and circuit["family"] == "ipv4":
        strict |= host.strict_interfaces
    if strict and host.reverse_path_drops:
        yield Finding(
            name,
            "rp_filter",
            f"rp_filter is strict on {', '.join(sorted(strict))}, and has dropped "
            f"{host.reverse_path_drops} packets whose sender is routed elsewhere",
            " ".join(
                ["sysctl -w", *(f"net.ipv4.conf.{each}.rp_filter=2" for each in sorted(strict))]
            ),
        )
    counters = circuit["counters"]
    large = counters["tx_dropped"].get("too_large", 0)
    if large:
        yield Finding(
            name,
            "mtu",
            f"{large} frames were dropped: they were too large for the path of "
            f"{circuit['path_mtu']} bytes",
            'write mtu = "auto", or fragmentation = "auto"',
        )
    if counters["tx_fragmented"]:
        yield Finding(
            name,
            "mtu",
            f"{counters['tx_fragmented']} datagrams left as IP fragments, which is slow, and "
            "which firewalls often drop",
            'write mtu = "auto", or fragmentation = "auto" or "tunnel"',
        )


def _of_nat(
    circuit: Document, table: Document, trouble: bool, local_address: LocalAddress, port: str
) -> Iterator[Finding]:
    if circuit["remote_address"] is None:
        return
    local = local_address(circuit["remote_address"], circuit["remote_port"])
    if local is None or not _is_translated(local, circuit["remote_address"]):
        return
    seen = f"this host's address {local} is private, and {circuit['remote_address']} is public: "
    keepalive = table.get("keepalive") or 0
    if circuit["origin"] == "peer" or table.get("autoconfigure") is False:
        if trouble:
            yield Finding(
                circuit["name"],
                "nat",
                f"{seen}a NAT is between, which lets in nothing that was not asked for",
                f"let this machine ask for the circuit, or forward UDP {port} at the NAT",
            )
    elif keepalive >= NAT_MEMORY_S:
        yield Finding(
            circuit["name"],
            "nat",
            f"{seen}a NAT is between; it may forget the circuit between keepalives, "
            f"{keepalive:g} s apart",
            f"write a keepalive of less than {NAT_MEMORY_S:g} s",
        )


def _is_translated(local: str, remote: str) -> bool:
    here, there = ip_address(local), ip_address(remote)
    return here.version == 4 and here.is_private and there.is_global


# What to do, where several reasons have the same remedy.
_ROUTE = (
    "give the remote a route by the underlay, more specific than the one named: "
    "ip route add REMOTE via GATEWAY; and do not let a routing protocol learn another one"
)
_KEYS = (
    "compare the key files of both machines (sha256sum); with public keys: peer_key here with "
    "velad --show-key there, and autoconfigure.peers there with velad --show-key here"
)
_MAC = "give one end another `mac`, or leave the key out"
_BY_HAND = "undo that, or change the configuration"

# By the code of a reason: the check, and what to do.
_REASONS: dict[str, tuple[str, str]] = {
    Cause.ROUTE_LOOP.code: ("route", _ROUTE),
    Cause.ROUTE_CIRCLE.code: ("route", _ROUTE),
    Cause.WRONG_KEY.code: ("wrong_key", _KEYS),
    Cause.WRONG_HANDSHAKE.code: ("wrong_key", _KEYS),
    Cause.FRAMES_BLOCKED.code: (
        "firewall",
        "let UDP pass both ways between the ports that both ends use, on both machines and between",
    ),
    Cause.AWAITING_CALL.code: (
        "awaiting_call",
        "look at the other end: its `remote` is this machine, with the same id and key; and let "
        "UDP {port} in here, on this machine and on the way to it",
    ),
    Cause.NO_KEY.code: ("key", "give the circuit a key_file, or [autoconfigure] its own back"),
    Cause.DUPLICATE_MAC.code: ("duplicate_mac", _MAC),
    Cause.REFUSED_MAC.code: ("duplicate_mac", _MAC),
    Cause.BRIDGE_MISSING.code: (
        "missing_bridge",
        "create the bridge (ip link add NAME type bridge; ip link set NAME up); velad then joins",
    ),
    Cause.NAME_UNRESOLVED.code: ("name", "check the name server, or the name"),
    Cause.INTERFACE_RENAMED.code: ("interface", _BY_HAND),
    Cause.INTERFACE_DOWN.code: ("interface", _BY_HAND),
    Cause.INTERFACE_MTU.code: ("interface", _BY_HAND),
    Cause.INTERFACE_OUT_OF_BRIDGE.code: ("interface", _BY_HAND),
    Cause.INTERFACE_MOVED.code: ("interface", _BY_HAND),
    Cause.INTERFACE_PORT.code: ("interface", _BY_HAND),
    Cause.INTERFACE_QUEUE.code: ("interface", _BY_HAND),
    Cause.INTERFACE_ELSEWHERE.code: ("interface", _BY_HAND),
    Cause.HOOK_FAILED.code: (
        "hook",
        "look for hook_output in the log, mend the program, and velactl restart the circuit",
    ),
    Cause.RATE_NOT_LIMITED.code: ("rate", "remove what is in the way, or the circuit's `rate`"),
}

# By state, where no reason says more.
_STATES = {
    "resolving": ("name", "check the name server, or the name"),
    "connecting": ("firewall", "wait for three tries; then velad says what may be wrong"),
    "down": ("down", "restore the remote or the network; velad asks without end"),
    "rejected": ("rejected", "change the circuit here, or [autoconfigure] on the other machine"),
    "failed": ("failed", "remove the cause; velad tries again"),
}


def _by_reason(
    circuit: Document, status: Document, tables: Document, trouble: bool, port: str
) -> Iterator[Finding]:
    """Yield a finding for each reason that an operator has to act on; for trouble at least one."""
    name, state = circuit["name"], circuit["state"]
    found = False
    # A velad from before an update has none.
    for reason in circuit.get("reasons", ()):
        if reason["code"] in _REASONS:
            found = True
            check, advice = _REASONS[reason["code"]]
            advice = advice.replace("{port}", port)
            yield Finding(name, check, f"{state}: {reason['text']}", advice)
        elif reason["code"] == Cause.NO_ANSWER.code:
            found = True
            yield _of_silence(circuit, status, tables, f"{state}: {reason['text']}", port)
    if trouble and not found:
        check, advice = _STATES.get(state, ("state", "see docs/operating.md"))
        why = f": {circuit['reason']}" if circuit["reason"] else f", toward {circuit['remote']}"
        yield Finding(
            name, check, state + why, "; ".join(filter(None, (advice, _if_gone(circuit))))
        )


def _of_silence(
    circuit: Document, status: Document, tables: Document, seen: str, port: str
) -> Finding:
    """Return what there is to say of a remote that does not answer."""
    if circuit.get("asking"):
        seen += f"; {asked(circuit['asking'])}"
    out = no_answer.excluded(circuit, status, tables)
    if out:
        seen += f"; {no_answer.shown(out)}"
    left = [each for each in no_answer.Cause if each not in out]
    ports = _ports(port, str(circuit["remote_port"]))
    questions = " ".join(each.value for each in left).format(ports=ports)
    gone = _if_gone(circuit)
    advice = f"there are an address and a route. {questions}" + (f" Or {gone}" if gone else "")
    is_key = no_answer.Cause.KEY in left and no_answer.Cause.FIREWALL not in left
    return Finding(circuit["name"], "wrong_key" if is_key else "firewall", seen, advice)


def _if_gone(circuit: Document) -> str:
    """Return what to do with a circuit that another machine set up, if that never comes back."""
    if circuit["origin"] != "peer" or circuit["state"] not in ("down", "connecting", "resolving"):
        return ""
    name = circuit["name"]
    return f"if {circuit['remote']} is gone for good, remove the circuit: velactl delete {name}"


def _ports(here: str, there: str) -> str:
    return f"UDP {here}" if here == there else f"UDP {here} (here) or {there} (there)"
