"""The attachment circuit: a TAP with its addresses, its bridge and its carrier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

import structlog

from vela.errors import DeviceError
from vela.linux.features import Features
from vela.linux.forwarding import Forwarding
from vela.linux.netlink import Netlink
from vela.linux.rtnetlink import TunLink
from vela.linux.sysctls import set_accept_ra
from vela.linux.tap import Tap
from vela.reasons import Cause, Reason
from vela.signaling.limiter import TokenBucket
from vela.wire import gso_max_size

from ..config.records import CircuitConfig, Encapsulation
from .links import Links
from .queues import tap_queues
from .surroundings import Wanted, departures, missing_addresses

# Of the log, about an interface that somebody changes again and again: one a minute.
LINES_RATE, LINES_BURST = 1 / 60, 3.0


class AttachmentCircuit:
    """One circuit's interface. It exists until close(), unless another program removes it."""

    def __init__(
        self,
        config: CircuitConfig,
        mac: bytes,
        mtu: int,
        *,
        netlink: Netlink,
        links: Links,
        forwarding: Forwarding,
        virtio_header: bool,
        features: Features,
        await_bridge: bool,
        shielded: bool = False,
        adopted: int | None = None,
        former: CircuitConfig | None = None,
        shared: bool = False,
        queues: Sequence[int] = (),
    ) -> None:
        """Create the interface, up, with addresses, without carrier. mtu: in bytes.

        virtio_header: see linux.tap. await_bridge: a missing bridge is not an error;
        see obstacles. shielded: it is an error if router advertisements cannot be
        kept out. Raises DeviceError, and then creates nothing.

        adopted: the descriptor of the interface that another velad has made by former; only
        what config wants otherwise is changed, and mtu does not count. shared: the service
        manager has a copy of the descriptor, and close() removes the interface all the same.
        queues: the descriptors of further queues of the adopted one.
        """
        self.mac = mac
        self._config = config
        self._netlink = netlink
        self._links = links
        self._forwarding = forwarding
        self._virtio_header = virtio_header
        self._features = features
        self._bridge_index: int | None = None
        self._bridge_mtu = 0
        self._compared: tuple[int, int] | None = None
        self._agreed = False
        self._gso_max_size = 0
        self._encrypted = False
        self._await_bridge = await_bridge
        self._shielded = shielded
        self._log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        self._carrier = False
        self._departures: tuple[Reason, ...] = ()
        self._lines = TokenBucket(LINES_RATE, LINES_BURST)
        self._shared = shared
        self.adopted = False
        """Whether it goes on with another velad's interface."""
        if adopted is not None:
            try:
                self._tap = self._adopt(
                    adopted, mac, mtu, config if former is None else former, queues
                )
                self.adopted = True
            except DeviceError as err:
                # Removed by somebody, for instance.
                self._config, self.mac, self._bridge_index = config, mac, None
                self._log.warning("interface_not_adopted", error=str(err))
        if not self.adopted:
            self._tap = self._make(mtu)
        # The interface outlives its bridge.
        self._await_bridge = True

    @property
    def fd(self) -> int:
        """The descriptor that frames are read from and written to."""
        return self._tap.fd

    @property
    def fds(self) -> tuple[int, ...]:
        """Those of all its queues."""
        return self._tap.fd, *self._tap.further

    def spread(self, queues: int) -> None:
        """Let flows go through the first queues. Raises DeviceError."""
        if len(self._tap.further):
            self._tap.spread(queues)

    @property
    def _name(self) -> str:
        """The present name: somebody may have renamed the interface."""
        return self._tap.present_name()

    @property
    def index(self) -> int:
        """The number that the kernel knows the interface by."""
        return self._tap.index

    @property
    def mtu(self) -> int:
        return self._tap.mtu

    @property
    def bridge_mtu(self) -> int | None:
        """Of the bridge when the interface joined it; None: it is not part of one."""
        return None if self._bridge_index is None else self._bridge_mtu

    @property
    def virtio_header(self) -> bool:
        """Whether each frame has a virtio header."""
        return self._tap.virtio_header

    @property
    def obstacles(self) -> tuple[Reason, ...]:
        """Which bridge it waits for, and what somebody changed of it; empty: nothing."""
        if self._config.bridge is not None and self._bridge_index is None:
            return Cause.BRIDGE_MISSING.say(bridge=self._config.bridge), *self._departures
        return self._departures

    def exists(self) -> bool:
        """Tell whether the interface still exists, under any name."""
        return self._tap.exists()

    def restore(self) -> None:
        """Set what a worker may have changed by its copy of the descriptor. Raises DeviceError."""
        self._tap.restore()
        self._mend(self._netlink.tun_link(self._tap.index))

    def on_changed(self, now: float) -> None:
        """Look at what somebody has changed of the interface: put it right, or show it. See Links.

        Without a filter, a worker's copy of the descriptor is all that some of it takes. Addresses
        are those of the configuration, and remotes rebuild headers by the MAC address; so the
        operator changes both there.
        """
        try:
            link = self._netlink.tun_link(self._tap.index)
        except DeviceError:
            # One that was removed is made again elsewhere.
            if self.exists():
                self._show((Cause.INTERFACE_ELSEWHERE.say(),), now)
            return
        try:
            changed = self._mend(link)
            changed += self._give_back_addresses(link)
            # Its bridge may have gone, and be there again.
            self.look_for_bridge()
        except DeviceError as err:
            if self.exists() and self._lines.take(now):
                self._log.warning("descriptors_not_restored", error=str(err))
        else:
            if changed and self._lines.take(now):
                self._log.warning("interface_restored", changed=changed)
        self._show(departures(self._wanted(), link, self._netlink.name_of), now)

    def _wanted(self) -> Wanted:
        config = self._config
        return Wanted(
            config.name, self._tap.mtu, config.addresses, config.bridge, self._bridge_index
        )

    def _show(self, found: tuple[Reason, ...], now: float) -> None:
        if found and found != self._departures and self._lines.take(now):
            self._log.warning("interface_changed", changes=list(map(str, found)))
        self._departures = found

    def _give_back_addresses(self, link: TunLink) -> list[str]:
        """Return what was given back. Raises DeviceError."""
        if not self._config.addresses:
            return []
        present = self._netlink.addresses(self._tap.index)
        missing = missing_addresses(self._wanted(), link, present)
        self._netlink.change_addresses(link.name, (), missing)
        return [str(each) for each in missing]

    def _mend(self, link: TunLink) -> list[str]:
        """Return what it was that had been changed. Raises DeviceError."""
        changed = []
        if link.persistent:
            changed.append("persistence")
        if link.owner not in (None, os.geteuid()) or link.group not in (None, os.getegid()):
            changed.append("owner")
        if changed:
            self._tap.restore()
        # Bonds and teams give their ports one MAC address, and rely on it.
        if link.mac != self.mac and link.port_of in ("", "bridge"):
            changed.append("mac")
            self._tap.restore_mac()
        self._tap.set_carrier(self._carrier)
        return changed

    def change(self, config: CircuitConfig, mac: bytes) -> None:
        """Take another configuration with the same name. Raises DeviceError.

        Only what this interface was given is changed; what others gave it stays.
        """
        before, self._config = self._config, config
        name = self._name
        if mac != self.mac:
            self._tap.change_mac(mac)
            self.mac = mac
        if config.description != before.description:
            self._netlink.set_alias(name, config.description)
        if config.accept_ra != before.accept_ra:
            self._shield(self._name)
        if _answers_arp(config) != _answers_arp(before):
            self._netlink.set_arp(name, _answers_arp(config))
        if config.bridge != before.bridge:
            self._change_bridge(config.bridge)
        if config.addresses != before.addresses:
            gone = [each for each in before.addresses if each not in config.addresses]
            added = [each for each in config.addresses if each not in before.addresses]
            self._netlink.change_addresses(name, gone, added)
        self.set_gso_max_size()

    def change_engine(self, features: Features, *, virtio_header: bool) -> None:
        """Prepare for workers of another engine. Raises DeviceError.

        virtio_header: it reads and writes one, where the interface has one. One that is made
        again has just what the engine wants.
        """
        self._virtio_header, self._features = virtio_header, features
        self._tap.set_offloads(virtio_header, features)

    def _change_bridge(self, bridge: str | None) -> None:
        if self._bridge_index is not None:
            self._bridge_index = None
            if bridge is None or self._netlink.find(bridge) is None:
                self._netlink.leave_bridge(self._name)
        if bridge is None:
            return
        index = self._netlink.find(bridge)
        if index is None:
            self._log.warning("bridge_missing", bridge=bridge)
            return
        self._join(self._name, bridge)
        self._bridge_index = index

    def make_again(self) -> None:
        """Create the interface again after it was removed, with the same settings.

        Raises DeviceError, and may then be called again.
        """
        self.close()
        self._carrier = False
        self._tap = self._make(self._tap.mtu)

    def set_mtu(self, mtu: int, *, encrypted: bool) -> None:
        """Set the interface's MTU, in bytes. Raises DeviceError.

        encrypted: each frame grows by what encryption adds, so fewer go with one send.
        """
        if (mtu, encrypted) != (self._tap.mtu, self._encrypted):
            self._tap.set_mtu(mtu)
            self._encrypted = encrypted
            self.set_gso_max_size()
        self._agreed = True
        self._compare_with_bridge()

    def set_carrier(self, carrier: bool) -> None:
        """Set the carrier, which routing daemons and bridges see. Raises DeviceError."""
        self._carrier = carrier
        self._tap.set_carrier(carrier)

    def set_gso_max_size(self) -> None:
        """Set the GSO size to the present best value. Raises DeviceError."""
        if not self._tap.virtio_header:
            return
        size = self._best_gso_max_size(self._tap.mtu)
        if size != self._gso_max_size:
            self._netlink.set_gso_max_size(self._name, size)
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
        self._join(self._name, bridge)
        self._bridge_index = index
        self._log.info("bridge_joined", bridge=bridge)
        self._compare_with_bridge()

    def write(self, frame: memoryview) -> None:
        """Write a complete frame to the kernel. Raises OSError: EIO if the interface is down."""
        self._tap.write(frame)

    def close(self) -> None:
        """Remove the interface."""
        self._links.unwatch(self._tap.index)
        if self._shared and self._tap.exists():
            try:
                self._netlink.remove(self._tap.index)
            except DeviceError as err:
                self._log.error("interface_not_removed", error=str(err))
        self._tap.close()

    def leave(self) -> None:
        """Close this descriptor. The interface disappears with the last one."""
        self._links.unwatch(self._tap.index)
        if self._carrier:
            with suppress(DeviceError):  # removed by somebody
                self.set_carrier(False)
        self._tap.close()

    def _adopt(
        self, fd: int, mac: bytes, mtu: int, former: CircuitConfig, queues: Sequence[int]
    ) -> Tap:
        """Go on with an interface that another velad has made by former. Raises DeviceError."""
        config, self._config = self._config, former
        tap = self._tap = Tap(
            config.name,
            mac,
            mtu,
            virtio_header=self._virtio_header,
            features=self._features,
            adopted=fd,
            queues=tap_queues(config),
            further=queues,
        )
        self.mac = tap.mac
        try:
            link = self._netlink.tun_link(tap.index)
            if former.bridge is not None:
                bridge = self._netlink.find(former.bridge)
                if bridge is not None and link.master == bridge:
                    self._bridge_mtu = self._netlink.bridge_mtu(former.bridge)
                    self._bridge_index = bridge
            self.change(config, mac)
            self._give_back_addresses(link)
        except DeviceError:
            tap.close()
            raise
        self._links.watch(tap.index, self.on_changed)
        self._log.info("interface_adopted", interface=link.name, index=tap.index)
        return tap

    def _make(self, mtu: int) -> Tap:
        config = self._config
        size = self._best_gso_max_size(mtu)
        tap = Tap(
            config.name,
            self.mac,
            mtu,
            virtio_header=self._virtio_header,
            features=self._features,
            queues=tap_queues(config),
        )
        try:
            self._shield(config.name)
            if config.bridge is not None:
                self._bridge_index = self._netlink.find(config.bridge)
                if self._bridge_index is not None or not self._await_bridge:
                    self._join(config.name, config.bridge)
                else:
                    self._log.warning("bridge_missing", bridge=config.bridge)
            self._netlink.bring_up(
                config.name,
                config.addresses,
                arp=_answers_arp(config),
                gso_max_size=size if self._virtio_header else None,
                alias=config.description,
            )
        except DeviceError:
            tap.close()
            raise
        self._gso_max_size = size
        self._links.watch(tap.index, self.on_changed)
        return tap

    def _shield(self, name: str) -> None:
        """Let router advertisements in or not, before the interface is up."""
        try:
            set_accept_ra(name, self._config.accept_ra)
        except DeviceError as err:
            if self._shielded:
                raise
            self._log.error("accept_ra_not_set", error=str(err))

    def _join(self, name: str, bridge: str) -> None:
        self._bridge_mtu = self._netlink.join_bridge(name, bridge)

    def _compare_with_bridge(self) -> None:
        """Log once if the bridge carries what this interface does not."""
        mtu, bridge_mtu = compared = (self._tap.mtu, self.bridge_mtu or 0)
        if not self._agreed or mtu >= bridge_mtu or compared == self._compared:
            return
        self._compared = compared
        self._log.warning(
            "bridge_mtu_exceeds_circuit",
            bridge=self._config.bridge,
            bridge_mtu=bridge_mtu,
            mtu=mtu,
            consequence="the bridge stays as it is; larger frames do not pass this circuit",
            advice=f"set mtu = {bridge_mtu} on both ends to carry all that the bridge does",
        )

    def _best_gso_max_size(self, mtu: int) -> int:
        forwarded = self._config.bridge is not None or self._forwarding.enabled
        return gso_max_size(mtu, forwarded=forwarded, encrypted=self._encrypted)


def _answers_arp(config: CircuitConfig) -> bool:
    """Tell whether the remote answers ARP and neighbour solicitations: a TUN does not."""
    return config.encapsulation is not Encapsulation.IP
