"""The handshake and the liveness of circuits. Pure: no sockets, no clock."""
