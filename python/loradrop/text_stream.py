"""From the bytes of tokens to text: whole characters, cut at the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from loradrop.checks import check_text


class TextStream:
    """Turn pieces of bytes into text that is safe to show.

    A character is held back until all of its bytes are there, and text that may be the beginning
    of a stop string until it is clear that it is none. Bytes that cannot become UTF-8 any more
    turn into U+FFFD. Joined, the text is ``bytes.decode("utf-8", "replace")`` up to the stop
    string that starts first.

    Special tokens do not show. A stop string counts in the text as it shows and in the text with the special tokens.

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
        self._shows: list[bool] = []  # for each character that is held, whether it is one of the text
        self.stopped = False
        self.n_decoded = 0
        self.n_shown = 0

    def push(self, piece: bytes) -> str:
        """Take the next bytes and return the text that can be shown now."""
        return self._advance(self._decoder.decode(piece))

    def push_special(self, text: str) -> str:
        """Take the text of a special token, which does not show, and return the text that can be shown now."""
        return self._advance(text, shows=False)

    def finish(self) -> str:
        """Return what was held back; there is nothing more to come."""
        return self._advance(self._decoder.decode(b"", True), final=True)

    def _advance(self, text: str, *, shows: bool = True, final: bool = False) -> str:
        if self.stopped:
            return ""
        self.n_decoded += len(text) if shows else 0
        self._held += text
        self._shows += [shows] * len(text)
        end = found = begun = len(self._held)
        for places in self._readings():
            read = "".join(self._held[i] for i in places[:-1])
            found = min([found, *(places[i] for i in map(read.find, self._stop) if i >= 0)])
            # A stop string that has only begun still wins over one that starts after it.
            begun = begun if final else min(begun, places[self._begin_of_stop(read)])
        self.stopped = found < end and found <= begun
        cut = min(found, begun)
        shown = "".join(self._held[i] for i in range(cut) if self._shows[i])
        self._held, self._shows = ("", []) if self.stopped else (self._held[cut:], self._shows[cut:])
        self.n_shown += len(shown)
        return shown

    def _readings(self) -> list[list[int]]:
        """Return where the characters are among which stop strings count, and the end: with special tokens, without."""
        end = len(self._held)
        every = list(range(end + 1))
        if all(self._shows):
            return [every]
        return [every, [i for i in range(end) if self._shows[i]] + [end]]

    def _begin_of_stop(self, text: str) -> int:
        """Return where the end of a text may be the beginning of a stop string."""
        end = len(text)
        longest = max(map(len, self._stop), default=1) - 1
        for i in range(max(0, end - longest), end):
            tail = text[i:]
            if any(s.startswith(tail) for s in self._stop):
                return i
        return end


def check_stop(stop: object) -> list[str]:
    """Return the stop strings of a request as a list.

    Raises
    ------
    TypeError, ValueError
        If they are no str or sequence of str, or one is empty or no text.
    """
    if stop is None:
        return []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(s, str) for s in stops):
        raise TypeError(f"stop={stop!r}: give a str or a list of str")
    if "" in stops:
        raise ValueError(f"stop={stop!r}: an empty string stops everywhere; leave it out")
    return [check_text("stop" if isinstance(stop, str) else f"stop[{i}]", s) for i, s in enumerate(stops)]
