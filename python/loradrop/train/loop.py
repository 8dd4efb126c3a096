"""Second stage: distillation of the full model's predictions, with checkpoints, a log and a picture."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from loradrop.checks import check_float, check_int
from loradrop.train.batches import Batch, BatchSource
from loradrop.train.evaluate import Fidelity, fidelity
from loradrop.train.regress import schedule_factor
from loradrop.train.student import Student

CHECKPOINT = "checkpoint.pt"
FIELDS = ("step", "seconds", "tokens", "loss", "lr", "dropped", "kl", "nll_rise", "agreement")


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How long and how hard to train.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    lr : float
        Highest learning rate, of AdamW.
    ce_weight : float
        Weight of the text's own next token beside KL.
    state_weight : float
        Weight of the last layer's output beside KL.
    clip : float
        Largest norm of the gradient.
    evaluate_every : int
        Steps between two evaluations; each is a checkpoint as well.
    seconds : float, optional
        Time after which training stops as if all steps were done, the learning rate having come down by then; the
        checkpoint allows going on.
    """

    steps: int
    lr: float = 5e-4
    ce_weight: float = 0.0
    state_weight: float = 0.0
    clip: float = 1.0
    evaluate_every: int = 200
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_int("steps", self.steps, 0)
        check_float("lr", self.lr, 0.0)
        check_float("ce_weight", self.ce_weight, 0.0)
        check_float("state_weight", self.state_weight, 0.0)
        check_int("evaluate_every", self.evaluate_every, 1)
        if self.seconds is not None:
            check_float("seconds", self.seconds, 0.0)


class Training:
    """A student on its way: `run` trains it to the end, or on from the checkpoint in its folder.

    Parameters
    ----------
    student : Student
    source : BatchSource
        Where batches come from.
    held_out : mapping of str to list of Batch
        Which layers drop -> what the evaluations are measured on.
    folder : path
        Gets ``checkpoint.pt`` and ``log.csv``.
    options : LoopOptions
    accelerator : Accelerator, optional
        Decides devices and processes; started by accelerate's launcher it spans several.
    precision : torch.autocast, optional
        In which losses are computed.

    Attributes
    ----------
    n_regressed : int
        Segments that have been through the first stage; part of the checkpoint.
    """

    def __init__(
        self,
        student: Student,
        source: BatchSource,
        held_out: Mapping[str, list[Batch]],
        folder: Path,
        options: LoopOptions,
        accelerator: Accelerator | None = None,
        precision: torch.autocast | None = None,
    ) -> None:
        self._accelerator = accelerator or Accelerator()
        self._precision: AbstractContextManager[Any] = nullcontext() if precision is None else precision
        self._student, self._source, self._held_out = student, source, held_out
        self._options = options
        self._checkpoint, self._log = folder / CHECKPOINT, folder / "log.csv"
        parameters = list(student.correctors.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=options.lr, betas=(0.9, 0.98), weight_decay=1e-3)
        self._model, self._optimizer = self._accelerator.prepare(student, optimizer)
        self._step, self._seconds, self._tokens = 0, 0.0, 0
        self.n_regressed = 0

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one; return whether there was."""
        if not self._checkpoint.exists():
            return False
        saved = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        self._student.correctors.load_state_dict(saved["correctors"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._step, self._seconds, self._tokens = saved["step"], saved["seconds"], saved["tokens"]
        self.n_regressed = saved["n_regressed"]
        return True

    def run(self, advance: Callable[[int, float], None] | None = None) -> dict[str, Fidelity]:
        """Train, and return the last evaluation, by the layers that drop; an interrupt leaves a checkpoint.

        Parameters
        ----------
        advance : callable, optional
            Called after each step with its number and the mean loss since the last evaluation.
        """
        try:
            return self._run(advance)
        except KeyboardInterrupt:
            self.save()
            raise

    def _run(self, advance: Callable[[int, float], None] | None) -> dict[str, Fidelity]:
        options, start = self._options, time.monotonic() - self._seconds
        result = None if self._log.exists() else self._evaluate(float("nan"), 0.0)
        losses: list[float] = []
        while self._step < options.steps:
            for group in self._optimizer.param_groups:
                group["lr"] = options.lr * schedule_factor(self._position(), options.steps)
            losses.append(self._one_step())
            self._step += 1
            self._seconds = time.monotonic() - start
            mean = sum(losses) / len(losses)
            if advance is not None:
                advance(self._step, mean)
            late = options.seconds is not None and self._seconds > options.seconds
            if self._step % options.evaluate_every == 0 or self._step == options.steps or late:
                result = self._evaluate(mean, self._optimizer.param_groups[0]["lr"])
                losses.clear()
                start = time.monotonic() - self._seconds  # evaluations are not training time
                self.save()
            if late:
                break
        return result or self._measure()

    def _position(self) -> int:
        """Return how far training is, in steps, by its steps or by its time, whichever is further."""
        seconds = self._options.seconds
        if seconds is None:
            return self._step
        return max(self._step, int(self._options.steps * min(1.0, self._seconds / max(seconds, 1e-9))))

    def _one_step(self) -> float:
        batch = self._source.draw(self._step, self._accelerator.process_index)
        with self._precision:
            loss = self._model(
                batch.tokens,
                batch.teacher,
                batch.timeline,
                batch.choice,
                batch.scored,
                self._options.ce_weight,
                self._options.state_weight,
                batch.frozen,
            )
        idle = self._student.idle(batch.choice)
        if self._accelerator.num_processes > 1:  # processes wait for the gradient of every parameter
            loss = loss + 0.0 * sum(parameter.sum() for parameter in idle)
        self._optimizer.zero_grad()
        self._accelerator.backward(loss)
        for parameter in idle:
            parameter.grad = None  # or the optimizer's momentum would move them
        self._accelerator.clip_grad_norm_(self._student.correctors.parameters(), self._options.clip)
        self._optimizer.step()
        self._tokens += batch.tokens.numel() * self._accelerator.num_processes
        return float(loss.detach())

    def _evaluate(self, loss: float, lr: float) -> dict[str, Fidelity]:
        results = self._measure()
        if self._accelerator.is_main_process:
            row = {
                "step": self._step,
                "seconds": round(self._seconds, 1),
                "tokens": self._tokens,
                "loss": loss,
                "lr": lr,
            }
            for dropped, result in results.items():
                append_row(self._log, row | {"dropped": dropped} | asdict(result))
        return results

    def _measure(self) -> dict[str, Fidelity]:
        with self._precision:
            return {dropped: fidelity(self._student, batches) for dropped, batches in self._held_out.items()}

    def save(self) -> None:
        """Write the checkpoint, from which `resume` goes on."""
        if not self._accelerator.is_main_process:
            return
        temporary = self._checkpoint.with_suffix(".tmp")
        state: dict[str, Any] = {
            "correctors": self._student.correctors.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self._step,
            "seconds": self._seconds,
            "tokens": self._tokens,
            "n_regressed": self.n_regressed,
        }
        torch.save(state, temporary)
        os.replace(temporary, self._checkpoint)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a CSV file, and the heading if it is the first."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)
