"""The messages of a chat: checked, and with values that any chat template can take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from loradrop.checks import check_text


class NoContent(str):
    """The content of a message that has none.

    Some templates join a content to other text, others ask whether it ``is none``, so it is empty text for which that
    test of `ChatTemplate` is true.
    """


class Arguments(dict[str, Any]):
    """The arguments of a tool call that were given as JSON text, which is OpenAI's format.

    Some templates go through a dict, others join text, so it is the dict that becomes the given text where it is
    joined or printed.
    """

    def __init__(self, text: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Return copies of the messages for a chat template.

    The text parts of each content are joined, and keys whose value is None left out.

    Raises
    ------
    TypeError, ValueError
        If they are no list of dicts with a ``role`` and a text ``content``, or there are none. The content may be
        missing or None in an assistant's message with ``tool_calls``.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages={messages!r}: give a list like [{{'role': 'user', 'content': 'Hello'}}]")
    if not messages:
        raise ValueError("messages=[]: give at least one message")
    try:
        return [_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    except RecursionError:
        raise ValueError("messages: lists and dicts are nested too deeply, or hold themselves") from None


def _check_message(name: str, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TypeError(f"{name}={message!r}: give a dict with 'role' and 'content'")
    given = {key: _joined(name, value) if key == "content" else value for key, value in message.items()}
    checked: dict[str, Any] = _plain(name, {key: value for key, value in given.items() if value is not None})
    calls = checked.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise TypeError(f"{name}.tool_calls={calls!r}: give a list of dicts")
    for i, call in enumerate(calls):
        _parse_arguments(f"{name}.tool_calls[{i}].function.arguments", call.get("function"))
    if calls and checked["role"] == "assistant":
        checked.setdefault("content", NoContent())
    if not isinstance(checked.get("content"), str):
        raise TypeError(
            f"{name}: content={message.get('content')!r}: give a str; only an assistant's message with tool_calls may "
            "be without"
        )
    return checked


def _joined(name: str, content: object) -> object:
    """Return the content with its text parts, if it is a list of such, as one text."""
    if not isinstance(content, Sequence) or isinstance(content, (str, bytes)):
        return content
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise ValueError(f"{name}: only parts of type 'text' are supported")
    return "".join(texts)


def _parse_arguments(name: str, function: object) -> None:
    text = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(text, str):
        return
    try:
        values = json.loads(text)
    except ValueError:
        return  # a model may have written them
    if isinstance(values, dict):
        function["arguments"] = Arguments(text, _plain(name, values))


def _plain(name: str, value: object) -> Any:
    """Return a copy of what JSON has: a template is foreign code, which no other objects should reach."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return check_text(name, str.__str__(value))
    if isinstance(value, Mapping):
        return {_key(name, key): _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    raise TypeError(f"{name}={value!r}: give str, numbers, lists and dicts, as JSON has them")


def _key(name: str, key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{name} has the key {key!r}: give keys of type str, as JSON has them")
    return check_text(f"a key of {name}", str.__str__(key))
