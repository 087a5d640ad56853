"""Boot each system, run the scenarios inside, print a table: what scripts/kernels calls."""

from __future__ import annotations

import argparse
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from vm import at_boot, boot, container, installation
from vm.images import ImageError, kernel_releases, make_root, say
from vm.systems import PACKAGES, SYSTEMS, System, kernels

CONTAINED_SCENARIOS = ("unit", "fleet")
"""What runs in a container, on this machine's kernel: what needs systemd."""
SCENARIOS = (
    *("circuit", "sandbox", *CONTAINED_SCENARIOS),
    *("impairment", "vlans", "wireguard", "vrf", "queues"),
)
"""What runs in an emulated machine, in this order: files of vm/guest."""
DEADLINE_S = 1500.0
"""Of a guest that hangs, on a busy host too. One minute is enough to boot on an idle one."""


@dataclass(slots=True)
class Row:
    """What is known of one system."""

    system: System
    kernel: str = ""
    python: str = ""
    features: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    passed: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)
    """Scenarios with at least one test that passed."""
    ended: bool = False
    seconds: float = 0.0
    fault: str = ""

    @property
    def good(self) -> bool:
        return not self.fault and not self.failed

    @property
    def result(self) -> str:
        counted = f"{self.passed} passed"
        if self.skipped:
            counted += f", {len(self.skipped)} skipped"
        if self.failed:
            counted += f", {len(self.failed)} failed"
        return f"FAILED: {self.fault} ({counted})" if self.fault else counted


class Machines:
    """Roots and disks of the systems, each made once, removed at the end."""

    def __init__(self, rebuild: bool, any_age: bool, container: bool) -> None:
        """container: not emulated, but on this machine's kernel."""
        self._stack = ExitStack()
        self._rebuild, self._any_age, self._container = rebuild, any_age, container
        self._folders: dict[str, Path] = {}

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _folder(self, suite: str) -> Path:
        """Return a folder with the suite's root and disk."""
        if suite not in self._folders:
            name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vela-kernels-"))
            folder = Path(name)
            root = folder / "root"
            make_root(
                suite,
                PACKAGES,
                root,
                kernels=kernels(suite),
                rebuild=self._rebuild,
                any_age=self._any_age,
            )
            installation.install(root, any_age=self._any_age, rebuild=self._rebuild)
            boot.prepare(root)
            if self._container:
                container.prepare(root)
            else:
                boot.make_disk(root, folder / "disk.img")
            self._folders[suite] = folder
        return self._folders[suite]

    def boot(self, system: System, scenarios: Sequence[str], deadline_s: float) -> Row:
        """Boot one and return its row, with a progress line for each scenario."""
        row = Row(system)
        try:
            self._boot(row, scenarios, deadline_s)
        except ImageError as err:
            print(f"kernels: {system.name}: {err}", flush=True)
            row.fault = "no image"
        return row

    def _boot(self, row: Row, scenarios: Sequence[str], deadline_s: float) -> None:
        system = row.system
        folder = self._folder(system.suite)
        release = _release(kernel_releases(folder / "root"), system)
        say(f"{system.name}: booting {platform.release() if self._container else release}")
        began = time.monotonic()

        def on_report(report: boot.Report) -> None:
            _note(row, report, time.monotonic() - began)

        wanted = [f"vela.scenarios={','.join(scenarios)}"]
        if at_boot.SCENARIOS.intersection(scenarios):
            wanted.append(at_boot.ARGUMENT)
        arguments = " ".join(wanted)
        if self._container:
            run = container.boot(
                folder / "root", arguments=arguments, timeout_s=deadline_s, on_report=on_report
            )
        else:
            run = boot.boot(
                folder / "disk.img",
                folder / "root/boot" / f"vmlinuz-{release}",
                folder / "root/boot" / f"initrd.img-{release}",
                arguments=arguments,
                timeout_s=deadline_s,
                on_report=on_report,
            )
        row.seconds = run.seconds
        row.fault = run.fault
        if not row.fault and not row.ended:
            row.fault = "ended before its tests did"
        if not row.fault and (silent := [name for name in scenarios if name not in row.ran]):
            row.fault = f"nothing passed in {', '.join(silent)}"
        if not row.good:
            print(f"--- {system.name}: the console ends:\n{run.console_tail}\n---", flush=True)


def _release(releases: Iterable[str], system: System) -> str:
    """Return the kernel that a system boots: of several that fit the last one."""
    others = [one.kernel_prefix for one in SYSTEMS if one.kernel_prefix and one != system]
    fitting = [
        release
        for release in releases
        if release.startswith(system.kernel_prefix)
        and (system.kernel_prefix or not release.startswith(tuple(others)))
    ]
    if not fitting:
        raise ImageError(f"{system.name}: no such kernel; there are {', '.join(releases)}")
    return fitting[-1]


def _note(row: Row, report: boot.Report, seconds: float) -> None:
    name = row.system.name
    match report["event"]:
        case "system":
            row.kernel, row.python = report["kernel"], report["python"]
            row.features, row.missing = report["features"], report["missing"]
            missing = ", ".join(row.missing) or "nothing"
            say(f"{name}: {seconds:.0f} s: up, Python {row.python}; missing: {missing}")
        case "test":
            label = f"{report['scenario']}: {report['name']}"
            row.ran |= {report["scenario"]} if report["outcome"] == "passed" else set()
            if report["outcome"] == "passed":
                row.passed += 1
            elif report["outcome"] == "skipped":
                row.skipped.append(label)
            else:
                row.failed.append(label)
            notes = "".join(f", {what}: {value}" for what, value in report["notes"].items())
            outcome = f"{report['outcome']}, {report['seconds']} s{notes}"
            say(f"{name}: {seconds:.0f} s: {label}: {outcome}")
            if report["outcome"] != "passed":
                print(report["text"], flush=True)
        case "end":
            row.ended = True


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, a line each."""
    titles = ("SYSTEM", "KERNEL", "PYTHON", "FEATURES", "MISSING", "TIME", "RESULT")
    lines = [titles]
    for row in rows:
        features, missing = ", ".join(row.features) or "-", ", ".join(row.missing) or "-"
        lines.append(
            (
                row.system.name,
                row.kernel or "-",
                row.python or "-",
                features,
                missing,
                f"{row.seconds:.0f} s",
                row.result,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(argv: list[str]) -> int:
    known = ", ".join(f"{one.name} ({one.description})" for one in SYSTEMS)
    parser = argparse.ArgumentParser(
        prog="scripts/kernels",
        description="Boot stock Debian systems in QEMU and test VELA in them.",
        epilog=f"Systems: {known}. Images are cached in $XDG_CACHE_HOME/vela.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="systems; default: all of them")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--rebuild", action="store_true", help="build the images anew")
    when.add_argument("--keep-cache", action="store_true", help="use cached images at any age")
    parser.add_argument(
        "--scenarios",
        metavar="NAME,...",
        help=f"what to run inside (default: {','.join(SCENARIOS)}; "
        f"with --container {','.join(CONTAINED_SCENARIOS)})",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=DEADLINE_S,
        metavar="S",
        help="for each guest (%(default)g)",
    )
    parser.add_argument(
        "--container",
        action="store_true",
        help="do not emulate: each Debian's systemd on this machine's kernel, in namespaces of its "
        "own; scenarios of the unit take a tenth of the time",
    )
    options = parser.parse_args(argv)
    chosen = [one for one in SYSTEMS if not options.names or one.name in options.names]
    unknown = set(options.names) - {one.name for one in SYSTEMS}
    if unknown:
        parser.error(f"no such system: {', '.join(sorted(unknown))}; there are: {known}")
    default = CONTAINED_SCENARIOS if options.container else SCENARIOS
    scenarios = options.scenarios.split(",") if options.scenarios else default
    # Guests and their disks, which are large, go with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Machines(options.rebuild, options.keep_cache, options.container) as machines:
        rows = [machines.boot(system, scenarios, options.deadline) for system in chosen]
    print(table(rows))
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
