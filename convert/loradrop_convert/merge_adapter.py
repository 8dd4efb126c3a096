"""LoRA adapters added to the weights of a checkpoint, tensor by tensor, in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loradrop._core import CorrectorError, ModelError
from loradrop_convert.checkpoint_files import copy_other_files, read_raw, write_shard
from loradrop_convert.corrector import FloatArray
from loradrop_convert.gguf_writer import Progress
from loradrop_convert.json_file import read_json
from loradrop_convert.peft_adapter import LoraPair, PeftAdapter
from loradrop_convert.reference_checkpoint import CONFIG, weight_files
from loradrop_convert.safetensors_file import FLOAT_TYPES, RawTensor, encoded

_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")  # by which llama.cpp's converter knows weights


@dataclass
class Change:
    """What becomes of one weight.

    Attributes
    ----------
    saved : array, optional
        What takes its place.
    pairs : list of LoraPair
        What is added to it.
    transposed : bool
        Whether the weight is stored [n_in, n_out].
    """

    saved: FloatArray | None = None
    pairs: list[LoraPair] = field(default_factory=list)
    transposed: bool = False

    def blocks(self, raw: RawTensor) -> Iterator[bytes]:
        """Give the changed weight in the type of the given one."""
        weight = raw.floats() if self.saved is None else self.saved.copy()
        for pair in self.pairs:
            added = np.float32(pair.scale) * (pair.b @ pair.a)
            weight += added.T if self.transposed else added
        yield encoded(weight, raw.dtype)


@dataclass(frozen=True)
class Merge:
    """A checkpoint and what adapters change in it, checked.

    Attributes
    ----------
    files : list of Path
        The checkpoint's files of weights.
    changes : dict of Change
        By the name of the weight.
    """

    checkpoint: Path
    files: list[Path]
    changes: dict[str, Change]

    def write(self, folder: Path, progress: Progress | None = None) -> None:
        """Write the merged checkpoint into a new folder.

        Raises
        ------
        OSError
            If a file cannot be read, or the room on the disk runs out.
        """
        folder.mkdir()
        copy_other_files(self.checkpoint, folder, ".py")
        n_bytes = 0
        for i, path in enumerate(self.files):
            tensors = read_raw(path, lambda name: True)
            n_bytes += write_shard(folder, i, {name: self._merged(name, raw) for name, raw in tensors.items()})
            if progress is not None:
                progress(f"merging into {self.checkpoint.name}", n_bytes, None)

    def _merged(self, name: str, raw: RawTensor) -> RawTensor:
        return replace(raw, blocks=self.changes[name].blocks(raw)) if name in self.changes else raw


def plan_merge(checkpoint: Path, adapters: Sequence[tuple[PeftAdapter, float]]) -> Merge:
    """Return what adapters, each with its scale, change in a checkpoint. Only the heads of its files are read.

    Raises
    ------
    ModelError
        If an adapter does not fit it.
    OSError
        If a file cannot be read.
    """
    try:
        tied = read_json(checkpoint / CONFIG).values.get("tie_word_embeddings")
        files = weight_files(checkpoint, _PATTERNS)
        tensors = {name: raw for path in files for name, raw in read_raw(path, lambda name: True).items()}
    except CorrectorError as error:  # of the readers that correctors have too
        raise ModelError(str(error)) from error
    changes: dict[str, Change] = {}
    for adapter, scale in adapters:
        adapter.check_untied(str(checkpoint), "lm_head.weight" not in tensors if tied is None else tied is not False)
        weights = _Weights(adapter, checkpoint, tensors)
        _add_saved(changes, weights, scale)
        _add_pairs(changes, weights, scale)
    return Merge(checkpoint, files, changes)


@dataclass(frozen=True)
class _Weights:
    """The weights of a checkpoint, as an adapter names them."""

    adapter: PeftAdapter
    checkpoint: Path
    tensors: Mapping[str, RawTensor]

    def find(self, name: str) -> tuple[str, list[int]]:
        """Return a weight's own name and its shape."""
        # Checkpoints of a model without its head lack the first part.
        found = next((own for own in (name, name.partition(".")[2]) if own in self.tensors), None)
        if found is None:
            base = self.adapter.base or "another model"
            raise ModelError(
                f"{self.adapter.path}: adapts {name}, which is not in {self.checkpoint}; it was trained on {base}"
            )
        raw = self.tensors[found]
        if raw.dtype not in FLOAT_TYPES:
            raise ModelError(
                f"{self.checkpoint}: tensor {found} has type {raw.dtype}, to which nothing can be added; "
                "take the checkpoint that is not quantised"
            )
        return found, raw.shape

    def misfit(self, name: str, shape: list[int], expected: list[int]) -> ModelError:
        """Return the error for a weight of another shape."""
        return ModelError(
            f"{self.adapter.path}: adapts {name} of shape {shape}, in {self.checkpoint} it has {expected}; this "
            "adapter belongs to another model, or to one with more tokens"
        )


def _add_saved(changes: dict[str, Change], weights: _Weights, scale: float) -> None:
    for name, saved in weights.adapter.saved.items():
        found, shape = weights.find(name)
        if list(saved.shape) != shape:
            raise weights.misfit(name, list(saved.shape), shape)
        if found in changes or scale != 1:
            raise ModelError(
                f"{weights.adapter.path}: {name} was trained whole (modules_to_save), so it can neither be scaled nor "
                "be joined with another adapter's; merge this adapter with scale 1 and before others that adapt it"
            )
        changes[found] = Change(saved)


def _add_pairs(changes: dict[str, Change], weights: _Weights, scale: float) -> None:
    found = {name: weights.find(name) for name in weights.adapter.pairs}
    shapes = {name: [pair.b.shape[0], pair.a.shape[1]] for name, pair in weights.adapter.pairs.items()}
    # PEFT leaves the flag out where other modules of the adapter are plain; square weights do not tell by themselves.
    transposed = weights.adapter.fan_in_fan_out or any(
        shape != found[name][1] and shape[::-1] == found[name][1] for name, shape in shapes.items()
    )
    for name, pair in weights.adapter.pairs.items():
        own, expected = found[name]
        turned = not pair.embedding and shapes[name][::-1] == expected and (transposed or shapes[name] != expected)
        if shapes[name] != expected and not turned:
            raise weights.misfit(name, shapes[name], expected)
        change = changes.setdefault(own, Change())
        change.transposed = turned
        change.pairs.append(replace(pair, scale=pair.scale * scale))
