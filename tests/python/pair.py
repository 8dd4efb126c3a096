"""The engine and a reference side by side on the same tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loradrop._core import Context, Corrector, Model
from reference import Decoder, Entry, FloatArray, RuleDecoder, layers_for
from tiny import TinyCorrector, TinyModel, write_gguf, write_sidecar

TOLERANCE = 1e-4  # of the largest logit
FLASH_TOLERANCE = 3e-3  # llama.cpp hands K and V to flash attention as f16
ENGINE_OPTIONS: dict[str, Any] = {
    "n_ctx": 512,
    "flash_attn": "off",
    "type_k": "f32",
    "type_v": "f32",
    "n_threads": 1,  # on a busy machine the threads of so small a graph would only wait for each other
    "n_threads_batch": 1,
}


class Lockstep:
    """Decodes every batch with both, and fails where their logits or their steps differ."""

    def __init__(self, engine: Context, reference: RuleDecoder, tolerance: float) -> None:
        self.engine, self.reference, self.tolerance = engine, reference, tolerance
        self.tokens: dict[int, list[int]] = {}  # of each sequence, all that were decoded

    def decode(self, *entries: Entry) -> list[FloatArray | None]:
        """Run one batch; return the engine's logits of each entry's last token."""
        expected = self.reference.decode(entries)
        tokens: list[int] = []
        seq_ids: list[int] = []
        outputs: list[bool] = []
        last: list[int] = []
        for entry in entries:
            self.tokens.setdefault(entry.seq_id, []).extend(entry.tokens)
            tokens += entry.tokens
            seq_ids += [entry.seq_id] * len(entry.tokens)
            outputs += [False] * (len(entry.tokens) - 1) + [entry.want_logits]
            last.append(len(tokens) - 1)
        self.engine.decode(tokens, seq_ids=seq_ids, outputs=outputs)
        assert self.engine.stats["last_step"] == self.reference.last_step
        actual: list[FloatArray | None] = []
        for i, want in zip(last, expected, strict=True):
            if want is None:
                actual.append(None)
                continue
            got = self.engine.logits(i)
            error = float(np.abs(got - want).max() / np.abs(want).max())
            assert error <= self.tolerance, f"{self.reference.last_step} step differs by {error:.2e}"
            actual.append(got)
        return actual


class Pair(Lockstep):
    """The engine and the NumPy reference."""

    def __init__(
        self,
        folder: Path,
        model: TinyModel,
        corrector: TinyCorrector,
        *,
        rho: float,
        k: int,
        refresh: str = "refill",
        kv_window: int = 64,
        sidecar: bool = False,
        **options: Any,
    ) -> None:
        path = folder / "model.gguf"
        write_gguf(path, model, None if sidecar else corrector)
        holder = path
        if sidecar:
            holder = folder / "sidecar.gguf"
            write_sidecar(holder, model, corrector)
        self.native_model = Model(str(path))
        native_corrector = Corrector.load(str(holder), self.native_model)
        assert native_corrector is not None
        engine = Context(
            self.native_model,
            corrector=native_corrector,
            rho=rho,
            k=k,
            refresh=refresh,
            kv_window=kv_window,
            **(ENGINE_OPTIONS | options),
        )
        dropped = layers_for(rho, model.n_layer, corrector)
        assert k == 0 or engine.dropped_layers == sorted(dropped)
        tolerance = TOLERANCE if options.get("flash_attn", "off") == "off" else FLASH_TOLERANCE
        super().__init__(engine, Decoder(model, corrector, dropped, k, refresh, kv_window), tolerance)
