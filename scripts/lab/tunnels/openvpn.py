"""OpenVPN between two peers: without TLS, cipher and digest; and by TLS with AES-256-GCM."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.tunnels.programs import Plan, program_tunnel
from lab.tunnels.tunnel import ETHERNET, IPV4_UDP, READY_TIMEOUT_S, End

# Operation code and peer, packet number, tag.
ENCRYPTED_OVERHEAD = IPV4_UDP + ETHERNET + 4 + 4 + 16


def _command(plan: Plan, end: End) -> list[str]:
    return [
        *("openvpn", "--dev", end.interface, "--dev-type", "tap", "--proto", "udp4"),
        *("--local", end.router.ipv4, "--remote", plan.other(end).router.ipv4),
        *("--port", str(plan.port), "--tun-mtu", str(plan.mtu), "--mssfix", "0"),
        *("--fast-io", "--verb", "1"),
    ]


def _plain(plan: Plan) -> tuple[list[str], list[str]]:
    nothing = ["--cipher", "none", "--data-ciphers", "none", "--auth", "none"]
    a, b = (_command(plan, end) + nothing for end in plan.ends)
    return a, b


def _encrypted(plan: Plan) -> tuple[list[str], list[str]]:
    certificates = [_certificate(plan.directory / name) for name in ("a", "b")]
    commands = []
    for own, end in enumerate(plan.ends):
        role = ("--tls-server", "--dh", "none") if own == 0 else ("--tls-client",)
        path, _ = certificates[own]
        _, fingerprint = certificates[1 - own]
        commands.append(
            [
                *_command(plan, end),
                *role,
                "--cert",
                f"{path}.pem",
                "--key",
                f"{path}.key",
                "--peer-fingerprint",
                fingerprint,
                "--data-ciphers",
                "AES-256-GCM",
            ]
        )
    return commands[0], commands[1]


def _certificate(path: Path) -> tuple[Path, str]:
    """Make a key and its certificate. Return their path without suffix, and a digest."""
    made = ["-keyout", f"{path}.key", "-out", f"{path}.pem", "-nodes", "-days", "2"]
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *(*made, "-subj", f"/CN={path.name}"),
    )
    said = _openssl("x509", "-in", f"{path}.pem", "-noout", "-fingerprint", "-sha256")
    return path, said.partition("=")[2].strip()


def _openssl(*argv: str) -> str:
    done = subprocess.run(
        ["openssl", *argv], check=True, capture_output=True, text=True, timeout=READY_TIMEOUT_S
    )
    return done.stdout


openvpn = program_tunnel("openvpn", "ovpn", IPV4_UDP + ETHERNET, _plain)
openvpn_gcm = program_tunnel("openvpn", "ovgcm", ENCRYPTED_OVERHEAD, _encrypted)
