"""From the bytes of tokens to text: whole characters, cut at the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turn pieces of bytes into text that is safe to show.

    A character is held back until all of its bytes are there, and text that may be the beginning
    of a stop string until it is clear that it is none. Bytes that cannot become UTF-8 any more
    turn into U+FFFD. Joined, the text is ``bytes.decode("utf-8", "replace")`` up to the stop
    string that starts first.

    Parameters
    ----------
    stop : sequence of str
        Stop strings, none of them empty.

    Attributes
    ----------
    stopped : bool
        Whether a stop string was found. Nothing comes after it.
    n_decoded : int
        Characters decoded, whether shown, held back or cut away.
    n_shown : int
        Characters that `push` and `finish` have returned.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        self.n_decoded = 0
        self.n_shown = 0

    def push(self, piece: bytes) -> str:
        """Take the next bytes and return the text that can be shown now."""
        return self._advance(piece, final=False)

    def finish(self) -> str:
        """Return what was held back; there is nothing more to come."""
        return self._advance(b"", final=True)

    def _advance(self, piece: bytes, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._decoder.decode(piece, final)
        self.n_decoded += len(text)
        self._held += text
        end = len(self._held)
        found = min((i for i in map(self._held.find, self._stop) if i >= 0), default=end)
        # A stop string that has only begun still wins over one that starts after it.
        begun = end if final else self._begin_of_stop()
        self.stopped = found < end and found <= begun
        shown, self._held = self._held[: min(found, begun)], self._held[min(found, begun) :]
        if self.stopped:
            self._held = ""
        self.n_shown += len(shown)
        return shown

    def _begin_of_stop(self) -> int:
        """Return where the held text's end may be the beginning of a stop string."""
        end = len(self._held)
        longest = max(map(len, self._stop), default=1) - 1
        for i in range(max(0, end - longest), end):
            tail = self._held[i:]
            if any(s.startswith(tail) for s in self._stop):
                return i
        return end
