"""The system calls of VELA, but for fork."""
