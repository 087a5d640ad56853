"""A system on this machine's kernel: its systemd as process 1 of namespaces of its own.

It shows what systemd and velad do with each other at this machine's speed, where an emulated guest
(boot) takes minutes, and can do nothing about another kernel. Needs root. Not a prison: what it
runs is trusted.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vm.boot import Report, Run, end, take
from vm.images import ImageError, command

CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
"""Where the unified hierarchy may be."""
# They would change this machine's kernel, or wait for its devices.
_MASKED = (
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udev-settle.service"),
    *("systemd-udevd-kernel.socket", "systemd-udevd-control.socket", "kmod-static-nodes.service"),
    *("systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service"),
    *("proc-sys-fs-binfmt_misc.automount", "systemd-random-seed.service", "systemd-pstore.service"),
    *("systemd-remount-fs.service", "dev-hugepages.mount", "dev-mqueue.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount"),
    *("sys-fs-fuse-connections.mount", "systemd-tmpfiles-setup-dev.service"),
    *("systemd-tmpfiles-setup-dev-early.service", "systemd-timesyncd.service", "getty.target"),
)
_CHUNK = 65536
_REMOVALS = 100
_NODES = ("null c 1 3", "zero c 1 5", "full c 1 7", "random c 1 8", "urandom c 1 9", "tty c 5 0")

# Becomes process 1. $1: the root; $2, $3: what it has for serial ports; the others: its arguments.
_SCRIPT = f"""
set -e
root=$1 console=$2 reports=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
echo "$*" >run.cmdline
mount --bind run.cmdline proc/cmdline
# What is not of a network namespace is this machine's.
mount -o bind,ro proc/sys/kernel proc/sys/kernel
mount -o bind,ro proc/sys/vm proc/sys/vm
mount -o bind,ro proc/sys/fs proc/sys/fs
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in run tmp dev; do mount -t tmpfs tmpfs $folder; done
mkdir dev/pts dev/shm dev/net
{chr(10).join(f"mknod -m 666 dev/{node}" for node in _NODES)}
mknod -m 666 dev/net/tun c 10 200
ln -s /proc/self/fd dev/fd
for port in "console $console" "ttyS0 $console" "ttyS1 $reports"; do
    : >"dev/${{port% *}}"
    mount --bind "${{port#* }}" "dev/${{port% *}}"
done
ip link set lo up
mkdir -p run/before
pivot_root . run/before
cd /
umount -l run/before
exec env -i container=vela PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd "$@" </dev/null >/dev/console 2>&1
"""


def prepare(root: Path) -> None:
    """Keep a root that a guest could boot from off this machine. Raises ImageError."""
    (root / "etc/fstab").write_text("")
    command("systemctl", "mask", *_MASKED, root=root)


def boot(
    root: Path,
    *,
    arguments: str = "",
    timeout_s: float,
    on_report: Callable[[Report], None] = lambda report: None,
) -> Run:
    """Start the systemd of a root, which is changed by it, and return when it has ended.

    arguments stand for a kernel's command line. on_report is called with each report as it comes.
    Raises ImageError if this machine cannot do that.
    """
    if shutil.which("unshare") is None:
        raise ImageError("unshare is not installed")
    run = Run()
    began = time.monotonic()
    with ExitStack() as stack:
        # Before all else, as it is removed when nothing is in it any more.
        group = stack.enter_context(_control_group())
        # Both ends stay open here: a terminal that nobody has open hangs up.
        terminals = [os.openpty() for _ in range(2)]
        for fd in (each for terminal in terminals for each in terminal):
            stack.callback(os.close, fd)
        ports = [os.ttyname(inner) for _, inner in terminals]
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "sh", "-c"),
                f'echo $$ >{shlex.quote(str(group / "cgroup.procs"))} && exec "$@"',
                *("sh", "unshare", "--cgroup", "--mount", "--net", "--uts", "--ipc", "--pid"),
                *("--fork", "--kill-child", "sh", "-c", _SCRIPT),
                *("sh", str(root), *ports, *arguments.split()),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(end, process)
        ended = os.pidfd_open(process.pid)
        stack.callback(os.close, ended)
        (console, _), (reports, _) = terminals
        _follow(ended, console, reports, run, began + timeout_s, on_report)
        run.seconds = time.monotonic() - began
    return run


def _follow(
    ended: int,
    console: int,
    reports: int,
    run: Run,
    deadline: float,
    on_report: Callable[[Report], None],
) -> None:
    """Read console and reports until the process has ended, and nothing is left to be read."""
    said, partial = bytearray(), b""
    poll = select.poll()
    for fd in (ended, console, reports):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if console in ready:
            said += os.read(console, _CHUNK)
        if reports in ready:
            *lines, partial = (partial + os.read(reports, _CHUNK)).split(b"\n")
            for line in lines:
                take(line, run, on_report)
        if not ready:
            run.fault = "did not power itself off in time"
        if not ready or ready == {ended}:
            run.console = said.decode(errors="replace")
            return


@contextmanager
def _control_group() -> Iterator[Path]:
    """A control group for processes that have ended at the end. Raises ImageError."""
    unified = [path for path in CGROUPS if (path / "cgroup.procs").exists()]
    if not unified:
        raise ImageError("there is no unified hierarchy of control groups here")
    group = unified[0] / f"vela-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        for path, _, _ in os.walk(group, topdown=False):
            # Its processes go with process 1, a moment after that.
            for _ in range(_REMOVALS):
                with suppress(OSError):
                    os.rmdir(path)
                    break
                time.sleep(0.05)
