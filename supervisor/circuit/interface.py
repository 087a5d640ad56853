"""The attachment circuit: a TAP with its addresses, its bridge and its carrier."""

from __future__ import annotations

import structlog

from vela.errors import DeviceError
from vela.linux.features import Features
from vela.linux.forwarding import Forwarding
from vela.linux.netlink import Netlink
from vela.linux.sysctls import set_accept_ra
from vela.linux.tap import Tap
from vela.wire import gso_max_size

from ..config.records import CircuitConfig, Encapsulation


class AttachmentCircuit:
    """One circuit's interface. It exists until close(), unless another program removes it."""

    def __init__(
        self,
        config: CircuitConfig,
        mac: bytes,
        mtu: int,
        *,
        netlink: Netlink,
        forwarding: Forwarding,
        virtio_header: bool,
        features: Features,
        await_bridge: bool,
        shielded: bool = False,
    ) -> None:
        """Create the interface, up, with addresses, without carrier. mtu: in bytes.

        virtio_header: see linux.tap. await_bridge: a missing bridge is not an error;
        see obstacle. shielded: it is an error if router advertisements cannot be
        kept out. Raises DeviceError, and then creates nothing.
        """
        self.mac = mac
        self._config = config
        self._netlink = netlink
        self._forwarding = forwarding
        self._virtio_header = virtio_header
        self._features = features
        self._bridge_index: int | None = None
        self._gso_max_size = 0
        self._encrypted = False
        self._await_bridge = await_bridge
        self._shielded = shielded
        self._log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        self._tap = self._make(mtu)
        # The interface outlives its bridge.
        self._await_bridge = True

    @property
    def fd(self) -> int:
        """The descriptor that frames are read from and written to."""
        return self._tap.fd

    @property
    def mtu(self) -> int:
        return self._tap.mtu

    @property
    def virtio_header(self) -> bool:
        """Whether each frame has a virtio header."""
        return self._tap.virtio_header

    @property
    def obstacle(self) -> str:
        """Why the interface has not joined its bridge; empty: it has, or there is none."""
        if self._config.bridge is None or self._bridge_index is not None:
            return ""
        return f"the bridge {self._config.bridge} does not exist; waiting for it"

    def exists(self) -> bool:
        """Tell whether the interface still exists, under any name."""
        return self._tap.exists()

    def restore(self) -> None:
        """Set what a worker may have changed by its copy of the descriptor. Raises DeviceError."""
        self._tap.restore()

    def make_again(self) -> None:
        """Create the interface again after it was removed, with the same settings.

        Raises DeviceError, and may then be called again.
        """
        self._tap.close()
        self._tap = self._make(self._tap.mtu)

    def set_mtu(self, mtu: int, *, encrypted: bool) -> None:
        """Set the interface's MTU, in bytes. Raises DeviceError.

        encrypted: each frame grows by what encryption adds, so fewer go with one send.
        """
        if (mtu, encrypted) != (self._tap.mtu, self._encrypted):
            self._tap.set_mtu(mtu)
            self._encrypted = encrypted
            self.set_gso_max_size()

    def set_carrier(self, carrier: bool) -> None:
        """Set the carrier, which routing daemons and bridges see. Raises DeviceError."""
        self._tap.set_carrier(carrier)

    def set_gso_max_size(self) -> None:
        """Set the GSO size to the present best value. Raises DeviceError."""
        size = self._best_gso_max_size(self._tap.mtu)
        if self._tap.virtio_header and size != self._gso_max_size:
            self._netlink.set_gso_max_size(self._config.name, size)
            self._gso_max_size = size

    def look_for_bridge(self) -> None:
        """Join the bridge if it was created since the last look. Raises DeviceError."""
        bridge = self._config.bridge
        if bridge is None:
            return
        index = self._netlink.find(bridge)
        if index == self._bridge_index:
            return
        self._bridge_index = None
        if index is None:
            self._log.warning("bridge_missing", bridge=bridge)
            return
        self._join(bridge)
        self._bridge_index = index
        self._log.info("bridge_joined", bridge=bridge)

    def write(self, frame: memoryview) -> None:
        """Write a complete frame to the kernel. Raises OSError: EIO if the interface is down."""
        self._tap.write(frame)

    def close(self) -> None:
        """Close this descriptor. The interface disappears with the last one."""
        self._tap.close()

    def _make(self, mtu: int) -> Tap:
        config = self._config
        size = self._best_gso_max_size(mtu)
        tap = Tap(
            config.name, self.mac, mtu, virtio_header=self._virtio_header, features=self._features
        )
        try:
            self._shield()
            if config.bridge is not None:
                self._bridge_index = self._netlink.find(config.bridge)
                if self._bridge_index is not None or not self._await_bridge:
                    self._join(config.bridge)
                else:
                    self._log.warning("bridge_missing", bridge=config.bridge)
            # A remote that is a TUN answers no ARP and no neighbour solicitation.
            self._netlink.bring_up(
                config.name,
                config.addresses,
                arp=config.encapsulation is not Encapsulation.IP,
                gso_max_size=size if self._virtio_header else None,
                alias=config.description,
            )
        except DeviceError:
            tap.close()
            raise
        self._gso_max_size = size
        return tap

    def _shield(self) -> None:
        """Let router advertisements in or not, before the interface is up."""
        try:
            set_accept_ra(self._config.name, self._config.accept_ra)
        except DeviceError as err:
            if self._shielded:
                raise
            self._log.error("accept_ra_not_set", error=str(err))

    def _join(self, bridge: str) -> None:
        config = self._config
        bridge_mtu = self._netlink.join_bridge(config.name, bridge)
        if config.mtu is None or config.mtu < bridge_mtu:
            self._log.warning(
                "bridge_mtu_exceeds_circuit",
                bridge=bridge,
                bridge_mtu=bridge_mtu,
                consequence="the bridge stays as it is; larger frames do not pass this circuit",
                advice=f"set mtu = {bridge_mtu} on both ends to carry all that the bridge does",
            )

    def _best_gso_max_size(self, mtu: int) -> int:
        forwarded = self._config.bridge is not None or self._forwarding.enabled
        return gso_max_size(mtu, forwarded=forwarded, encrypted=self._encrypted)
