"""velad where the kernel gives it no more descriptors: refused in words, and all else goes on."""

from __future__ import annotations

import os
import re
import resource
import signal

import pytest

from lab.daemon import Velad
from lab.topology import TwoRouters
from lab.waiting import eventually
from vela.supervisor.circuit.pseudowire import DESCRIPTORS
from vela.supervisor.runtime.descriptors import RESERVE

pytestmark = pytest.mark.needs_net_admin

REMOTE = "10.201.0.2"
CIRCUIT = f"""
[circuits.vela0]
id = 1
remote = "{REMOTE}"
autoconfigure = false
"""


def descriptors(velad: Velad) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{velad.pid}/fd")}


def allow(velad: Velad, more: int) -> None:
    """Let velad open so many descriptors besides those that it has."""
    held = descriptors(velad)
    free = (number for number in range(1 << 20) if number not in held)
    limit = [next(free) for _ in range(more + 1)][-1]
    _, hard = resource.prlimit(velad.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(velad.pid, resource.RLIMIT_NOFILE, (limit, hard))


def test_running_velad_refuses_what_takes_descriptors_and_keeps_what_it_has(
    routers: TwoRouters,
) -> None:
    with Velad(routers.a.namespace, CIRCUIT) as velad:
        velad.wait_for_state("vela0", "unmonitored")
        worker = velad.worker_pid("vela0")
        allow(velad, 1)  # for velactl's connection

        done = velad.control("add", "vela7", "--remote", REMOTE, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"velactl: the limit of open files, \d+, leaves .*\n", done.stderr)

        os.kill(worker, signal.SIGKILL)
        velad.wait_for(
            lambda status: status["circuits"][0]["worker"]["pid"] not in (None, worker),
            5,
            "a successor of the worker",
        )
        assert [each["name"] for each in velad.status()["circuits"]] == ["vela0"]
        assert "Traceback" not in velad.log()


def test_stored_circuits_that_find_no_descriptors_are_left_out_and_come_with_the_next_start(
    routers: TwoRouters,
) -> None:
    with Velad(routers.a.namespace, CIRCUIT) as velad:
        velad.wait_for_state("vela0", "unmonitored")
        alone = len(descriptors(velad))
        for number in range(1, 9):
            velad.control("add", f"vela{number}", "--remote", REMOTE, "--no-wait")
        assert velad.stop() == 0

        velad.launch()
        # In time: it has its interpreter to start first.
        limit = alone + RESERVE + 4 * DESCRIPTORS
        resource.prlimit(velad.pid, resource.RLIMIT_NOFILE, (limit, limit))
        velad.await_ready()
        eventually(lambda: "daemon_started" in velad.log(), 5, "its start")
        assert velad.log().count("stored_circuit_not_started") in range(3, 6)
        assert "Traceback" not in velad.log()
        assert velad.stop() == 0

        velad.start()
        assert len(velad.status()["circuits"]) == 9


def test_circuits_of_the_configuration_that_fit_work_and_the_others_say_why(
    routers: TwoRouters,
) -> None:
    many = "".join(
        f'[circuits.vela{number}]\nid = {number + 1}\nremote = "{REMOTE}"\nautoconfigure = false\n'
        for number in range(20)
    )
    prefix = ("prlimit", "--nofile=72:72")
    with Velad(routers.a.namespace, many, prefix=prefix) as velad:
        found = velad.wait_for(
            lambda status: (
                {each["state"] for each in status["circuits"]} == {"unmonitored", "failed"}
            ),
            10,
            "those that fit",
        )["circuits"]
        for each in found:
            says_why = "the limit of open files, 72, leaves no room" in each["reason"]
            assert says_why == (each["state"] == "failed")
        worker = velad.worker_pid("vela0")
        os.kill(worker, signal.SIGKILL)
        velad.wait_for(
            lambda status: status["circuits"][0]["worker"]["pid"] not in (None, worker),
            5,
            "a successor of the worker",
        )
        assert "Too many open files" not in velad.log()
        velad.control("status")


def test_velad_started_without_descriptors_of_its_own_says_so_in_one_line(
    routers: TwoRouters,
) -> None:
    with Velad(routers.a.namespace, CIRCUIT) as velad:
        velad.wait_for_state("vela0", "unmonitored")
        alone = len(descriptors(velad))
        assert velad.stop() == 0
        written = len(velad.log())

        velad.launch()
        resource.prlimit(velad.pid, resource.RLIMIT_NOFILE, (alone - 12, alone - 12))
        assert velad.process is not None
        assert velad.process.wait(10) == 1
        velad.process = None
        said = velad.log()[written:]

    # Which of them is the one too many is not the point.
    assert re.fullmatch(r"velad: .*Too many open files.*\n", said)
