"""An adapter of PEFT and the configuration of its model become an adapter file in GGUF."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from loradrop_convert.adapter_file import write_adapter
from loradrop_convert.gguf_writer import Progress
from loradrop_convert.json_file import read_json
from loradrop_convert.llama_converter import DIRECT_TYPES
from loradrop_convert.output import complete_file
from loradrop_convert.peft_adapter import PeftAdapter
from loradrop_convert.reference_base import reference_base_config
from loradrop_convert.reference_checkpoint import CONFIG, is_reference_checkpoint


def check_adapter_alone(
    loras: Sequence[tuple[Path, float]], outtype: str, corrector: str | os.PathLike[str] | None, sidecar: bool
) -> None:
    """Check the arguments of `convert` that are to give an adapter file.

    Raises
    ------
    ValueError
        If they do not go together.
    """
    if len(loras) != 1 or loras[0][1] != 1:
        raise ValueError(
            "adapter=True: give one adapter with --lora (lora=PATH), without a scale; that is given when it is used"
        )
    if corrector is not None or sidecar:
        raise ValueError("adapter=True: a corrector goes into a model's file or beside it; leave it out")
    if outtype not in DIRECT_TYPES:
        raise ValueError(f"outtype={outtype!r}: give one of {', '.join(DIRECT_TYPES)} for an adapter")


def convert_adapter(
    checkpoint: Path, adapter: PeftAdapter, out: Path, outtype: str, force: bool, progress: Progress | None
) -> None:
    """Write an adapter for a checkpoint's model; see `write_adapter`."""
    config = read_json(checkpoint / CONFIG).values
    if is_reference_checkpoint(checkpoint):
        config = reference_base_config(config)
    adapter.check_untied(str(checkpoint), config.get("tie_word_embeddings") is not False)
    with complete_file(out, force) as temporary:
        write_adapter(adapter, config, temporary, outtype, progress)
