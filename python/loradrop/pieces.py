"""From generated tokens to pieces of text, and why the text ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from loradrop._core import Model
from loradrop.generation import Generation
from loradrop.logprobs import TokenLogprobs
from loradrop.text_stream import TextStream

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TextToken:
    """A token of the text.

    Attributes
    ----------
    offset : int
        Characters of the generated text before it.
    """

    token: int
    offset: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True)
class Piece:
    """A piece of the text, and the tokens that begin in it.

    Attributes
    ----------
    finish_reason : {"stop", "length"}, optional
        Set in the last piece, and only there: None to the end if a newer request cut this one off.
    n_tokens : int
        Tokens generated so far, without the one that ends the generation.
    """

    text: str
    tokens: list[TextToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    n_tokens: int = 0


def join_pieces(pieces: Iterable[Piece]) -> Piece:
    """Return the whole text as one piece, with all its tokens and the reason why it ended."""
    every = list(pieces)
    return Piece(
        text="".join(piece.text for piece in every),
        tokens=[token for piece in every for token in piece.tokens],
        finish_reason=every[-1].finish_reason,
        n_tokens=every[-1].n_tokens,
    )


def token_text(model: Model, token: int) -> str:
    """Return the text of a token by itself, with U+FFFD for a part of a character."""
    return model.token_to_piece(token, special=True).decode("utf-8", "replace")


def text_pieces(model: Model, generation: Generation, *, stop: Sequence[str], max_tokens: int) -> Iterator[Piece]:
    """Yield the text of a generation up to its end, a stop string or `max_tokens` tokens.

    Parameters
    ----------
    stop : sequence of str
        Stop strings, none of them empty. They are no part of the text. Special tokens do not show, but count with
        their texts.
    max_tokens : int
        At least 1.

    Yields
    ------
    Piece
        Without text only at the end.
    """
    stream = TextStream(stop)
    waiting: list[TextToken] = []  # tokens whose text is held back
    finish_reason: FinishReason | None = None
    last = ""
    n_tokens = 0

    def shown_tokens() -> list[TextToken]:
        n = sum(token.offset < stream.n_shown for token in waiting)
        shown, waiting[:] = waiting[:n], waiting[n:]
        return shown

    with closing(generation.run()) as tokens:
        for token, logprobs in tokens:
            if model.is_eog(token):
                finish_reason = "stop"
                break
            n_tokens += 1
            waiting.append(TextToken(token, stream.n_decoded, logprobs))
            piece = model.token_to_piece(token, special=False)
            text = stream.push(piece) if piece else stream.push_special(token_text(model, token))
            if stream.stopped or n_tokens == max_tokens:
                finish_reason = "length"
                last = text
                break
            if text:
                yield Piece(text, shown_tokens(), None, n_tokens)
        else:
            finish_reason = "length" if generation.context_full else None
    last += stream.finish()
    if stream.stopped:
        yield Piece(last, shown_tokens(), "stop", n_tokens)
    else:
        yield Piece(last, waiting, finish_reason, n_tokens)
