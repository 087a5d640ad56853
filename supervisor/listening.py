"""The listening sockets: those that another velad has left, or new ones."""

from __future__ import annotations

import socket

import structlog

from vela.errors import VelaError
from vela.linux.features import Feature, Features
from vela.linux.underlay import RECEIVE_BUFFER, ReceiveGroup

from .config.records import DaemonConfig
from .fd_store import FdStore
from .inheritance import Inheritance, member_name


def listen(
    config: DaemonConfig, features: Features, inheritance: Inheritance, store: FdStore
) -> tuple[ReceiveGroup, ...]:
    """Bind all listening addresses. Raises DeviceError, and then binds none."""
    # "::" also receives IPv4, unless an IPv4 address is listed too.
    only_ipv6 = any(address.version == 4 for address in config.listen)
    gro = Feature.UDP_GRO in features
    groups: dict[int, ReceiveGroup] = {}
    misfits: set[str] = set()
    try:
        for number, address in enumerate(config.listen):
            adopted = inheritance.take_group(address, config.port)
            if not adopted:
                continue
            group = ReceiveGroup(
                address,
                config.port,
                only_ipv6=only_ipv6,
                gro=gro,
                adopted=adopted,
                in_use=inheritance.in_use(address, config.port),
            )
            # That can be chosen only before the port is bound.
            if address.version == 6 and only_ipv6 != bool(
                adopted[0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            ):
                misfits |= {member_name(group, index) for index in range(len(adopted))}
                group.close()
            else:
                groups[number] = group
        # Before the others are bound: as long as anybody has these their ports are taken.
        binds = len(groups) < len(config.listen)
        store.forget(inheritance.drop_sockets(apart=binds) | misfits)
        for number, address in enumerate(config.listen):
            if number not in groups:
                groups[number] = ReceiveGroup(address, config.port, only_ipv6=only_ipv6, gro=gro)
    except VelaError:
        for group in groups.values():
            group.close()
        raise
    bound = tuple(groups[number] for number in range(len(config.listen)))
    _warn_of_clipped_buffers(bound)
    return bound


def _warn_of_clipped_buffers(groups: tuple[ReceiveGroup, ...]) -> None:
    for group in groups:
        if group.receive_buffer < RECEIVE_BUFFER:
            structlog.get_logger().warning(
                "receive_buffer_clipped",
                listen=str(group),
                wanted_bytes=RECEIVE_BUFFER,
                granted_bytes=group.receive_buffer,
                advice="raise net.core.rmem_max",
            )
