"""fastd with its method null, which neither encrypts nor authenticates; and with a cipher."""

from __future__ import annotations

import subprocess
from functools import partial

from lab.tunnels.programs import Plan, program_tunnel
from lab.tunnels.tunnel import ETHERNET, IPV4_UDP, READY_TIMEOUT_S

OVERHEAD = IPV4_UDP + 1 + ETHERNET  # the type of the packet
ENCRYPTED_OVERHEAD = IPV4_UDP + 24 + ETHERNET  # type, nonce, tag


def _commands(plan: Plan, method: str) -> tuple[list[str], list[str]]:
    keys = {end: _key() for end in plan.ends}
    paths = [plan.directory / f"{end.interface}-{end.namespace.name}.conf" for end in plan.ends]
    for end, path in zip(plan.ends, paths, strict=True):
        other = plan.other(end)
        path.touch(mode=0o600)
        path.write_text(
            f'log level warn; mode tap; interface "{end.interface}"; method "{method}";\n'
            f"mtu {plan.mtu}; bind {end.router.ipv4}:{plan.port};\n"
            f'secret "{keys[end][0]}";\n'
            f'peer "other" {{ key "{keys[other][1]}"; remote {other.router.ipv4}:{plan.port}; }}\n'
        )
    a, b = (["fastd", "--config", str(path)] for path in paths)
    return a, b


def _key() -> tuple[str, str]:
    """Return a new (secret, public) pair."""
    secret = _fastd("--generate-key")
    return secret, _fastd("--show-key", "--config", "-", stdin=f'secret "{secret}";')


def _fastd(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["fastd", "--machine-readable", *argv],
        check=True,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=READY_TIMEOUT_S,
    )
    return done.stdout.strip()


fastd = program_tunnel("fastd", "fastd", OVERHEAD, partial(_commands, method="null"))
fastd_salsa = program_tunnel(
    "fastd", "fasts", ENCRYPTED_OVERHEAD, partial(_commands, method="salsa2012+umac")
)
