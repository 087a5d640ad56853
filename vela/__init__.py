"""The VELA protocol and data path: what a pseudowire is, and the process that carries one."""

__version__ = "0.1.0"
