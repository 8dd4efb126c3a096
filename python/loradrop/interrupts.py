"""Ctrl-C at places that are made for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupts(stop: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Keep SIGINT from raising KeyboardInterrupt anywhere but at the calls of what this gives, and at the end.

    Raised anywhere, it may leave a lock of Python's own taken that other threads wait for. Where the main thread's
    handler is another one than Python's default, or in another thread, nothing is changed.

    Parameters
    ----------
    stop : callable
        Called at once when the signal comes, so that what is waited for ends soon.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        stop()

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    except BaseException:
        check()  # what has failed may have failed because it was stopped
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
