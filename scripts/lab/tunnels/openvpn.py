"""OpenVPN between two peers, without TLS, cipher and digest: frames in datagrams, nothing else."""

from __future__ import annotations

from lab.tunnels.programs import Plan, program_tunnel
from lab.tunnels.tunnel import ETHERNET, IPV4_UDP, End


def _commands(plan: Plan) -> tuple[list[str], list[str]]:
    def command(end: End) -> list[str]:
        return [
            *("openvpn", "--dev", end.interface, "--dev-type", "tap", "--proto", "udp4"),
            *("--local", end.router.ipv4, "--remote", plan.other(end).router.ipv4),
            *("--port", str(plan.port), "--tun-mtu", str(plan.mtu), "--mssfix", "0"),
            *("--cipher", "none", "--data-ciphers", "none", "--auth", "none", "--fast-io"),
            *("--verb", "1"),
        ]

    a, b = plan.ends
    return command(a), command(b)


openvpn = program_tunnel("openvpn", "ovpn", IPV4_UDP + ETHERNET, _commands)
