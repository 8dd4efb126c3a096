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
    for name in rows[0]:
        table.add_row(name, *(row[name] for row in rows))
    Console(stderr=True, highlight=False).print(table)


def _rows(stats: RequestStats) -> dict[str, str]:
    return {
        "prompt": f"{stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f} tokens/s",
        "decode": f"{stats.tokens} tokens, {stats.decode_tokens_per_second:.1f} tokens/s",
        "ms per token": f"p50 {stats.ms_per_token_p50:.1f}, p95 {stats.ms_per_token_p95:.1f}",
        "steps": f"{stats.lora_steps} LoRA, {stats.refresh_steps} refresh",
        "KV cache": f"{size_text(stats.kv_bytes)} of {size_text(stats.kv_bytes_full)}",
    }
