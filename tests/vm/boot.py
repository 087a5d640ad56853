"""A guest: QEMU with a kernel and a disk made from a root, its console, and what it reports.

Emulated (TCG), so that no /dev/kvm is needed. A guest powers itself off; one that does not is
ended after its time, and with this process at the latest. It reports in lines of JSON on its
second serial port.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vm import at_boot
from vm.images import ImageError, Say, command, say

DISK_MIB = 3000
CPUS = 2
MEMORY = "2G"
CONSOLE_LINES = 40
# After its deadline QEMU gets this long to obey SIGTERM.
KILL_AFTER_S = 5.0

MACHINE_ID = "5e1a" * 8
GUEST = Path(__file__).resolve().parent / "guest"
UNIT = "vela-guest.service"
_MASKED = (
    *("serial-getty@ttyS0.service", "getty@tty1.service", "systemd-networkd-wait-online.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("dpkg-db-backup.timer", "systemd-tmpfiles-clean.timer"),
)

# A panic ends QEMU too: it restarts, and -no-reboot makes an end of that.
_KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 mitigations=off panic=-1"
)

Report = dict[str, Any]


@dataclass(slots=True)
class Run:
    """What came of one boot."""

    reports: list[Report] = field(default_factory=list)
    console: str = ""
    seconds: float = 0.0
    fault: str = ""
    """Why it did not end as it should; empty: it powered itself off in time."""

    @property
    def console_tail(self) -> str:
        lines = [line.rstrip() for line in self.console.splitlines() if line.strip()]
        return "\n".join(lines[-CONSOLE_LINES:])


def prepare(root: Path) -> None:
    """Make a root with VELA in it (vm.installation) run the scenarios when it boots."""
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost guest\n::1 localhost\n")
    (root / "etc/resolv.conf").write_text("# no name server\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 0\n")
    # A first boot would do more than any later one.
    (root / "etc/machine-id").write_text(f"{MACHINE_ID}\n")
    shutil.copy(GUEST / UNIT, root / "etc/systemd/system")
    at_boot.prepare(root)
    command("systemctl", "enable", UNIT, root=root)
    # Nobody logs in, and nothing else starts in the middle of a test.
    command("systemctl", "mask", *_MASKED, root=root)


def make_disk(root: Path, disk: Path, say: Say = say) -> None:
    """Make a file system image of a root, without a loop device. Raises ImageError."""
    say("making the disk")
    command(
        "mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), "-L", "root", str(disk), f"{DISK_MIB}M"
    )


def boot(
    disk: Path,
    kernel: Path,
    initrd: Path,
    *,
    arguments: str = "",
    timeout_s: float,
    on_report: Callable[[Report], None] = lambda report: None,
) -> Run:
    """Boot a disk, which stays as it is, and return when the guest is off.

    arguments go to the kernel's command line. on_report is called with each
    report as it comes. Raises ImageError if QEMU is not there.
    """
    if shutil.which("qemu-system-x86_64") is None:
        raise ImageError("qemu-system-x86_64 is not installed: run scripts/setup development")
    run = Run()
    began = time.monotonic()
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(theirs)
        qemu = subprocess.Popen(
            [
                # Whatever becomes of this process: no guest outlives it, nor its time.
                *("setpriv", "--pdeathsig", "KILL"),
                "qemu-system-x86_64",
                *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(CPUS), "-m", MEMORY),
                *("-nodefaults", "-no-reboot", "-display", "none"),
                *(
                    "-kernel",
                    str(kernel),
                    "-initrd",
                    str(initrd),
                    "-append",
                    f"{_KERNEL_ARGUMENTS} {arguments}",
                ),
                *("-drive", f"file={disk},if=virtio,format=raw,snapshot=on"),
                *("-object", "rng-random,id=rng,filename=/dev/urandom"),
                *("-device", "virtio-rng-pci,rng=rng"),
                *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
                *("-chardev", f"socket,id=reports,fd={theirs.fileno()}"),
                *("-serial", "chardev:reports"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        stack.callback(end, qemu)
        theirs.close()
        _follow(qemu, ours, run, began + timeout_s, on_report)
        run.seconds = time.monotonic() - began
        if not run.fault and qemu.wait(KILL_AFTER_S):
            run.fault = f"QEMU ended with exit status {qemu.returncode}"
    return run


def _follow(
    qemu: subprocess.Popen[bytes],
    reports: socket.socket,
    run: Run,
    deadline: float,
    on_report: Callable[[Report], None],
) -> None:
    """Read console and reports until both are closed, which is when QEMU ends."""
    assert qemu.stdout is not None
    console, partial = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(qemu.stdout, selectors.EVENT_READ)
        selector.register(reports, selectors.EVENT_READ)
        while selector.get_map():
            left_s = deadline - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready:
                run.fault = "did not power itself off in time"
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.fileobj is reports:
                    *lines, rest = (partial + chunk).split(b"\n")
                    partial[:] = rest
                    for text in lines:
                        take(bytes(text), run, on_report)
                else:
                    console += chunk
    run.console = console.decode(errors="replace")


def take(line: bytes, run: Run, on_report: Callable[[Report], None]) -> None:
    """Take note of a line that a guest reports."""
    if not line.strip():
        return
    try:
        report = json.loads(line)
    except ValueError:
        report = {"event": "noise", "text": line.decode(errors="replace")}
    run.reports.append(report)
    on_report(report)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a guest that has not ended by itself, and reap it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
