"""The main job, shown for real: two routers, one of them configured, traffic across the circuit.

Called by scripts/quickstart, which sets up what is missing before.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import namespace
from lab.daemon import Velad, entry_point
from lab.errors import LabError
from lab.interruption import InterruptionError, ignore_signals, signals_raise
from lab.load import iperf3, ping
from lab.process import session_members, start_time
from lab.topology import TwoRouters, two_routers
from lab.waiting import eventually

RUNS = Path("/run/vela-quickstart")
STATE = "run.json"
STATE_TIMEOUT_S = 20.0
END_TIMEOUT_S = 10.0
IPERF3_SECONDS = 3

# 1500 of the cable less 20 (IPv4), 8 (UDP) and 1 (circuit id).
TAP_MTU = 1471
PEER_ADDRESSES = ("172.16.16.2", "fd00:16::2")

CONFIG_A = """\
[circuits.vela0]
id = 1
remote = "10.201.0.2"
addresses = ["172.16.16.1/30", "fd00:16::1/64"]

[circuits.vela0.peer]
interface = "vela0"
addresses = ["172.16.16.2/30", "fd00:16::2/64"]
"""
# All that B is told: who may set up what. Of the circuit it knows nothing.
CONFIG_B = """\
[autoconfigure]
from = ["10.201.0.1"]
networks = ["172.16.0.0/12", "fd00::/8"]
"""


@dataclass(slots=True)
class Run:
    """What one run has made, written down so that a later process can take it down."""

    directory: str
    owner: int
    owner_start: int | None
    kept: bool = False
    namespaces: tuple[str, ...] = ()
    sessions: tuple[int, ...] = ()
    """Each velad leads one; its process id."""

    @classmethod
    def create(cls) -> Run:
        RUNS.mkdir(mode=0o755, exist_ok=True)
        run = cls(tempfile.mkdtemp(prefix="", dir=RUNS), os.getpid(), start_time(os.getpid()))
        run.save()
        return run

    @classmethod
    def load(cls, directory: Path) -> Run:
        fields = json.loads((directory / STATE).read_text())
        fields["namespaces"] = tuple(fields["namespaces"])
        fields["sessions"] = tuple(fields["sessions"])
        return cls(**fields)

    def save(self) -> None:
        target = Path(self.directory, STATE)
        draft = target.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(target)

    @property
    def in_progress(self) -> bool:
        alive = self.owner_start is not None and start_time(self.owner) == self.owner_start
        return alive and not self.kept

    @property
    def prefix(self) -> str:
        return namespace.prefix(self.owner)

    def delete_directory(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        with suppress(OSError):
            RUNS.rmdir()  # only if this was the last one

    def left_over(self) -> str:
        """Return what still exists of it, in words; empty: nothing."""
        names = sorted(namespace.existing().intersection(self.namespaces))
        pids = sorted(pid for session in self.sessions for pid in session_members(session))
        said = [f"namespace {name}" for name in names] + [f"process {pid}" for pid in pids]
        return ", ".join(said)

    def verify_gone(self) -> None:
        """Raise LabError if anything is left; a worker's death may take a moment."""
        try:
            eventually(lambda: not self.left_over(), END_TIMEOUT_S, "everything to end")
        except LabError as err:
            raise LabError(f"left behind: {self.left_over()}") from err


def say(text: str) -> None:
    print(f"quickstart: {text}", flush=True)


def up(keep: bool) -> int:
    """Show it; return the exit status. Nothing is left behind unless keep is set."""
    run = Run.create()
    velads: list[Velad] = []
    status = 0
    try:
        with signals_raise():
            _show(run, velads, keep)
    except InterruptionError as err:
        status = 128 + err.number
        print(f"quickstart: {err}", file=sys.stderr)
    except Exception as err:
        # Whatever it was, the logs say more.
        status = 1
        kind = "" if isinstance(err, LabError) else f"{type(err).__name__}: "
        print(f"quickstart: failed: {kind}{err}", file=sys.stderr)
        for velad in velads:
            print(f"--- end of velad's log in {velad.name}:", file=sys.stderr)
            print(velad.log_tail(), file=sys.stderr)
    finally:
        if not run.kept:
            run.delete_directory()
    if not run.kept:
        try:
            run.verify_gone()
        except LabError as err:
            print(f"quickstart: failed: {err}", file=sys.stderr)
            return status or 1
        say("all taken down, nothing left behind")
    return status


def down() -> int:
    """Take down what --keep, or a run that was killed, left; return the exit status."""
    found = sorted(RUNS.glob(f"*/{STATE}")) if RUNS.is_dir() else []
    runs = [Run.load(path.parent) for path in found]
    idle = [run for run in runs if not run.in_progress]
    status = 0
    for run in idle:
        try:
            _take_down(run)
        except (LabError, OSError) as err:
            print(f"quickstart: failed: {err}", file=sys.stderr)
            status = 1
        else:
            say(f"taken down: {', '.join(run.namespaces) or run.directory}")
    if not idle:
        say("nothing to take down")
    return status


def _take_down(run: Run) -> None:
    if start_time(run.owner) is None:
        # It may have been killed before it could write down their names.
        known = {name for name in namespace.existing() if name.startswith(run.prefix)}
        run.namespaces = tuple(sorted(known.union(run.namespaces)))
    present = [name for name in run.namespaces if name in namespace.existing()]
    for name in present:
        for pid in set(namespace.pids(name)) & set(run.sessions):
            os.kill(pid, signal.SIGTERM)
    with suppress(LabError):
        eventually(
            lambda: not any(set(namespace.pids(name)) & set(run.sessions) for name in present),
            END_TIMEOUT_S,
            "velad to stop",
        )
    for name in present:
        # Of a run that was killed nothing is anybody's; in a kept one a shell may be.
        ending = set(run.sessions) if run.kept else namespace.sessions(name)
        namespace.end_sessions(name, ending)
        namespace.delete(name)
    run.verify_gone()
    run.delete_directory()


def _show(run: Run, velads: list[Velad], keep: bool) -> None:
    if not Path("/dev/net/tun").exists():
        raise LabError("no /dev/net/tun: the kernel's tun module is needed (modprobe tun)")
    with ExitStack() as stack:
        try:
            say("making two routers, joined by a cable of MTU 1500")
            routers = stack.enter_context(two_routers())
            namespaces = (routers.a.namespace, routers.b.namespace)
            run.namespaces = tuple(one.name for one in namespaces)
            run.save()
            for router, label, config, knows in (
                (routers.a, "a", CONFIG_A, "which has the circuit in its configuration"),
                (routers.b, "b", CONFIG_B, "which sets its end up by itself"),
            ):
                say(f"starting velad in {router.namespace.name} ({router.ipv4}), {knows}")
                velad = Velad(router.namespace, config, directory=_made(run, label))
                velads.append(velad)
                stack.enter_context(velad)
                run.sessions += (velad.pid,)
                run.save()
            _demonstrate(routers, velads)
        finally:
            # Taking down, or leaving in place, is not interrupted.
            ignore_signals()
        if keep:
            run.kept = True
            run.save()
            for velad in velads:
                velad.detach()
            for one in namespaces:
                one.detach()
            stack.pop_all()
            _explain(routers, velads)
        else:
            say("taking everything down")


def _made(run: Run, label: str) -> Path:
    directory = Path(run.directory, label)
    directory.mkdir()
    return directory


def _demonstrate(routers: TwoRouters, velads: list[Velad]) -> None:
    for velad in velads:
        circuit = velad.wait_for_state("vela0", "up", timeout_s=STATE_TIMEOUT_S)
        origin = {"config": "configured there", "peer": "set up from the other end"}
        say(
            f"vela0 in {velad.name} is {circuit['state']}, MTU {circuit['mtu']}, "
            f"{origin[circuit['origin']]}"
        )
        if circuit["mtu"] != TAP_MTU:
            raise LabError(f"vela0 in {velad.name} has MTU {circuit['mtu']}, not {TAP_MTU}")
    a, b = routers.a.namespace, routers.b.namespace
    for address in PEER_ADDRESSES:
        pings = ping(a, address, count=5, size=TAP_MTU, dont_fragment=True)
        best = f", best round trip {min(pings.rtt_ms):.3f} ms" if pings.rtt_ms else ""
        say(
            f"ping {address}, {TAP_MTU} bytes, not to be fragmented: "
            f"{pings.received} of {pings.transmitted} answered{best}"
        )
        if pings.lost:
            raise LabError(f"ping {address} lost {pings.lost} of {pings.transmitted}")
    say(f"iperf3 across the circuit for {IPERF3_SECONDS} s")
    measured = iperf3(b, a, PEER_ADDRESSES[0], seconds=IPERF3_SECONDS)
    say(f"one TCP stream: {measured.received_bits_per_s / 1e6:.0f} Mbit/s")
    if measured.received_bits_per_s <= 0:
        raise LabError("iperf3 moved nothing")
    for velad in velads:
        say(f"velactl status in {velad.name}:")
        print(velad.control("status").stdout.rstrip(), flush=True)


def _explain(routers: TwoRouters, velads: list[Velad]) -> None:
    velactl = entry_point("velactl", "vela.supervisor.velactl")[0]
    name = velactl[0] if len(velactl) == 1 else "velactl"
    say("left running; for example:")
    print(f"  ip netns exec {routers.a.namespace.name} ping {PEER_ADDRESSES[0]}")
    for velad in velads:
        print(f"  {name} --socket {velad.control_socket} status")
        print(f"  tail -f {velad.log_path}")
    print("and to take it down:\n  scripts/quickstart --down", flush=True)


def main(argv: list[str]) -> int:
    """Run "up", "up --keep" or "down"."""
    if argv == ["down"]:
        return down()
    if argv in (["up"], ["up", "--keep"]):
        return up(keep="--keep" in argv)
    print("usage: python -m lab.quickstart up [--keep] | down", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
