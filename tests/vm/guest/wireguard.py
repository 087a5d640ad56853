"""WireGuard as underlay, where its MTU of 1420 leaves 1391 for the TAP; and beside a circuit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sealed_circuit import psk_configs, psk_file

from lab.autoconfigured import ends, wait_until_up
from lab.circuit import NAME
from lab.copying import copy
from lab.daemon import Velad, started_together
from lab.link import Interface
from lab.load import ping
from lab.quickstart import CONFIG_A, CONFIG_B, PEER_ADDRESSES
from lab.topology import Router, TwoRouters

pytestmark = pytest.mark.needs_net_admin

FILE_BYTES = 4_000_000
SEALED_MTU = 1450
# 1420 less 20 (IPv4), 8 (UDP) and 1 (circuit id).
TAP_MTU = 1391
WG = {"a": "10.202.0.1", "b": "10.202.0.2"}


def test_circuit_over_wireguard_has_its_mtu_and_carries_a_file(
    routers: TwoRouters, tmp_path: Path
) -> None:
    tunnels(routers, tmp_path)
    a, b = routers.a.namespace, routers.b.namespace
    left = Velad(a, CONFIG_A.replace(routers.b.ipv4, WG["b"]))
    right = Velad(b, CONFIG_B.replace(routers.a.ipv4, WG["a"]))
    with started_together(left, right):
        for velad in (left, right):
            assert velad.wait_for_state("vela0", "up", timeout_s=20)["mtu"] == TAP_MTU

        for address in PEER_ADDRESSES:
            assert ping(a, address, count=3, size=TAP_MTU, dont_fragment=True).lost == 0
        copied = copy(a, b, PEER_ADDRESSES[0], FILE_BYTES, timeout_s=60)

        assert copied.received_digest == copied.sent_digest
        assert left.circuit("vela0")["counters"]["tx_fragmented"] == 0


def test_encrypted_circuit_beside_wireguard_on_one_path(
    routers: TwoRouters, tmp_path: Path
) -> None:
    tunnels(routers, tmp_path)
    a, b = routers.a.namespace, routers.b.namespace
    configs = psk_configs(routers, psk_file(tmp_path))
    with ends(routers, *configs) as both, ThreadPoolExecutor() as pool:
        wait_until_up(both)
        for velad in both:
            circuit = velad.circuit(NAME)
            assert (circuit["encryption"], circuit["mtu"]) == ("required", SEALED_MTU)
        assert ping(a, PEER_ADDRESSES[0], count=3, size=SEALED_MTU, dont_fragment=True).lost == 0

        copies = [
            pool.submit(copy, a, b, address, FILE_BYTES, timeout_s=120)
            for address in (PEER_ADDRESSES[0], WG["b"])
        ]
        for done in copies:
            copied = done.result()
            assert copied.received == FILE_BYTES
            assert copied.received_digest == copied.sent_digest
        for velad in both:
            dropped = velad.circuit(NAME)["counters"]["rx_dropped"]
            assert (dropped["bad_tag"], dropped["replayed"]) == (0, 0)


def tunnels(routers: TwoRouters, directory: Path) -> None:
    """Make wg0 at both ends, with the addresses WG."""
    keys = {name: directory / f"{name}.key" for name in ("a", "b")}
    public = {}
    for name, path in keys.items():
        private = routers.a.namespace.run("wg", "genkey").stdout
        path.write_text(private)
        public[name] = routers.a.namespace.run("wg", "pubkey", stdin=private).stdout.strip()
    _wireguard(routers.a, keys["a"], WG["a"], public["b"], WG["b"], routers.b.ipv4)
    _wireguard(routers.b, keys["b"], WG["b"], public["a"], WG["a"], routers.a.ipv4)


def _wireguard(
    router: Router, key: Path, address: str, peer_key: str, peer_address: str, endpoint: str
) -> None:
    namespace = router.namespace
    namespace.run("ip", "link", "add", "wg0", "type", "wireguard")
    namespace.run(
        *("wg", "set", "wg0", "private-key", str(key), "listen-port", "51820"),
        *("peer", peer_key, "allowed-ips", f"{peer_address}/32", "endpoint", f"{endpoint}:51820"),
    )
    tunnel = Interface(namespace, "wg0")
    tunnel.add_address(f"{address}/24")
    tunnel.set_mtu(1420)
    tunnel.set_up()
