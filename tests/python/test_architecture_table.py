"""The table of architectures in the documents is the list that the tests run over."""

from __future__ import annotations

from typing import get_args

from architectures import DOCUMENT, SUPPORTED, with_table
from tiny import Arch


def test_numpy_reference_is_in_the_table() -> None:
    assert {c.arch for c in SUPPORTED if c.numpy} == set(get_args(Arch))


def test_document_has_this_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == with_table(text), "run `python tests/python/architectures.py`"
