"""What an engine says of encryption: which ciphers there are, or why there are none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vela.dataplane import engine as engine_module
from vela.dataplane.engine import Engine, load_engine
from vela.linux.processor import has_aes_instructions
from vela.wire import Suite

ROOT = Path(__file__).resolve().parents[2]
X86 = "processor\t: {}\nflags\t\t: fpu {} sse4_2\n\n"
ARM = "processor\t: {}\nFeatures\t: fp asimd {}\n\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (X86.format(0, "aes pclmulqdq") + X86.format(1, "pclmulqdq aes"), True),
        (X86.format(0, "aes pclmulqdq") + X86.format(1, "aes"), False),
        (X86.format(0, "vaes pclmulqdq"), False),
        (ARM.format(0, "aes pmull"), True),
        (ARM.format(0, "pmull"), False),
        ("processor\t: 0\nisa\t: rv64imafdc\n", False),
        ("", False),
    ],
)
def test_aes_instructions_are_those_of_every_processor(cpuinfo: str, expected: bool) -> None:
    assert has_aes_instructions(cpuinfo) is expected


@pytest.mark.parametrize("name", [Engine.PYTHON, Engine.NATIVE])
def test_engine_offers_aes_only_where_the_processor_has_instructions_for_it(
    name: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(name)
    assert engine.encryption_obstacle() is None

    monkeypatch.setattr(engine_module, "has_aes_instructions", lambda: True)
    assert engine.suites() == (Suite.AES_256_GCM, Suite.CHACHA20_POLY1305)
    monkeypatch.setattr(engine_module, "has_aes_instructions", lambda: False)
    assert engine.suites() == (Suite.CHACHA20_POLY1305,)


ASK = """
import os
from vela.dataplane.engine import Engine, load_engine
from vela.dataplane.key_page import create, map_key_page
from vela.dataplane._native import DataPlane

engine = load_engine(Engine.NATIVE)
print(engine.encryption_obstacle(), engine.suites())
try:
    DataPlane(
        circuit_id=1, tap_fd=0, receive_fd=0, send_fd=0, divert_fd=0, destination=None,
        source_address=None, local_mac=bytes(6), remote_mac=bytes(6), elision=0, frame_limit=1500,
        datagram_limit=1472, virtio_header=False, partial_checksums=False, nowait=True,
        segment=True, gro=True, coalesce_tcp=False, coalesce_udp=False,
        clamp_datagram_limit=0, clamp_mss=0, fragmentation=0, packet_too_big=False,
        dscp=0, carry_ecn=False, outer_ipv4=True,
        counters=memoryview(bytearray(4096)), key_page=map_key_page(create()), queue=0,
        queues=1, sequences=1, bundle_limit=0,
    )
except ValueError as err:
    print(err)
"""


def test_native_engine_builds_without_openssl_and_says_that_it_cannot_encrypt(
    tmp_path: Path,
) -> None:
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("vela", "supervisor"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    # As on a machine without libssl-dev.
    header = tmp_path / "include" / "openssl" / "evp.h"
    header.parent.mkdir(parents=True)
    header.write_text("#error there is none\n")

    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**os.environ, "CFLAGS": f"-Werror -I{tmp_path}/include"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    assert "this build cannot encrypt circuits" in built.stdout + built.stderr
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    why = "the native engine was built without OpenSSL 3 (libssl-dev)"
    assert asked.stdout == f"{why} ()\n{why}\n", asked.stderr
