"""New keys each second, and what the circuit carries meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.autoconfigured import Ends, Settings, asking, policy, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad
from lab.load import iperf3, kernel_counts, ping
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

# The defaults of Limits, in the order of its fields; the rest stays as it is.
REKEY_EACH_SECOND = """
from vela.signaling import encryption
encryption.Limits.__init__.__defaults__ = (1.0, *encryption.Limits.__init__.__defaults__[1:])
"""


def settings(psk: Path) -> Settings:
    return {"encryption": "required", "key_file": str(psk)}


@pytest.fixture
def psk(tmp_path: Path) -> Path:
    path = tmp_path / "psk"
    path.write_bytes(b"thirty-two bytes, and some more.\n")
    path.chmod(0o600)
    return path


@pytest.mark.alone
@pytest.mark.parametrize("load_s", [5, pytest.param(60, marks=pytest.mark.thorough)])
def test_nothing_is_lost_while_keys_change_each_second(
    routers: TwoRouters, psk: Path, load_s: int
) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    with (
        Velad(b, policy(**settings(psk)), before=REKEY_EACH_SECOND) as velad_b,
        Velad(a, asking(routers.b.ipv4, **settings(psk)), before=REKEY_EACH_SECOND) as velad_a,
    ):
        both = Ends(velad_a, velad_b)
        wait_until_up(both)
        first = generation(velad_a)
        full = full_sockets(routers)
        # TCP fills the tunnel, so sockets may be full. Of datagrams that came, none is refused.
        tcp = iperf3(b, a, "172.16.16.2", seconds=load_s)
        assert tcp.received_bits_per_s > 100e6
        pings = ping(a, "172.16.16.2", count=50 * load_s, interval_s=0.02)

        # A datagram that a full socket refuses may be one that GRO made of 64.
        most = 64 * (full_sockets(routers) - full)
        for sender, receiver in ((velad_a, velad_b), (velad_b, velad_a)):
            assert 0 <= frames(sender, "tx_frames") - frames(receiver, "rx_frames") <= most
        assert pings.lost == 0
        assert generation(velad_a) - first >= 1.5 * load_s
        for velad in both:
            counters = velad.circuit(NAME)["counters"]
            for reason in ("bad_tag", "no_key", "replayed", "clear"):
                assert counters["rx_dropped"][reason] == 0, reason
            assert counters["tx_dropped"]["no_key"] == 0
            assert "state=down" not in velad.log()


def generation(velad: Velad) -> int:
    return int(velad.circuit(NAME)["cipher"]["generation"])


def frames(velad: Velad, name: str) -> int:
    return int(velad.circuit(NAME)["counters"][name])


def full_sockets(routers: TwoRouters) -> int:
    return sum(kernel_counts(each.namespace, "UdpRcvbufErrors") for each in (routers.a, routers.b))
