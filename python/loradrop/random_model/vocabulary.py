"""A tokenizer for any number of tokens: sentencepiece's kind, as it needs no list of merges."""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import chain, count, islice, product

from gguf import GGUFWriter, TokenType

UNK, BOS, EOS = 0, 1, 2
_SPECIAL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # any text can be written with them
_SPACE = "▁"
LEAST_VOCAB = len(_SPECIAL) + len(_BYTES) + len(_SPACE)


def vocabulary(n_vocab: int) -> list[str]:
    """Return `n_vocab` pieces, no two the same: special ones, bytes, a space, characters, and then words of a to z.

    Merging builds a piece from two shorter ones; a word's first letters and its last one come before it.

    Parameters
    ----------
    n_vocab : int
        At least `LEAST_VOCAB`.
    """
    characters = string.ascii_letters + string.digits + string.punctuation
    return [*_SPECIAL, *_BYTES, _SPACE, *islice(chain(characters, _words()), n_vocab - LEAST_VOCAB)]


def add_tokenizer(writer: GGUFWriter, n_vocab: int) -> None:
    """Add a tokenizer of `n_vocab` tokens; it has no chat template."""
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * len(_BYTES)]
    types += [TokenType.NORMAL] * (n_vocab - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary(n_vocab))
    writer.add_token_scores([-float(max(0, i - LEAST_VOCAB)) for i in range(n_vocab)])
    writer.add_token_types(types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNK)
    writer.add_add_bos_token(True)


def _words() -> Iterator[str]:
    for length in count(2):
        for letters in product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)
