"""VELA itself: circuits as two ends of this version agree on them, with whatever both can do."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lab.daemon import Velad, entry_point, with_files
from lab.topology import TwoRouters
from lab.tunnels.bridged import Join
from lab.tunnels.tunnel import (
    End,
    Segment,
    Tunnel,
    UnavailableError,
    await_whole_packets,
    ends,
    port,
)

UP_TIMEOUT_S = 20.0
OVERHEAD = 20 + 8 + 1  # IPv4, UDP, circuit id; docs/protocol.md
ENCRYPTED_OVERHEAD = OVERHEAD + 21  # phase, counter, tag


# Workers as on a kernel that filters no system calls.
_UNFILTERED = "from vela.linux import sandbox; sandbox.why_no_filter = lambda: 'told so'"


def vela(
    engine: str,
    disabled: tuple[str, ...] = (),
    *,
    apart: bool = False,
    filtered: bool = True,
    encrypted: bool = False,
    spread: bool = False,
    low_latency: bool = False,
    pinned: bool = False,
) -> Tunnel:
    """Return the tunnel of one circuit with that engine.

    disabled: features of the kernel; apart: its ends are on different CPUs; filtered: workers
    have a filter of their system calls; encrypted: by a pre-shared key; spread: it has a queue on
    each of two CPUs; pinned: both ends stay on the first CPU, also under load.
    """

    @contextmanager
    def tunnel(routers: TwoRouters, number: int) -> Iterator[Segment]:
        pairs = [ends(routers, number, "vela")]
        with vela_circuits(
            engine,
            pairs,
            port(number),
            disabled,
            apart=apart,
            filtered=filtered,
            encrypted=encrypted,
            spread=spread,
            low_latency=low_latency,
            pinned=pinned,
        ) as segments:
            yield segments[0]

    return tunnel


@contextmanager
def vela_circuits(
    engine: str,
    pairs: list[tuple[End, End]],
    udp_port: int,
    disabled: tuple[str, ...] = (),
    *,
    apart: bool = False,
    filtered: bool = True,
    encrypted: bool = False,
    spread: bool = False,
    low_latency: bool = False,
    pinned: bool = False,
) -> Iterator[list[Segment]]:
    """Circuits 1, 2, ... between one velad at each end, one for each pair of ends.

    spread: each has a queue on each of two CPUs.
    apart: the two ends of each are on different CPUs. Those of the engine in
    Python always are: it computes more than it waits, so each end needs what
    a machine of its own would give it. The native ones do better on one CPU,
    as waking another one takes longer.
    """
    apart = apart or engine == "python"
    with ExitStack() as stack:
        key = _key(stack) if encrypted else ""
        configs = []
        for own in (0, 1):
            cpus = _cpus(own, apart, spread, low_latency, pinned)
            configs.append(_config(engine, pairs, udp_port, disabled, own, cpus, key))
        workers = stack.enter_context(_workers(pairs, configs, filtered=filtered))
        overhead = ENCRYPTED_OVERHEAD if encrypted else OVERHEAD
        mtu = pairs[0][0].router.underlay.mtu - overhead
        segments = [Segment(*pair, mtu, pids) for pair, pids in zip(pairs, workers, strict=True)]
        for segment in segments:
            await_whole_packets(segment)
        yield segments


def vela_bridged(keys: str = "") -> Join:
    """Return what joins two bridges by a circuit with the native engine: all defaults, and keys."""

    @contextmanager
    def join(pair: tuple[End, End], bridge: str, number: int) -> Iterator[tuple[int, ...]]:
        own = f'bridge = "{bridge}"\n{keys}'
        configs = [
            _config("native", [pair], port(number), (), end, lambda _: "", own, addressed=False)
            for end in (0, 1)
        ]
        with _workers([pair], configs) as (pids,):
            yield pids

    return join


@contextmanager
def _workers(
    pairs: list[tuple[End, End]], configs: list[str], *, filtered: bool = True
) -> Iterator[list[tuple[int, ...]]]:
    """Run velad at both ends until all circuits are up; yield the two workers of each pair."""
    _need_engine(pairs[0][0], configs[0])
    with ExitStack() as stack:
        velads = [
            stack.enter_context(
                Velad(end.namespace, config, before="" if filtered else _UNFILTERED)
            )
            for end, config in zip(pairs[0], configs, strict=True)
        ]
        for velad in velads:
            velad.wait_for(_all_up, UP_TIMEOUT_S, "all circuits to be up")
        yield [
            tuple(velad.worker_pid(end.interface) for end, velad in zip(pair, velads, strict=True))
            for pair in pairs
        ]


def _all_up(status: dict[str, Any]) -> bool:
    return all(circuit["state"] == "up" for circuit in status["circuits"])


def _key(stack: ExitStack) -> str:
    """Return the keys of a circuit that encrypts with a new pre-shared key, which is in a file."""
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="vela-lab-"))
    path = Path(directory, "key")
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return f'encryption = "required"\nkey_file = "{path}"\n'


def _config(
    engine: str,
    pairs: list[tuple[End, End]],
    udp_port: int,
    disabled: tuple[str, ...],
    own: int,
    cpus: Callable[[int], str],
    keys: str,
    *,
    addressed: bool = True,
) -> str:
    text = [
        f'[daemon]\nengine = "{engine}"\nport = {udp_port}\n'
        f"disable_features = {json.dumps(disabled)}\n"
    ]
    for circuit_id, pair in enumerate(pairs, start=1):
        end, other = pair[own], pair[1 - own]
        addresses = [f"{end.address}/24"] if addressed else []
        text.append(
            f"[circuits.{end.interface}]\n"
            f'id = {circuit_id}\nremote = "{other.router.ipv4}:{udp_port}"\n'
            f"addresses = {json.dumps(addresses)}\n{keys}{cpus(circuit_id)}"
        )
    return "".join(text)


def _cpus(
    own: int, apart: bool, spread: bool, low_latency: bool, pinned: bool
) -> Callable[[int], str]:
    """Return what says, for each circuit id, which CPUs an end of it has."""
    cpus = sorted(os.sched_getaffinity(0))
    if spread:
        return lambda _: f"cpu = {cpus[:2]}\n"
    if pinned:
        return lambda _: f"cpu = {cpus[0]}\n"
    if apart or low_latency:
        latency = 'latency = "low"\n' if low_latency else ""
        return lambda circuit_id: f"cpu = {cpus[(circuit_id + own) % len(cpus)]}\n{latency}"
    return lambda _: ""


def _need_engine(end: End, config: str) -> None:
    """Raise UnavailableError, with what velad says, if it refuses the configuration."""
    with tempfile.TemporaryDirectory(prefix="vela-lab-") as directory:
        path = Path(directory, "vela.toml")
        path.write_text(with_files(config, path.parent))
        command, env = entry_point("velad", "vela.supervisor.cli")
        line = (*command, "--config", str(path), "--check")
        done = end.namespace.run(*line, check=False, env=env)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise UnavailableError(f"velad: {said.replace(str(path), path.name)}")
