"""The native cipher, key page and window (vela/dataplane/native) as a library, for tests.

Built once for each process that asks, from the sources that the extension is built from.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vela.dataplane.key_page import SlotWord, map_key_page, room, sequence_start
from vela.wire import Suite

NATIVE = Path(__file__).resolve().parents[1] / "vela" / "dataplane" / "native"
SOURCES = ("aead", "cipher", "io", "window")
SLOTS = ("", "RX_SHORT", "RX_CLEAR", "RX_NO_KEY", "RX_REPLAYED", "RX_BAD_TAG")
"""By the values of enum opened."""
SEALED, NO_KEY, REUSED = range(3)
TAG = 16

_P = ctypes.c_void_p


class _Key(ctypes.Structure):
    _fields_ = (
        ("serial", ctypes.c_uint64),
        ("phase", ctypes.c_uint),
        ("born_ns", ctypes.c_uint64),
        ("expires_ns", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("aead", _P),
    )


class _Sealer(ctypes.Structure):
    _fields_ = (
        ("io", _P),
        ("page", _P),
        ("circuit_id", ctypes.c_uint8),
        ("acknowledges", ctypes.c_bool),
        ("sequence", ctypes.c_uint),
        ("room", ctypes.c_uint),
        ("key", _Key),
        ("last", ctypes.c_uint64),
    )


class _Opener(ctypes.Structure):
    _fields_ = (
        ("io", _P),
        ("page", _P),
        ("acknowledges", ctypes.c_bool),
        ("shares", ctypes.c_bool),
        ("sequences", ctypes.c_uint),
        ("keys", _Key * 2),
    )


class _Sealed(ctypes.Structure):
    _fields_ = (("datagram", ctypes.POINTER(ctypes.c_uint8)), ("length", ctypes.c_size_t))


@cache
def library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "cipher.so"
        sources = (str(NATIVE / f"{name}.c") for name in SOURCES)
        flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-DVELA_LIBCRYPTO")
        subprocess.run(
            ("cc", *flags, "-shared", "-fPIC", "-o", str(built), *sources, "-lcrypto"), check=True
        )
        loaded = ctypes.CDLL(str(built))
    loaded.aead_open.restype = _P
    loaded.aead_open.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
    loaded.aead_close.argtypes = (_P,)
    for name in ("aead_seal", "aead_open_frame"):
        call = getattr(loaded, name)
        call.restype = ctypes.c_bool
        call.argtypes = (_P, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t)
    loaded.window_open.argtypes = (_P, ctypes.c_uint64)
    loaded.window_is_new.restype = ctypes.c_bool
    loaded.window_is_new.argtypes = loaded.window_mark.argtypes = (_P, ctypes.c_uint32)
    loaded.key_page_take_over.restype = ctypes.c_bool
    loaded.key_page_take_over.argtypes = (_P, ctypes.c_uint)
    return loaded


class NativeAead:
    """Twin of vela.dataplane.aead.Aead."""

    def __init__(self, suite: Suite, key: bytes, salt: bytes) -> None:
        self._contexts = [library().aead_open(suite, key, salt, seals) for seals in (0, 1)]
        assert all(self._contexts)

    def __del__(self) -> None:
        for context in self._contexts:
            library().aead_close(context)

    def seal(self, counter: int, text: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(text, len(text) + TAG)
        assert library().aead_seal(self._contexts[1], counter, buffer, len(text))
        return buffer.raw

    def open_frame(self, counter: int, sealed: bytes) -> bytes | None:
        length = len(sealed) - TAG
        buffer = ctypes.create_string_buffer(sealed, len(sealed))
        if not library().aead_open_frame(self._contexts[0], counter, buffer, length):
            return None
        return buffer.raw[:length]


class NativePage:
    """A key page as a worker with the native engine has it."""

    def __init__(self, fd: int, sequence: int = 0) -> None:
        """sequence: that is sent with."""
        self.sequence = sequence
        self._mapped: mmap.mmap = map_key_page(fd)
        self.room = room(len(self._mapped))
        first = ctypes.c_char.from_buffer(self._mapped)
        self.address = ctypes.addressof(first)
        if not library().key_page_take_over(self.address, sequence):
            raise ValueError("this memory is no key page")


class NativeWindow:
    """Twin of vela.dataplane.window.Window, on any memory."""

    def __init__(self, words: memoryview, phase: int, serial: int, sequence: int = 0) -> None:
        self._kept = (ctypes.c_char * len(words.cast("B"))).from_buffer(words.cast("B"))
        start = sequence_start(phase, sequence) + SlotWord.NEXT
        self._sequence = ctypes.addressof(self._kept) + 8 * start
        library().window_open(self._sequence, serial)

    def is_new(self, counter: int) -> bool:
        new: bool = library().window_is_new(self._sequence, counter)
        return new

    def mark(self, counter: int) -> None:
        library().window_mark(self._sequence, counter)


class NativeSealer:
    """Twin of vela.dataplane.cipher.Sealer."""

    def __init__(self, page: NativePage, circuit_id: int, *, acknowledges: bool = True) -> None:
        io = ctypes.addressof(ctypes.c_char.in_dll(library(), "kernel_io"))
        self._page = page
        self._sealer = _Sealer(io, page.address, circuit_id, acknowledges, page.sequence, page.room)

    def __del__(self) -> None:
        library().sealer_close(ctypes.byref(self._sealer))

    def look(self) -> None:
        library().sealer_look(ctypes.byref(self._sealer))

    def seal(self, datagrams: Sequence[bytes]) -> list[bytes]:
        """Raises OSError where a counter was used before."""
        data = b"".join(bytes(6) + each[1:] + bytes(TAG) for each in datagrams)
        buffer = ctypes.create_string_buffer(data, len(data) + 1)
        count = ctypes.c_size_t(len(datagrams))
        lengths = (ctypes.c_size_t * len(datagrams))(*(len(each) - 1 for each in datagrams))
        sealed = (_Sealed * len(datagrams))()
        how = library().sealer_seal(
            ctypes.byref(self._sealer), buffer, lengths, ctypes.byref(count), sealed
        )
        if how == REUSED:
            raise OSError("the key is revoked")
        assert (how == SEALED) == (count.value == len(datagrams))
        return [ctypes.string_at(each.datagram, each.length) for each in sealed[: count.value]]


class NativeOpener:
    """Twin of vela.dataplane.cipher.Opener."""

    def __init__(
        self,
        page: NativePage,
        sequences: int = 1,
        *,
        acknowledges: bool = True,
        shares: bool = False,
    ) -> None:
        io = ctypes.addressof(ctypes.c_char.in_dll(library(), "kernel_io"))
        self._page = page
        self._opener = _Opener(io, page.address, acknowledges, shares, sequences)

    def __del__(self) -> None:
        library().opener_close(ctypes.byref(self._opener))

    def look(self) -> None:
        library().opener_look(ctypes.byref(self._opener))

    def open_datagram(self, datagram: bytes) -> bytes | str:
        """Return the clear datagram, or the name of the slot that counts why there is none."""
        buffer = ctypes.create_string_buffer(datagram, len(datagram) + 1)
        at = ctypes.c_void_p(ctypes.addressof(buffer))
        length = ctypes.c_size_t(len(datagram))
        how = library().opener_open(
            ctypes.byref(self._opener), ctypes.byref(at), ctypes.byref(length)
        )
        assert at.value is not None
        return SLOTS[how] if how else ctypes.string_at(at.value, length.value)
