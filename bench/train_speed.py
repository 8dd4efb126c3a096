"""Tokens per second of ``loradrop train``'s distillation beside a plain implementation of the same loss.

    python bench/train_speed.py MODEL TEXT [--segment FIRST-LAST] [--steps N] [--threads N]

Plain: each step runs the full model for its targets and its exact states, runs the student from the embedding up, and
takes the loss at every decoded token. Ours: what is frozen comes from the store, and the loss is taken at the share of
tokens that `loradrop train` takes by default. Steps alternate; the ratio's spread is that of the pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch

from loradrop._core import Model
from loradrop.evaluate.windows import text_windows
from loradrop.text_files import read_texts
from loradrop.train.batches import Batch, BatchSource, kv_layers_needed, layers_needed
from loradrop.train.decoder import load_decoder
from loradrop.train.states import collect
from loradrop.train.student import Shape, Student

N_TOKENS, N_TEXTS, BATCH, SHARE = 256, 32, 8, 0.5


def step(student: Student, batch: Batch, teacher: torch.Tensor) -> None:
    """Take the gradient of a batch."""
    loss = student(batch.tokens, teacher, batch.timeline, batch.choice, batch.scored, 0.0, 0.0, batch.frozen)
    torch.autograd.backward(loss)


def ours(student: Student, source: BatchSource, index: int) -> None:
    """Take one step as `loradrop train` does."""
    batch = source.draw(index)
    step(student, batch, batch.teacher)


def plain(student: Student, source: BatchSource, index: int) -> None:
    """Take one step with nothing stored, and a loss at every decoded token."""
    drawn = source.draw(index)
    lora = drawn.timeline.lora
    batch = dataclasses.replace(drawn, frozen=None, scored=lora[lora < N_TOKENS - 1])
    with torch.no_grad():
        teacher = student.decoder(batch.tokens)
    step(student, batch, teacher)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--segment", default="3-17")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    first, last = map(int, args.segment.split("-"))
    shape = Shape("segment", 64, 64.0, segments=[(first, last)], hidden=1024)
    tokens = text_windows(Model(str(args.model)), read_texts([args.text]), N_TOKENS, N_TEXTS)
    decoder = load_decoder(args.model)
    student = Student(decoder, shape)
    with tempfile.TemporaryDirectory() as folder:
        layers, kv_layers = layers_needed(shape, decoder.n_layer), kv_layers_needed(shape, decoder.n_layer)
        store = collect(decoder, tokens, layers, folder, kv_layers=kv_layers)
        source = BatchSource(
            store=store,
            shape=shape,
            n_layer=decoder.n_layer,
            n_head_kv=decoder.n_head_kv,
            ks=(3,),
            refresh="refill",
            kv_window=N_TOKENS,
            prompt=(16, 64),
            size=BATCH,
            share=SHARE,
            device=decoder.device,
            seed=0,
        )
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        for index in range(args.steps + 1):
            for name, run in (("plain", plain), ("ours", ours)):
                start = time.perf_counter()
                run(student, source, index)
                if index:  # the first pair warms up
                    seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        print(f"{name}: {BATCH * N_TOKENS / statistics.median(times):.0f} tokens/s")
    ratios = sorted(a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True))
    print(f"ratio {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}, {args.threads} threads")


if __name__ == "__main__":
    main()
