"""The chat template in a model's file: how messages become a prompt."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loradrop._core import Model, ModelError
from loradrop.checks import check_text
from loradrop.messages import NoContent
from loradrop.pieces import token_text

_KEY = "tokenizer.chat_template"


class ChatTemplate:
    """A chat template: foreign code, so it runs in a sandbox and cannot reach Python's objects.

    It renders as in transformers.

    Parameters
    ----------
    source : str
        Jinja, as Hugging Face's tokenizers have it.
    bos_token, eos_token : str
        The texts of the special tokens.

    Raises
    ------
    ModelError
        If the template does not parse.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.tests["none"] = _is_none
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the model's chat template does not parse: {error}") from error
        self._bos_token = bos_token
        self._eos_token = eos_token

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt, with all the special tokens that it is to have.

        Parameters
        ----------
        messages : sequence of mappings
            As `check_messages` returns them.
        tools : sequence of mappings, optional
            What the model may call, as JSON schemas.
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
                tools=tools,
                documents=None,
            )
            return check_text("its text", text)
        except RefusedMessages as error:
            raise ValueError(f"messages: the model's chat template refuses them: {error}") from None
        except Exception as error:  # a template can raise whatever its expressions raise
            raise ModelError(f"the model's chat template fails: {error}") from error


class _Generation(Extension):
    """``{% generation %}``, which marks what the assistant says for training, and changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an attribute of the instance)

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class RefusedMessages(Exception):
    """What ``raise_exception`` of a template raises."""


def has_template(model: Model) -> bool:
    """Return whether the model's file holds a chat template, be it one that can be used or not."""
    # for some files without one llama.cpp answers with the name of a format
    return bool(model.metadata.get(_KEY))


def model_template(model: Model) -> ChatTemplate:
    """Return the template in the model's file.

    Raises
    ------
    ModelError
        If there is none, it is not UTF-8, or it does not parse.
    """
    instead = "format the messages yourself and use create_completion(), or take"
    if not has_template(model):
        raise ModelError(f"{model.path} holds no chat template: {instead} an instruction-tuned model")
    try:
        source = model.chat_template or ""
    except UnicodeDecodeError as error:
        raise ModelError(f"{model.path}: {_KEY} is not UTF-8: {error}; {instead} another file of the model") from None
    bos, eos = (token_text(model, token) if token >= 0 else "" for token in (model.bos_token, model.eos_token))
    return ChatTemplate(source, bos_token=bos, eos_token=eos)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _is_none(value: object) -> bool:
    return value is None or isinstance(value, NoContent)


def _raise_exception(message: str) -> None:
    raise RefusedMessages(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
