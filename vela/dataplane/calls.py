"""The system calls that each engine makes while it carries frames, for the worker's sandbox.

By descriptor: a worker that was taken over then reads and writes nothing but what it was to.
What Python itself needs is in vela.linux.sandbox.
"""

from __future__ import annotations

import socket

from vela.dataplane.contract import Attachment
from vela.linux.features import Feature
from vela.linux.seccomp import Rule, allow, equals
from vela.linux.underlay import IP_MTU, IP_MTU_DISCOVER, IPV6_MTU, IPV6_MTU_DISCOVER

_WAITING = (allow("poll"), allow("ppoll"))


def native_calls(attachment: Attachment) -> tuple[Rule, ...]:
    """Return the calls of vela/dataplane/native/, the frequent ones first."""
    tap = equals(0, attachment.tap_fd)
    send = equals(0, attachment.send_socket.fileno())
    # Loops of an encrypted circuit wait in no other call, so that keys are looked after.
    waits_elsewhere = attachment.key_page is None and not attachment.low_latency
    return (
        allow("preadv2", tap),
        allow("sendmsg", send),
        allow("recvmmsg", equals(0, attachment.receive_socket.fileno())),
        allow("writev", tap),
        # Without UDP_SEGMENT, and where the kernel refuses it.
        allow("sendmmsg", send),
        *(() if Feature.RWF_NOWAIT in attachment.features and waits_elsewhere else _WAITING),
        *_common(attachment),
    )


def python_calls(attachment: Attachment) -> tuple[Rule, ...]:
    """Return the calls of vela.dataplane.reference, the frequent ones first."""
    tap = equals(0, attachment.tap_fd)
    return (
        allow("preadv2", tap),
        allow("sendmsg", equals(0, attachment.send_socket.fileno())),
        allow("recvmsg", equals(0, attachment.receive_socket.fileno())),
        allow("write", tap),
        *((allow("writev", tap),) if attachment.virtio_header else ()),
        *_WAITING,
        *_common(attachment),
    )


def _common(attachment: Attachment) -> tuple[Rule, ...]:
    send = equals(0, attachment.send_socket.fileno())
    options = (
        (socket.SOL_SOCKET, socket.SO_DOMAIN),
        (socket.IPPROTO_IP, IP_MTU),
        (socket.IPPROTO_IPV6, IPV6_MTU),
        (socket.IPPROTO_IP, IP_MTU_DISCOVER),
        (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER),
    )
    divert = equals(0, attachment.divert_socket.fileno())
    return (
        allow("sendto", divert),
        *((allow("recvfrom", divert),) if attachment.key_page is not None else ()),
        *(
            allow("getsockopt", send, equals(1, level), equals(2, option))
            for level, option in options
        ),
    )
