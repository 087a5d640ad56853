"""socat between a TAP and a UDP socket: no protocol at all."""

from __future__ import annotations

from lab.tunnels.programs import Plan, program_tunnel
from lab.tunnels.tunnel import ETHERNET, IPV4_UDP, End


def _commands(plan: Plan) -> tuple[list[str], list[str]]:
    def command(end: End) -> list[str]:
        remote = plan.other(end).router.ipv4
        return [
            "socat",
            f"TUN,tun-type=tap,tun-name={end.interface},iff-no-pi,iff-up",
            f"UDP4-DATAGRAM:{remote}:{plan.port},bind={end.router.ipv4}:{plan.port}",
        ]

    a, b = plan.ends
    return command(a), command(b)


socat = program_tunnel("socat", "socat", IPV4_UDP + ETHERNET, _commands)
