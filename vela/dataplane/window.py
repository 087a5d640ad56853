"""Which frames of a key have come, of one sequence: the replay window, in the key page.

Each counter is accepted once, and none that is WINDOW or more behind the highest. C twin:
native/window.c. RFC 6479 describes the ring of bits; here it is cleared to the bit, so that the
window is just as wide at every position.
"""

from __future__ import annotations

from vela.dataplane.key_page import BITMAP_WORDS, WINDOW, SlotWord, fence, sequence_start

_ALL = (1 << 64) - 1


class Window:
    """One key's window. Only one thread uses it."""

    def __init__(self, words: memoryview, phase: int, serial: int, sequence: int = 0) -> None:
        """Go on with the window of this key, or begin it.

        words is the key page. A worker that dies between the two stores leaves
        an empty window of an older serial, and no frame was accepted with it.
        """
        self._words = words
        self._slot = slot = sequence_start(phase, sequence)
        self._bitmap = slot + SlotWord.BITMAP
        if words[slot + SlotWord.WINDOW_SERIAL] != serial:
            words[slot + SlotWord.WINDOW_SERIAL] = 0
            fence()
            words[slot + SlotWord.TOP] = 0
            for word in range(BITMAP_WORDS):
                words[self._bitmap + word] = 0
            fence()
            words[slot + SlotWord.WINDOW_SERIAL] = serial

    def is_new(self, counter: int) -> bool:
        """Tell whether a frame with this counter may be accepted, if its tag is right."""
        words = self._words
        top = words[self._slot + SlotWord.TOP]
        if counter > top:
            return True
        # A key's first counter is 1.
        if counter == 0 or top - counter >= WINDOW:
            return False
        return not words[self._bitmap + counter // 64 % BITMAP_WORDS] >> counter % 64 & 1

    def mark(self, counter: int) -> None:
        """Remember a frame whose counter is_new() and whose tag is right, before it goes on.

        On a slide the new top is stored first, then the bits between are
        cleared, then this one's is set: a worker that is killed in between
        leaves a window that refuses too much, never too little.
        """
        words = self._words
        top = words[self._slot + SlotWord.TOP]
        if counter > top:
            words[self._slot + SlotWord.TOP] = counter
            self._clear(top + 1, min(counter - top, WINDOW))
        words[self._bitmap + counter // 64 % BITMAP_WORDS] |= 1 << counter % 64

    def _clear(self, first: int, count: int) -> None:
        """Clear the bits of count counters from first on."""
        while count > 0:
            offset = first % 64
            here = min(64 - offset, count)
            mask = ((1 << here) - 1) << offset
            self._words[self._bitmap + first // 64 % BITMAP_WORDS] &= _ALL ^ mask
            first += here
            count -= here
