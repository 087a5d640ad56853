"""The screens of velactl in docs/screens.md, rendered from one recorded run.

`python tests/screens.py` writes that file. `python tests/screens.py --record`, as root, records the
run anew: two routers, and circuits of all kinds. What differs from run to run is fixed then.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vela.supervisor.velactl import doctor, status, top
from vela.supervisor.velactl.diagnosis import diagnose
from vela.supervisor.velactl.host import Host

PATH = Path(__file__).resolve().parents[1] / "docs" / "screens.md"
RECORDING = Path(__file__).with_name("recordings") / "status.json"
WIDTHS = (80, 160)

# What doctor reads of the host, and no status has.
_HOST = Host(
    clock=1_800_000_000.0,
    installed_at=1_700_000_000.0,
    is_elsewhere=False,
    strict_interfaces=frozenset({"vela0"}),
    reverse_path_drops=3,
    rmem_max=212992,
)

_HEAD = """\
# Screens

What velactl shows of one machine, in 80 and 160 columns. tests/screens.py makes this file from a
recorded run; a test compares both. [operating.md](operating.md) explains the columns and states.
"""

Document = dict[str, Any]


def recorded() -> Document:
    """Return "status" and "config" of the run, as velad answered."""
    found: Document = json.loads(RECORDING.read_text())
    return found


def document() -> str:
    return _HEAD + "".join(
        f"\n## `{title}`, {width} columns\n\n{_indented(lines)}"
        for width in WIDTHS
        for title, lines in screens(recorded(), width)
    )


def _indented(lines: list[str]) -> str:
    return "".join(f"    {line}".rstrip() + "\n" for line in lines)


def screens(run: Document, width: int) -> Iterator[tuple[str, list[str]]]:
    """Yield command and lines."""
    now, circuits = run["status"], run["status"]["circuits"]
    yield "velactl", status.health_lines(now, width)
    yield "velactl status", status.summary(now, circuits, width)
    if width == WIDTHS[0]:  # the others know no width
        for name in ("vela0", "dead"):
            (one,) = (each for each in circuits if each["name"] == name)
            yield f"velactl status {name}", status.details(one)
    yield "velactl top", top.screen(now, circuits, {}, width)
    findings = list(diagnose(now, run["config"], _HOST, lambda *_: "10.201.0.1"))
    yield "velactl doctor", list(doctor.lines(findings, len(circuits), width))


def record() -> None:
    """Run two routers, and write what A's velad says. Needs root."""
    from lab.autoconfigured import asking, ends, policy, wait_until_up
    from lab.load import ping
    from lab.topology import two_routers
    from lab.waiting import eventually

    def other(name: str, remote: str, number: int, **more: Any) -> str:
        peer = {"interface": name, "addresses": more.pop("theirs", [])}
        return asking(remote, name=name, id=number, peer=peer, **{"addresses": [], **more})

    with two_routers() as routers:
        remote = routers.b.ipv4
        config = asking(remote, description="to the data centre, ticket 4711")
        config += other("vela1", remote, 2, bridge="br-lan")
        config += other("dead", "10.201.0.9", 1)
        config += other("refused", remote, 3, theirs=["192.0.2.1/24"])
        config += other("nameless", "router9.invalid", 1)
        config += other("off", remote, 4, enabled=False)
        with ends(routers, config, policy()) as both:
            wait_until_up(both)
            both.a.wait_for_state("refused", "rejected")
            both.a.wait_for_state("vela1", "up")
            eventually(lambda: len(both.a.circuit("dead")["reasons"]) == 2, 20, "an ICMP error")
            eventually(lambda: bool(both.a.circuit("nameless")["reason"]), 20, "a reason")
            ping(routers.a.namespace, "172.16.16.2", count=300, interval_s=0.02, size=1200)
            eventually(lambda: both.a.circuit("vela0")["rates"]["tx_bps"], 10, "rates")
            run = {
                "status": both.a.status(),
                "config": json.loads(both.a.control("show-config", "--json").stdout)["config"],
            }
    RECORDING.write_text(json.dumps(_fixed(run), indent=1) + "\n")


def _fixed(run: Document) -> Document:
    """Return a run without what is another one each time: process ids, times, rates, servers."""
    now, config = run["status"], run["config"]
    now |= {"pid": 4700, "uptime_seconds": 266400.5, "version": "1.0"}
    for number, each in enumerate(now["circuits"]):
        each["since_seconds"] = 7200.0 * number + 75.25
        if each["worker"]:
            each["worker"] |= {"pid": 4710 + number, "memory_bytes": 24117248}
        if each["state"] == "up":
            each |= {"rtt_ms": 0.31, "last_heard_seconds": 0.4}
            each["delay_ms"] |= {"p50": 0.302, "p99": 0.911, "jitter": 0.058}
        if each["name"] == "vela0":
            each["rates"] = {
                "tx_bps": 940_000_000,
                "rx_bps": 9_100_000,
                "tx_pps": 78_100,
                "rx_pps": 17_900,
            }
            each["worker"]["cpu_percent"] = 31.4
        if each["asking"]:
            each["asking"] |= {"requests": 40, "since_seconds": 35.5, "last_seconds": 0.75}
        if each["asking"] and each["asking"]["undelivered"]:
            each["asking"]["undelivered"]["last_seconds"] = 0.5
    # Of the configuration, diagnose() looks at no more.
    daemon = {key: config["daemon"][key] for key in ("engine", "disable_features")}
    fixed = {"status": now, "config": {"daemon": daemon, "circuits": config["circuits"]}}
    servers = re.findall(r"^nameserver (\S+)", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    text = json.dumps(fixed)
    for server in servers:
        text = text.replace(server, "192.0.2.53")
    changed: Document = json.loads(text)
    return changed


if __name__ == "__main__":
    if "--record" in sys.argv:
        record()
    PATH.write_text(document())
