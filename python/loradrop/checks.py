"""Checks of arguments: each names the argument, its value and what to give instead."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection


def check_int(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return `value` as an int of at least `least` and at most `most`.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r}: give an integer")
    number = int(value)
    if number < least or (most is not None and number > most):
        asked = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={number}: give an integer {asked}")
    return number


def check_bool(name: str, value: object) -> bool:
    """Return `value` if it is a bool.

    Raises
    ------
    TypeError
        If it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: give True or False")
    return value


def check_float(name: str, value: object, least: float, most: float = math.inf, *, below: bool = False) -> float:
    """Return `value` as a float of at least `least` and at most (or `below`) `most`.

    Raises
    ------
    TypeError
        If it is no number.
    ValueError
        If it is out of range or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r}: give a number")
    number = float(value)
    fits = least <= number and (number < most if below else number <= most)
    if not fits or not math.isfinite(number):
        asked = "finite number" if least == -math.inf else f"number of at least {least:g}"
        if most < math.inf:
            asked += f" and {'below' if below else 'at most'} {most:g}"
        raise ValueError(f"{name}={number:g}: give a {asked}")
    return number


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r}: give one of {', '.join(map(repr, choices))}")
    return value


def check_text(name: str, text: str) -> str:
    """Return the text if it can be UTF-8 and has no NUL, at which native code ends a text.

    Raises
    ------
    ValueError
        If it cannot, or has one.
    """
    check_unicode(name, text)
    if "\0" in text:
        raise ValueError(f"{name}: character {text.index(chr(0))} is NUL, which is no text; take it out")
    return text


def check_unicode(name: str, text: str) -> bytes:
    """Return the text as UTF-8.

    Raises
    ------
    ValueError
        If it holds a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: not valid Unicode: {error}; take it out") from None


def check_utf8(name: str, text: bytes) -> str:
    """Return the text of UTF-8 bytes.

    Raises
    ------
    ValueError
        If they are none.
    """
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8: {error}; decode it first") from None
