"""Which machine set a circuit up: what a CONFIRM says of its sender. Pure.

docs/protocol.md, section 4.10. A token tells one machine from others, and is no proof against who
can read it on the path. Where ends have public keys, those say who it was.
"""

from __future__ import annotations

import hashlib
import hmac

from vela.signaling.messages import Confirm

TOKEN_LENGTH = 16
MAKER_LENGTH = 16
MACHINE_SECRET_LENGTH = 32

_TOKEN_LABEL, _MAKER_LABEL = b"vela machine 1", b"vela maker 1"


def token(machine_secret: bytes, context: bytes) -> bytes:
    """Return what a machine says of itself; context: the circuit and its remote.

    Nobody else can compute it, and who was told one knows none for another circuit or remote.
    """
    return hmac.digest(machine_secret, _TOKEN_LABEL + context, hashlib.sha256)[:TOKEN_LENGTH]


def maker_of(confirm: Confirm) -> bytes | None:
    """Return what to remember of the machine that sent a CONFIRM; None: it does not say.

    Not the token itself: a file with it would let its reader pass for that machine.
    """
    if confirm.machine is None:
        return None
    return hashlib.sha256(_MAKER_LABEL + confirm.machine).digest()[:MAKER_LENGTH]
