"""Ctrl-C while other threads work: raised where it can do no harm."""

from __future__ import annotations

import signal
import threading

import pytest

from loradrop.interrupts import deferred_interrupts

pytestmark = pytest.mark.usefixtures("ctrl_c_raises")


def test_it_is_raised_where_it_is_asked_for() -> None:
    stopped: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt),
        deferred_interrupts(lambda: stopped.append("at once")) as check,
    ):
        check()
        signal.raise_signal(signal.SIGINT)
        assert stopped == ["at once"]
        stopped.append("gone on")
        check()
        stopped.append("not here")
    assert stopped == ["at once", "gone on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_raised_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupts(lambda: None):
        signal.raise_signal(signal.SIGINT)


def test_it_comes_before_what_it_has_made_fail() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupts(lambda: None):
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("stopped")
    with pytest.raises(RuntimeError, match="another"), deferred_interrupts(lambda: None):
        raise RuntimeError("another")


def test_a_handler_of_the_users_own_stays() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    with deferred_interrupts(lambda: seen.append(0)) as check:
        signal.raise_signal(signal.SIGINT)
        check()
    assert seen == [signal.SIGINT]


def test_other_threads_change_nothing() -> None:
    def work() -> None:
        with deferred_interrupts(lambda: None) as check:
            check()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
