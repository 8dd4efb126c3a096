"""Pieces of text in the shape of OpenAI's chat completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence

from loradrop._core import Model
from loradrop.completion import usage
from loradrop.pieces import FinishReason, Piece, TextToken, join_pieces, token_text
from loradrop.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    TopLogprob,
)


class ChatShape:
    """Gives the pieces of one request their shape.

    Parameters
    ----------
    model : Model
        For the text of single tokens.
    name : str
        The response's ``model``.
    n_prompt : int
        The prompt's tokens.
    with_logprobs : bool
        Whether the pieces' tokens have log-probabilities.
    """

    def __init__(self, model: Model, name: str, n_prompt: int, *, with_logprobs: bool = False) -> None:
        self._model = model
        self._name = name
        self._n_prompt = n_prompt
        self._with_logprobs = with_logprobs
        self._id = f"chatcmpl-{uuid.uuid4()}"
        self._created = int(time.time())

    def whole(self, pieces: Iterable[Piece]) -> ChatCompletion:
        """Return the chat completion that the pieces make."""
        whole = join_pieces(pieces)
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": whole.text},
                    "logprobs": self._logprobs(whole.tokens),
                    "finish_reason": whole.finish_reason,
                }
            ],
            "usage": usage(self._n_prompt, whole.n_tokens),
        }

    def stream(self, pieces: Iterable[Piece]) -> Iterator[ChatCompletionChunk]:
        """Yield the role, the text, and at the end the reason why it ended."""
        yield self._chunk({"role": "assistant"}, None, None)
        for piece in pieces:
            if piece.text or piece.tokens:
                yield self._chunk({"content": piece.text}, self._logprobs(piece.tokens), None)
            if piece.finish_reason is not None:
                yield self._chunk({}, None, piece.finish_reason)

    def _chunk(
        self, delta: ChatDelta, logprobs: ChatLogprobs | None, finish_reason: FinishReason | None
    ) -> ChatCompletionChunk:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._name,
            "choices": [
                {
                    "index": 0,
                    "delta": delta,
                    "logprobs": logprobs,
                    "finish_reason": finish_reason,
                }
            ],
        }

    def _logprobs(self, tokens: Sequence[TextToken]) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        return {
            "content": [
                {
                    **self._token(token.token, token.logprobs.logprob),
                    "top_logprobs": [self._token(i, p) for i, p in token.logprobs.top],
                }
                for token in tokens
                if token.logprobs is not None
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float) -> TopLogprob:
        return {
            "token": token_text(self._model, token),
            "logprob": logprob,
            "bytes": list(self._model.token_to_piece(token, special=True)),
        }
