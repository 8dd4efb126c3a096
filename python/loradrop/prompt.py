"""From the text of a prompt to its tokens."""

from __future__ import annotations

import warnings

from loradrop._core import Model


def text_tokens(model: Model, text: bytes, *, add_bos: bool, special: bool, stacklevel: int = 3) -> list[int]:
    """Return the tokens of a text that something is to follow: with one BOS token at most, and none added at its end.

    Warns with a UserWarning if the text brings a BOS token of its own where one is added; one of them is left out.

    Parameters
    ----------
    text : bytes
        UTF-8.
    add_bos : bool
        Whether to put the BOS token before the text, if the model wants one there.
    special : bool
        Whether special tokens in the text are recognised.
    stacklevel : int
        Whom the warning is for, as in ``warnings.warn``: 3 for the caller's caller.
    """
    tokens = model.tokenize(text, False, special)
    before = _added_before(model) if add_bos else []
    if before and tokens[:1] == before:
        bos = model.token_to_piece(before[0], special=True).decode("utf-8", "replace")
        warnings.warn(
            f"prompt: it begins with {bos!r}, which the model's tokenizer adds itself; one of them is left out. "
            "Leave it out of the text",
            UserWarning,
            stacklevel=stacklevel,
        )
        return tokens
    return before + tokens


def _added_before(model: Model) -> list[int]:
    # Some tokenizers of llama.cpp add nothing, whatever the file says.
    added = model.tokenize(b"", True, False)
    return added[:1] if model.add_bos and added[:1] == [model.bos_token] else []
