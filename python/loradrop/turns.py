"""Who may use a context: one request at a time, the others in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from loradrop._core import LoradropError

PATIENCE = 10.0  # seconds; a stream that nobody asks for its next element any longer gives way to a request that waits


class StreamLost(LoradropError):
    """A stream's context has gone to another request, for nobody had asked for the stream's next element."""


class Turn:
    """A request's turn.

    Attributes
    ----------
    idle_since : float or None
        When it gave its last element away (`time.monotonic`); None while it computes.
    thread : threading.Thread
        The one that has asked for that element.
    """

    def __init__(self) -> None:
        self.idle_since: float | None = None
        self.thread = threading.current_thread()


class Turns:
    """Gives turns.

    A request waits until the one before it has ended. A stream ends with its last element, when it is closed, or when
    it is garbage. An open one gives way to a request that waits, as soon as nobody has asked for its next element for
    `PATIENCE` seconds; at once where both are of the main thread, which cannot wait for itself. Its next element is
    then a `StreamLost`.
    """

    def __init__(self) -> None:
        # a stream that is garbage may end anywhere, also in here
        self._changed = threading.Condition(threading.RLock())
        self._holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._closed: str | None = None

    def take(self) -> Turn:
        """Wait for a turn and return it.

        Raises
        ------
        RuntimeError
            If the context is closed.
        """
        turn = Turn()
        with self._changed:
            self._waiting.append(turn)
            try:
                while not (self._waiting[0] is turn and self._is_free()):
                    self._check_open()
                    self._changed.wait(self._remaining())
                self._check_open()
                self._holder = turn
                return turn
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def pause(self, turn: Turn) -> None:
        """Note that the turn's request has given an element away."""
        turn.thread = threading.current_thread()
        turn.idle_since = monotonic()

    def resume(self, turn: Turn) -> None:
        """Note that the request goes on.

        Raises
        ------
        StreamLost
            If it has lost its turn.
        RuntimeError
            If the context is closed.
        """
        with self._changed:
            self._check_open()
            if self._holder is not turn:
                raise StreamLost(
                    "the stream has lost its context to a newer request: streams of one Llama come one after the "
                    "other; read this one to its end first, or make another Llama"
                )
            turn.idle_since = None

    def holds(self, turn: Turn) -> bool:
        """Return whether the turn has not been lost."""
        return self._holder is turn

    def end(self, turn: Turn) -> None:
        """End a turn, if it has not been lost."""
        with self._changed:
            if self._holder is turn:
                self._holder = None
                self._changed.notify_all()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold a turn."""
        turn = self.take()
        try:
            yield
        finally:
            self.end(turn)

    def close(self, why: str) -> None:
        """Give no more turns; whoever waits or asks for one gets a RuntimeError."""
        with self._changed:
            self._closed = why
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise RuntimeError(self._closed)

    def _is_free(self) -> bool:
        holder = self._holder
        if holder is None:
            return True
        if holder.idle_since is None:
            return False
        main = threading.main_thread()
        waits_for_itself = holder.thread is main and threading.current_thread() is main
        return waits_for_itself or monotonic() - holder.idle_since >= PATIENCE

    def _remaining(self) -> float:
        """Return the seconds after which to look again, if nothing is heard before."""
        holder = self._holder
        if holder is None or holder.idle_since is None:
            return PATIENCE
        return max(0.0, holder.idle_since + PATIENCE - monotonic())
