"""A circuit between two machines that is encrypted, by a pre-shared key or by both identities."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lab.autoconfigured import Settings, asking, policy
from lab.circuit import NAME
from lab.daemon import Velad
from lab.process import children
from lab.topology import TwoRouters
from lab.waiting import eventually
from vela.public_key import format_public_key
from vela.supervisor.config.identity import generate

PSK = b"thirty-two bytes, and some more."

EACH_SECOND = """
from functools import partial
from vela.signaling import encryption
encryption.Limits = partial(encryption.Limits, rekey_after_s=1.0, keep_old_s=1.0)
"""
"""Of velad, before it starts: it changes keys each second, and keeps the old ones for no longer."""


def psk_file(directory: Path) -> Path:
    path = directory / "psk"
    path.write_bytes(PSK + b"\n")
    path.chmod(0o600)
    return path


def psk_configs(routers: TwoRouters, psk: Path, encryption: str = "required") -> tuple[str, str]:
    """Return the configurations of A, which asks, and of B."""
    keys: Settings = {"encryption": encryption, "key_file": str(psk)}
    return asking(routers.b.ipv4, **keys), policy(**keys)


def identity_configs(
    routers: TwoRouters, directory: Path, psk: Path | None = None
) -> tuple[str, str]:
    """Likewise, with identities that are made in directory: a.key and b.key."""
    publics = [format_public_key(generate(directory / f"{name}.key")) for name in "ab"]
    a, b = (f'[daemon]\nidentity = "{directory / name}.key"\n' for name in "ab")
    keys: Settings = {"encryption": "required", "key_file": None if psk is None else str(psk)}
    return (
        a + asking(routers.b.ipv4, peer_key=publics[1], **keys),
        b + policy(sources=None, peers=[publics[0]], **keys),
    )


def generation(velad: Velad) -> int:
    """Return that of the keys which the circuit sends with; 0: it has none."""
    cipher = velad.circuit(NAME)["cipher"]
    return int(cipher["generation"]) if cipher else 0


def await_rekey(velad: Velad, after: int) -> None:
    eventually(lambda: generation(velad) > after, 10, "other keys")


def holder_of(velad: Velad) -> int:
    """Return the process id of the key holder; 0: there is none now."""
    for pid in children(velad.pid):
        with suppress(FileNotFoundError):  # it ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text().strip() == "velad-keys":
                return pid
    return 0
