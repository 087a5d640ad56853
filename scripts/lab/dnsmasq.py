"""dnsmasq, as name server or as DHCP server, with nothing of the machine's configuration."""

from __future__ import annotations

import select
import subprocess
import time
from pathlib import Path

from lab.errors import LabError
from lab.namespace import Namespace
from lab.resource import Resource

START_TIMEOUT_S = 5.0


class Dnsmasq(Resource):
    """One dnsmasq in a namespace, as root, in the foreground. A context: ready inside.

    options are its own, beyond those that keep it off the machine's files.
    """

    def __init__(self, namespace: Namespace, *options: str) -> None:
        self._namespace = namespace
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = self._namespace.popen(
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-"),
            *("--user=root", "--pid-file=", "--no-hosts", "--no-resolv"),
            *self._options,
            stderr=subprocess.PIPE,
        )
        self._await_start(self._process)

    def close(self) -> None:
        """End it. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()

    def _await_start(self, process: subprocess.Popen[str]) -> None:
        # It says so when its sockets are bound (dnsmasq.c, main).
        assert process.stderr is not None
        pipe = process.stderr.buffer  # type: ignore[attr-defined]  # not in typeshed's IO[str]
        said = b""
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"started" not in said:
            left_s = max(0.0, deadline - time.monotonic())
            chunk = pipe.read1(4096) if select.select([pipe], [], [], left_s)[0] else b""
            if not chunk:
                raise LabError(f"dnsmasq did not start: {said.decode(errors='replace').strip()}")
            said += chunk


def name_server(
    namespace: Namespace, *records: str, domain: str = "example.net", hosts: Path | None = None
) -> Dnsmasq:
    """A name server at 127.0.0.1 that alone knows the domain.

    records as --host-record takes them. Files that appear in the directory
    hosts, in the form of /etc/hosts, are read at once (inotify).
    """
    options = [f"--host-record={record}" for record in records]
    if hosts is not None:
        options.append(f"--hostsdir={hosts}")
    return Dnsmasq(
        namespace,
        *("--listen-address=127.0.0.1", "--bind-interfaces", f"--local=/{domain}/"),
        *options,
    )
