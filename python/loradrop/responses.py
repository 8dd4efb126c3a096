"""The dicts that requests answer with: OpenAI's shapes."""

from __future__ import annotations

from typing import Literal, TypedDict

from loradrop.pieces import FinishReason


class Usage(TypedDict):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(TypedDict):
    r"""One entry per token; offsets are characters from the beginning of the prompt.

    A token that is a part of a character goes by its bytes, like ``bytes:\xe2\x82``.
    """

    tokens: list[str]
    text_offset: list[int]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    """The text of a completion, or of one chunk of it."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(TypedDict):
    """What a stream of a completion yields."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]


class Completion(CompletionChunk):
    """A whole completion."""

    usage: Usage


class TopLogprob(TypedDict):
    """A token that was possible; its bytes may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """A token of the text."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """One entry per token."""

    content: list[ChatTokenLogprob] | None
    refusal: None


class ChatMessage(TypedDict):
    """The answer."""

    role: Literal["assistant"]
    content: str


class ChatChoice(TypedDict):
    """The answer and why it ended."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(TypedDict):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(TypedDict, total=False):
    """What a chunk adds to the answer: the role in the first, nothing in the last."""

    role: Literal["assistant"]
    content: str


class ChatChunkChoice(TypedDict):
    """One chunk of the answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(TypedDict):
    """What a stream of a chat completion yields."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
