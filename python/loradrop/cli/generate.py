"""``loradrop generate``: continue a text or answer a message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import click

from loradrop.cli.options import MODEL_HELP, LlamaOptions, llama_options, open_llama
from loradrop.cli.stats_table import print_stats
from loradrop.llama import Llama
from loradrop.stats import RequestStats


@click.command(
    name="generate",
    help=f"Continue PROMPT, or answer it, and stream the text to stdout.\n\n{MODEL_HELP}",
    short_help="Continue a text or answer a message.",
)
@click.argument("model")
@click.argument("prompt")
@llama_options
@click.option(
    "-n",
    "--max-tokens",
    type=int,
    default=200,
    show_default=True,
    help="Most tokens to generate; 0 for as many as the context holds.",
)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0: most probable.")
@click.option("--top-k", type=int, default=40, show_default=True, help="0 for all tokens.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="1 switches it off.")
@click.option("--min-p", type=float, default=0.05, show_default=True, help="0 switches it off.")
@click.option("--repeat-penalty", type=float, default=1.0, show_default=True, help="1 switches it off.")
@click.option("--stop", multiple=True, help="End the text before this string; may be repeated.")
@click.option("--seed", type=int, help="Makes the text repeatable.")
@click.option(
    "--chat/--raw",
    default=None,
    help="Answer PROMPT with the model's chat template, or continue it as it is. "
    "[default: chat if the model has a template]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the text and the stats.")
@click.option(
    "--compare/--no-compare",
    default=False,
    show_default=True,
    help="Decode the same tokens in full as well, and show both.",
)
def command(
    model: str,
    prompt: str,
    chat: bool | None,
    as_json: bool,
    compare: bool,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    stop: tuple[str, ...],
    seed: int | None,
    **options: Any,
) -> None:
    """Run the command."""
    llama_options = cast(LlamaOptions, options)
    prompt = prompt.removeprefix("\ufeff")  # of a text file that a shell has put there
    with open_llama(model, llama_options) as llm:
        if llm.corrector is not None and llm.corrector.is_none and llm.refresh != "verify":
            click.echo(
                "Without a trained corrector the text is poor: this shows speed and memory only.",
                err=True,
            )
        sampling = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "stop": list(stop),
            "seed": seed,
        }
        use_chat = llm.has_chat_template if chat is None else chat
        text = ""
        finish_reason = None
        for piece, finish_reason in _stream(llm, prompt, use_chat, sampling):  # noqa: B007
            text += piece
            if not as_json:
                click.echo(piece, nl=False)
        if not as_json:
            click.echo()
        stats = llm.stats
        assert stats is not None
        tokens = llm.input_ids
        result = {
            "model": model,
            "rho": llm.rho,
            "k": llm.k,
            "refresh": llm.refresh,
            "dropped_layers": llm.dropped_layers,
            "text": text,
            "finish_reason": finish_reason,
            "huge_page_bytes": llm.huge_page_bytes,
            "stats": stats.to_dict(),
        }
    full = None
    if compare:
        full = _decode_in_full(model, llama_options, tokens, stats.prompt_tokens)
        result["comparison"] = {
            "full": full.to_dict(),
            "decode_speedup": _ratio(stats.decode_tokens_per_second, full.decode_tokens_per_second),
            "kv_bytes_ratio": _ratio(stats.kv_bytes, full.kv_bytes),
        }
    if as_json:
        click.echo(json.dumps(result))
    elif full is None:
        print_stats({"": stats})
    else:
        print_stats({"LoRA-Drop": stats, "full": full})


def _stream(llm: Llama, prompt: str, chat: bool, sampling: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield the text in pieces, and in the end why it ended."""
    if not chat:
        for chunk in llm.create_completion(prompt, stream=True, **sampling):
            choice = cast(Any, chunk)["choices"][0]
            yield choice["text"], choice["finish_reason"]
    else:
        messages = [{"role": "user", "content": prompt}]
        for part in llm.create_chat_completion(messages, stream=True, **sampling):
            choice = cast(Any, part)["choices"][0]
            yield choice["delta"].get("content", ""), choice["finish_reason"]


def _decode_in_full(model: str, options: LlamaOptions, tokens: list[int], n_prompt: int) -> RequestStats:
    """Decode the tokens after the prompt once more, with every layer in every step."""
    full: LlamaOptions = {**options, "rho": 0.0, "k": 0, "tolerance": 1.0}
    with open_llama(model, full) as llm:
        return llm.replay(tokens[:n_prompt], tokens[n_prompt:])


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None
