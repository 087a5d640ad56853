"""Workers are killed while they use a key page, on both kinds of memory, and their threads meet.

tests/crash/key_page.c and tests/crash/windows.c.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vela.dataplane.key_page import KeyPage, KeyPair, create
from vela.linux import secret_memory
from vela.wire import Suite

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "vela" / "dataplane" / "native"
KILLS = 1000
SAME_FRAMES = 5000
TIMEOUT_S = 120.0


def build(name: str, folder: Path) -> Path:
    built = folder / name
    sources = [NATIVE / f"{each}.c" for each in ("aead", "cipher", "io", "window")]
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-DVELA_LIBCRYPTO", "-pthread")
    subprocess.run(
        ["cc", *flags, "-o", built, ROOT / f"tests/crash/{name}.c", *sources, "-lcrypto"],
        check=True,
    )
    return built


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("key_page", tmp_path_factory.mktemp("crash"))


@contextmanager
def key_page(hidden: bool) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        if not hidden:
            patch.setattr(secret_memory, "_memfd_secret", lambda: None)
        fd = create()
    try:
        if secret_memory.is_hidden(fd) != hidden:
            pytest.skip("this kernel has no memfd_secret")
        keys = KeyPair(Suite.AES_256_GCM, b"t" * 32, b"t" * 8, b"r" * 32, b"r" * 8)
        with KeyPage(fd) as page:
            page.install(0, keys, 1)
            page.send_with(0)
        yield fd
    finally:
        os.close(fd)


def run(program: Path, what: str, memory: str, fd: int, kills: int) -> dict[str, int]:
    done = subprocess.run(
        [program, what, memory, str(fd), str(kills)],
        pass_fds=[fd],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    figures = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert done.returncode == (1 if figures.get("twice") else 0), done.stderr
    return figures


@pytest.mark.parametrize("hidden", [True, False])
def test_counters_are_used_once_though_workers_are_killed(program: Path, hidden: bool) -> None:
    with key_page(hidden) as fd:
        figures = run(program, "seal", "shared", fd, KILLS)
        print(figures)

        assert figures["kills"] == KILLS
        assert figures["counters"] > 10_000
        assert (figures["twice"], figures["backwards"]) == (0, 0)


@pytest.mark.parametrize("hidden", [True, False])
def test_frames_are_accepted_once_though_workers_are_killed(program: Path, hidden: bool) -> None:
    with key_page(hidden) as fd:
        figures = run(program, "open", "shared", fd, KILLS)
        print(figures)

        assert figures["kills"] == KILLS
        assert figures["counters"] > 10_000
        assert figures["twice"] == 0


@pytest.mark.parametrize("what", ["seal", "open"])
def test_control_with_the_page_in_private_memory_is_found_out(program: Path, what: str) -> None:
    with key_page(hidden=False) as fd:
        # On a busy machine, all workers of a run may be killed before they did anything.
        assert any(run(program, what, "private", fd, 20)["twice"] for _ in range(20))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two threads meet on two CPUs")
def test_frame_that_comes_to_two_threads_at_once_is_accepted_once(tmp_path: Path) -> None:
    program = build("windows", tmp_path)

    def twice(how: str) -> int:
        done = subprocess.run(
            [program, how, str(SAME_FRAMES)], capture_output=True, text=True, timeout=TIMEOUT_S
        )
        figures = dict(re.findall(r"(\w+) (\d+)", done.stdout))
        print(how, figures)
        assert figures["never"] == "0", done.stderr
        return int(figures["twice"])

    assert twice("shared") == 0
    # The control: threads that do not know of each other. On a busy machine they seldom meet.
    assert any(twice("alone") for _ in range(20))
