"""Chat: the model's own template, and OpenAI's shapes of chat completions."""

from __future__ import annotations

import datetime
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loradrop._core import Model, ModelError
from loradrop.completion import usage
from loradrop.pieces import FinishReason, Piece, TextToken, join_pieces, token_text
from loradrop.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    TopLogprob,
)


class ChatTemplate:
    """A chat template: foreign code, so it runs in a sandbox and cannot reach Python's objects.

    Parameters
    ----------
    source : str
        Jinja, as Hugging Face's tokenizers have it.
    bos_token, eos_token : str
        The texts of the special tokens.
    tokenizer_adds_bos : bool
        Whether the tokenizer puts the BOS token before a text; the template's own is then left out.

    Raises
    ------
    ModelError
        If the template does not parse.
    """

    def __init__(
        self, source: str, *, bos_token: str = "", eos_token: str = "", tokenizer_adds_bos: bool = True
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the model's chat template does not parse: {error}") from error
        self._bos_token = bos_token
        self._tokenizer_adds_bos = tokenizer_adds_bos
        self._eos_token = eos_token

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt, without a BOS token at its beginning if the tokenizer adds one.

        Parameters
        ----------
        messages : sequence of mappings
            ``role`` and ``content``, as `check_messages` returns them.
        add_generation_prompt : bool
            Whether the prompt ends with the beginning of the assistant's answer.

        Raises
        ------
        ModelError
            If the template fails, or tries what the sandbox forbids.
        ValueError
            If the template refuses the messages.
        """
        try:
            text = self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos_token,
                eos_token=self._eos_token,
                tools=None,
                documents=None,
            )
        except RefusedMessages as error:
            raise ValueError(f"messages: the model's chat template refuses them: {error}") from None
        except Exception as error:  # a template can raise whatever its expressions raise
            raise ModelError(f"the model's chat template fails: {error}") from error
        return text.removeprefix(self._bos_token) if self._tokenizer_adds_bos else text


class _Generation(Extension):
    """``{% generation %}``, which marks what the assistant says for training, and changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an attribute of the instance)

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class RefusedMessages(Exception):
    """What ``raise_exception`` of a template raises."""


def model_template(model: Model) -> ChatTemplate:
    """Return the template in the model's file.

    Raises
    ------
    ModelError
        If there is none, or it does not parse.
    """
    source = model.chat_template
    if not source:
        raise ModelError(
            f"{model.path} holds no chat template: format the messages yourself and use "
            "create_completion(), or take an instruction-tuned model"
        )
    texts = [token_text(model, token) if token >= 0 else "" for token in (model.bos_token, model.eos_token)]
    return ChatTemplate(source, bos_token=texts[0], eos_token=texts[1], tokenizer_adds_bos=model.add_bos)


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Return the messages with the text parts of each content joined.

    Raises
    ------
    TypeError, ValueError
        If they are no list of dicts with a ``role`` and a text ``content``, or there are none.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages={messages!r}: give a list like [{{'role': 'user', 'content': 'Hello'}}]")
    if not messages:
        raise ValueError("messages=[]: give at least one message")
    return [_check_message(i, message) for i, message in enumerate(messages)]


def _check_message(i: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TypeError(f"messages[{i}]={message!r}: give a dict with 'role' and 'content'")
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"messages[{i}]: only parts of type 'text' are supported")
        content = "".join(part for part in parts if part is not None)
    if not isinstance(content, str):
        raise TypeError(f"messages[{i}]: content={content!r}: give a str")
    return {**message, "content": content}


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


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise RefusedMessages(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
