"""Stats as a small table on stderr."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from loradrop.cli.tables import size_text
from loradrop.stats import RequestStats


def print_stats(columns: Mapping[str, RequestStats]) -> None:
    """Print the stats of requests side by side.

    Parameters
    ----------
    columns : mapping of str to RequestStats
        Heading -> stats.
    """
    table = Table(show_header=len(columns) > 1, box=None, pad_edge=False)
    table.add_column("")
    for heading in columns:
        table.add_column(heading, justify="right")
    rows = [_rows(stats) for stats in columns.values()]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(row.get(name, "") for row in rows))
    Console(stderr=True, highlight=False).print(table)


def _rows(stats: RequestStats) -> dict[str, str]:
    drafts = {}
    if stats.rounds:
        drafts["drafts"] = f"{stats.accepted} of {stats.drafted} right, {stats.tokens_per_round:.2f} tokens a round"
    return {
        "prompt": f"{stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f} tokens/s",
        "decode": f"{stats.tokens} tokens, {stats.decode_tokens_per_second:.1f} tokens/s",
        "ms per token": f"p50 {stats.ms_per_token_p50:.1f}, p95 {stats.ms_per_token_p95:.1f}",
        "steps": f"{stats.lora_steps} LoRA, {stats.refresh_steps} refresh",
        **drafts,
        "KV cache": f"{size_text(stats.kv_bytes)} of {size_text(stats.kv_bytes_full)}",
    }
