"""Windows: pieces of text of one length, as tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from loradrop._core import Model
from loradrop.checks import check_int, check_unicode
from loradrop.state_store import Tokens

PIECE = 2**22  # characters that are tokenised at once where they can be, as that takes some 50 bytes for each
LINE_END = re.compile(r"(?<=\S)\n(?=\S)|(?<=[^\W_])(?=\n)")  # where tokenizers split anyway
Texts = str | Sequence[str] | Mapping[str, str]


def text_windows(model: Model, texts: Texts, window: int, n_windows: int | None) -> Tokens:
    """Cut texts into windows as llama.cpp's perplexity does.

    Each text is cut from its start into consecutive windows; what is left at its end is not used. Where the model's
    texts begin with a BOS token, each window's first token is replaced by it.

    Parameters
    ----------
    model : Model
        Its tokenizer is used; special tokens in the text are not recognised.
    texts : str, sequence of str, or mapping of str to str
        The texts; the keys of a mapping name them in errors.
    window : int
        Tokens of a window.
    n_windows : int, optional
        Take this many windows, 1 or more, evenly spread over all texts; None takes all. Where there are not more, all
        are taken.

    Returns
    -------
    int32 array [n, window]

    Raises
    ------
    ValueError
        If a text is shorter than a window, or a number is out of its range.
    """
    check_int("window", window, 1)
    if n_windows is not None:
        check_int("n_windows", n_windows, 1)
    named = _named(texts)
    if not named:
        raise ValueError("texts: there are none; give at least one")
    windows = np.concatenate([_cut(model, name, text, window) for name, text in named.items()])
    if n_windows is not None and n_windows < len(windows):
        windows = windows[np.arange(n_windows) * len(windows) // n_windows]
    if model.add_bos:
        windows[:, 0] = model.bos_token
    return windows


def check_windows(model: Model, tokens: Any) -> Tokens:
    """Return windows that are given as tokens, checked.

    Raises
    ------
    ValueError
        If they are no integers in two dimensions, or not all are tokens of the vocabulary.
    """
    windows = np.asarray(tokens)
    if windows.ndim != 2 or not windows.size or not np.issubdtype(windows.dtype, np.integer):
        raise ValueError(
            f"tokens: an array of {windows.dtype} {list(windows.shape)}; give texts, or integers [n_windows, window]"
        )
    wrong = windows[(windows < 0) | (windows >= model.n_vocab)]
    if wrong.size:
        raise ValueError(f"tokens: {wrong[0]} is none; give integers from 0 to {model.n_vocab - 1}")
    return windows.astype(np.int32)


def _named(texts: Texts) -> Mapping[str, str]:
    if isinstance(texts, str):
        return {"text": texts}
    return texts if isinstance(texts, Mapping) else {f"texts[{i}]": text for i, text in enumerate(texts)}


def _cut(model: Model, name: str, text: str, window: int) -> Tokens:
    first = [model.bos_token] if model.add_bos else []
    pieces = [np.array(_tokens(model, check_unicode(name, piece)), np.int32) for piece in _pieces(model, text)]
    tokens = np.concatenate([np.array(first, np.int32), *pieces])
    n = len(tokens) // window
    if n == 0:
        raise ValueError(f"{name}: its {len(tokens)} tokens are too few for one window of {window}; give more text")
    return tokens[: n * window].reshape(n, window)


def _tokens(model: Model, text: bytes) -> list[int]:
    return model.tokenize(text, False, False)


def _pieces(model: Model, text: str) -> Iterator[str]:
    if _tokens(model, b"a\nb") != _tokens(model, b"a\n") + _tokens(model, b"b"):
        yield text  # SentencePiece puts a space before every text that it is given
        return
    start = 0
    while start < len(text):
        line_end = LINE_END.search(text, start + PIECE)
        end = line_end.end() if line_end else len(text)
        yield text[start:end]
        start = end
