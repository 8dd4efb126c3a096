"""Pieces of text in the shape of OpenAI's text completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence

from loradrop._core import Model
from loradrop.pieces import FinishReason, Piece, TextToken, join_pieces
from loradrop.responses import Completion, CompletionChunk, CompletionLogprobs, Usage


class CompletionShape:
    """Gives the pieces of one request their shape.

    Parameters
    ----------
    model : Model
        For the text of single tokens.
    name : str
        The response's ``model``.
    prompt : str
        The prompt's text: where offsets count from, and what `echo` puts before the text.
    n_prompt : int
        The prompt's tokens.
    with_logprobs : bool
        Whether the pieces' tokens have log-probabilities.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        prompt: str,
        n_prompt: int,
        *,
        echo: bool = False,
        with_logprobs: bool = False,
    ) -> None:
        self._model = model
        self._name = name
        self._prompt = prompt
        self._n_prompt = n_prompt
        self._echo = prompt if echo else ""
        self._with_logprobs = with_logprobs
        self._id = f"cmpl-{uuid.uuid4()}"
        self._created = int(time.time())

    def whole(self, pieces: Iterable[Piece]) -> Completion:
        """Return the completion that the pieces make."""
        whole = join_pieces(pieces)
        chunk = self._chunk(self._echo + whole.text, whole.tokens, whole.finish_reason)
        return {**chunk, "usage": usage(self._n_prompt, whole.n_tokens)}

    def stream(self, pieces: Iterable[Piece]) -> Iterator[CompletionChunk]:
        """Yield a chunk for each piece."""
        if self._echo:
            yield self._chunk(self._echo, [], None)
        for piece in pieces:
            yield self._chunk(piece.text, piece.tokens, piece.finish_reason)

    def _chunk(self, text: str, tokens: Sequence[TextToken], finish_reason: FinishReason | None) -> CompletionChunk:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._name,
            "choices": [
                {
                    "text": text,
                    "index": 0,
                    "logprobs": self._logprobs(tokens) if self._with_logprobs else None,
                    "finish_reason": finish_reason,
                }
            ],
        }

    def _logprobs(self, tokens: Sequence[TextToken]) -> CompletionLogprobs:
        shape: CompletionLogprobs = {
            "tokens": [],
            "text_offset": [],
            "token_logprobs": [],
            "top_logprobs": [],
        }
        for token in tokens:
            top = [] if token.logprobs is None else token.logprobs.top
            keys = _token_keys(self._model, [token.token, *(i for i, _ in top)])
            shape["tokens"].append(keys[token.token])
            shape["text_offset"].append(len(self._prompt) + token.offset)
            if token.logprobs is not None:
                shape["token_logprobs"].append(token.logprobs.logprob)
                shape["top_logprobs"].append(
                    {keys[i]: logprob for i, logprob in [*top, (token.token, token.logprobs.logprob)]}
                )
        return shape


def usage(n_prompt: int, n_tokens: int) -> Usage:
    """Return the counts of a request."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_tokens,
        "total_tokens": n_prompt + n_tokens,
    }


def _token_keys(model: Model, tokens: Iterable[int]) -> dict[int, str]:
    """Return a text for each token, no two the same: of bytes that are no text, and where tokens look alike, its bytes.

    A token keeps its own text before those that come later.
    """
    keys: dict[str, int] = {}
    for token in dict.fromkeys(tokens):
        piece = model.token_to_piece(token, special=True)
        text = piece.decode("utf-8", "replace")
        names = ["bytes:" + "".join(f"\\x{byte:02x}" for byte in piece), f"token:{token}"]
        if text.encode() == piece:
            names.insert(0, text)
        keys[next(name for name in names if name not in keys)] = token
    return {token: key for key, token in keys.items()}
