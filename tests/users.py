"""Whom children of the tests run as."""

from __future__ import annotations

import os

from vela.linux.sandbox import User, find_user


def child_user() -> User:
    """Return nobody, or this process's own user: only root can become another one."""
    return find_user("nobody") if os.geteuid() == 0 else User(os.getuid(), os.getgid())
