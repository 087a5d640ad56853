"""What the key holder is asked, and how it answers: layouts, operations, refusals. Pure.

A request has its number, an operation and its arguments; the reply has the number, a status, and
the result. Numbers of pages and sessions are the supervisor's; those of keys the holder's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from vela.errors import VelaError
from vela.wire import MAX_UDP_PAYLOAD

MAX_REQUEST = MAX_UDP_PAYLOAD + 64  # bytes: a PROBE, and what goes before it
MAX_REPLY = 256
# What a supervisor may make this process keep: ids of 255 remotes each, and rekeys.
MAX_KEYS, MAX_SESSIONS = 4096, 1 << 17
MAX_TOKEN_CONTEXT = 1024
MAX_DESCRIPTORS = 1  # in one request

REQUEST = struct.Struct("!QB")  # number, operation
REPLY = struct.Struct("!QB")  # number, status
KEY = struct.Struct("!Q")
SESSION = struct.Struct("!QQ")  # key, session; session 0: none
DERIVATION = struct.Struct("!QQB")  # key, session, whether this end is the initiator
NUMBER = struct.Struct("!Q")
# Session, page, pre-shared key, identity (0: none); pattern, whether this end is the initiator.
OPENING = struct.Struct("!QQQQBB")
GENERATION = struct.Struct("!QI")  # session, generation
ANSWER = struct.Struct("!BBH")  # suite, phase, bytes of the prologue
# Phase; serial number in the page, generation, frames and bytes sent, microseconds until it
# expires; whether the worker receives with it.
USAGE = struct.Struct("!BQQQQq?")


class Operation(IntEnum):
    """What can be asked for: the arguments, and the result."""

    LOAD = 1  # a descriptor of a file: KEY; equal keys are one
    DROP = 2  # KEY: nothing
    SIGN = 3  # SESSION, a message without its tags: the tags
    VERIFY = 4  # SESSION, a message: one byte, 1 or 0
    DERIVE = 5  # DERIVATION, a context: nothing
    FORGET = 6  # numbers of sessions: nothing
    TOKEN = 8  # KEY of the machine's secret, a context: what tells this machine from others
    GENERATE = 9  # a descriptor of an empty file: nothing; there is a new key in it then
    HELLO = 7  # nothing: why this memory may be swapped; empty: it may not
    # Of encrypted circuits: frame_key_holder.py.
    PAGE = 10  # KEY: a number for a key page, and its descriptor: nothing
    END_PAGE = 11  # KEY of a page: nothing
    IDENTITY = 12  # a descriptor of this machine's private key: KEY, and the public key
    OPEN = 13  # OPENING, and the remote's public key: nothing
    BEGIN = 14  # GENERATION, a prologue: message 1
    RESPOND = 15  # GENERATION, ANSWER, a prologue, message 1: message 2, the remote's public key
    FINISH = 16  # GENERATION, message 2: suite and phase
    INSTALL = 17  # GENERATION: KEY, the serial number of the keys in the page
    TRANSMIT = 18  # GENERATION: nothing
    RETIRE = 19  # GENERATION: nothing
    WIPE = 20  # KEY of a session: nothing
    USAGE = 21  # KEY of a page: USAGE of each phase that has a key


class Status(IntEnum):
    """How a request ended."""

    DONE = 0
    REFUSED = 1  # the request makes no sense; the result is a sentence
    FAILED = 2  # a message of a handshake is wrong; the result is a sentence


class RefusedError(VelaError):
    """A request that makes no sense, or that cannot be done; the text is for the log."""


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    operation: int
    arguments: bytes
    descriptors: tuple[int, ...]
