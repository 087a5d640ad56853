"""The data path: frames between one TAP and the UDP sockets of one circuit."""
