"""Receive buffers beyond net.core.rmem_max."""

from __future__ import annotations

import socket

_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h


def force_receive_buffer(receiver: socket.socket, size: int) -> None:
    """Let a socket keep so many bytes, counted twice by the kernel. Needs CAP_NET_ADMIN."""
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
