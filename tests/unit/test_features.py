"""vela.linux.features: what this kernel can do, and what velad makes of one that can do less."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import old_kernel
import pytest

from lab import daemon
from lab.autoconfigured import circuit, policy
from lab.circuit import NAME
from lab.copying import copy
from lab.daemon import Velad
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually
from vela.linux.features import ALL_FEATURES, Feature, Features, probe, tun_offloads, words

ADDRESSES = ("172.16.16.1", "172.16.16.2")
OLD_KERNEL = str(Path(old_kernel.__file__))
ALL = ("netns_cookie", "rwf_nowait", "tso", "udp_gro", "udp_segment", "uso")
KERNELS = {
    "5.10": ("netns_cookie", "rwf_nowait", "uso"),
    "6.1": ("rwf_nowait", "uso"),
    "without any": ALL,
}

needs_seccomp = pytest.mark.skipif(
    not old_kernel.SUPPORTED, reason="the filter is for other machines"
)


def test_words_are_sorted() -> None:
    assert words(ALL_FEATURES) == ALL == old_kernel.FEATURES
    assert words({Feature.USO, Feature.TSO}) == ("tso", "uso")
    assert words(()) == ()


@pytest.mark.parametrize(
    ("features", "offloads"),
    [
        # include/uapi/linux/if_tun.h: CSUM 1, TSO4 2, TSO6 4, TSO_ECN 8, USO4 0x20, USO6 0x40
        (frozenset(), 0x01),
        ({Feature.TSO}, 0x0F),
        ({Feature.USO}, 0x61),
        (ALL_FEATURES, 0x6F),
    ],
)
def test_offloads_are_those_of_the_features(features: Features, offloads: int) -> None:
    assert tun_offloads(frozenset(features)) == offloads


@pytest.mark.needs_net_admin
def test_probe_leaves_no_interface_and_no_descriptor() -> None:
    with Namespace("probe") as namespace, namespace.entered():
        before = list(Path("/proc/self/fd").iterdir())

        found = probe()

        assert found <= ALL_FEATURES
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        assert len(list(Path("/proc/self/fd").iterdir())) == len(before)


@pytest.mark.needs_net_admin
def test_probe_does_not_mind_an_interface_with_its_name() -> None:
    with Namespace("probe") as namespace, namespace.entered():
        namespace.run("ip", "link", "add", "probe-velad0", "type", "bridge")

        probe()

        assert {name for _, name in socket.if_nameindex()} == {"lo", "probe-velad0"}


@needs_seccomp
@pytest.mark.needs_net_admin
@pytest.mark.parametrize(
    "missing", [*((word,) for word in ALL), ALL], ids=lambda missing: "+".join(missing)
)
def test_probe_finds_missing_what_the_kernel_refuses(missing: tuple[str, ...]) -> None:
    code = "import json; from vela.linux.features import *; print(json.dumps(words(probe())))"
    with Namespace("probe") as namespace:
        done = namespace.run(
            sys.executable, OLD_KERNEL, ",".join(missing), sys.executable, "-c", code
        )

    assert json.loads(done.stdout) == [word for word in words(probe()) if word not in missing]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let every velad of the test run as on this kernel."""
    installed = daemon.entry_point

    def entry_point(script: str, module: str) -> tuple[list[str], dict[str, str]]:
        command, environment = installed(script, module)
        if script == "velad":
            missing = ",".join(KERNELS[request.param])
            command = [sys.executable, OLD_KERNEL, missing, *command]
        return command, environment

    monkeypatch.setattr(daemon, "entry_point", entry_point)
    name: str = request.param
    return name


def carries(routers: TwoRouters) -> None:
    """Small and large frames, single ones and many of a flow, both ways."""
    for size in (64, 1400):
        assert ping(routers.a.namespace, "172.16.16.2", count=20, size=size).lost == 0
    for there, back in ((routers.a, routers.b), (routers.b, routers.a)):
        address = ADDRESSES[there.namespace == routers.a.namespace]
        copied = copy(there.namespace, back.namespace, address, 4_000_000, timeout_s=20)
        assert copied.received_digest == copied.sent_digest


@needs_seccomp
@pytest.mark.needs_net_admin
@pytest.mark.parametrize("engine", ["native", "python"])
def test_velad_works_on_a_kernel_that_lacks_features_and_says_which(
    kernel: str, engine: str, routers: TwoRouters
) -> None:
    with_engine = f'[daemon]\nengine = "{engine}"\n'
    with circuit(routers, policy_a=with_engine, policy_b=with_engine + policy()) as both:
        carries(routers)

        mine = ALL if engine == "native" else [word for word in ALL if word not in ("tso", "uso")]
        has = words(probe())
        used = [word for word in mine if word in has and word not in KERNELS[kernel]]
        missing = [word for word in mine if word not in used]
        for velad in both:
            assert velad.status()["engine_features"] == used
            assert f" disabled=[] missing={missing} used={used}" in logged(velad)
            shown = velad.control("status").stdout.splitlines()
            unused = [word for word in ALL if word not in used]
            assert f"kernel features not in use: {', '.join(unused)}" in shown
            assert velad.circuit(NAME)["worker"]["restarts"] == 0


@pytest.mark.needs_net_admin
def test_features_that_are_disabled_are_not_used_and_all_the_others_are(
    routers: TwoRouters,
) -> None:
    config = '[daemon]\nengine = "native"\ndisable_features = ["uso", "rwf_nowait"]\n'
    with Velad(routers.a.namespace, config) as velad:
        has = words(probe())
        assert velad.status()["engine_features"] == [
            word for word in has if word not in ("rwf_nowait", "uso")
        ]
        disabled = ["rwf_nowait", "uso"]
        assert f" disabled={disabled} " in logged(velad)


def logged(velad: Velad) -> str:
    (line,) = (line for line in velad.log().splitlines() if "] kernel_features " in line)
    return line


@pytest.mark.needs_net_admin
@pytest.mark.parametrize("engine", ["native", "python"])
def test_worker_that_polls_notices_that_its_interface_was_removed(
    engine: str, routers: TwoRouters
) -> None:
    """Its poll is woken, and the read behind it says so: no crash, and no frames for nobody."""
    config = f'[daemon]\nengine = "{engine}"\ndisable_features = ["rwf_nowait"]\n'
    with circuit(routers, policy_a=config) as both:
        worker = both.a.worker_pid(NAME)
        routers.a.namespace.run("ip", "link", "delete", NAME)

        both.a.wait_for(
            lambda status: status["circuits"][0]["worker"]["pid"] not in (None, worker),
            10,
            "another worker",
        )
        both.a.wait_for_state(NAME, "up")
        eventually(
            lambda: ping(routers.a.namespace, ADDRESSES[1]).lost == 0, 10, "pings to be answered"
        )

        assert "interface_removed" in both.a.log()
        assert "worker_crashed" not in both.a.log()
        assert both.a.circuit(NAME)["worker"]["restarts"] == 0
