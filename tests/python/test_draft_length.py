"""k="auto", simulated: drafts that are right with a given chance, passes that take given times, and no clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from loradrop._core import DraftLength

K = 7
N_TOKENS = 4000


@dataclass
class Machine:
    """What passes take beside a full step of one token.

    Attributes
    ----------
    lora : float
        A LoRA step.
    checks : tuple of float
        Full steps of 1 to 8 tokens.
    noise : float
        Standard deviation of a pass's time, as a share of it.
    """

    lora: float
    checks: tuple[float, ...]
    noise: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def time(self, least: float) -> float:
        return least * (1 + abs(float(self.rng.normal(0, self.noise))) if self.noise else 1)


FLAT = (1.0, 1.09, 1.15, 1.2, 1.3, 1.4, 1.55, 1.7)
STEEP = (1.0, 1.7, 2.3, 2.5, 3.3, 3.8, 4.2, 4.6)


class Text:
    """Drafts as a model makes them: each with a margin, and right with a chance that grows with it."""

    def __init__(self, ease: float, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.ease = ease

    def draft(self) -> tuple[float, bool]:
        margin = float(self.rng.exponential(3.0))
        return margin, bool(self.rng.random() < 1 / (1 + math.exp(-margin - self.ease)))


def cost_of_fixed(machine: Machine, text: Text, k: int) -> float:
    """Return the time of a token with k drafts in each round."""
    time, n_tokens = 0.0, 0
    while n_tokens < N_TOKENS:
        time += machine.time(machine.checks[k]) + sum(machine.time(machine.lora) for _ in range(k))
        n_tokens += 1
        for _ in range(k):
            if not text.draft()[1]:
                break
            n_tokens += 1
    return time / n_tokens


def cost_of_rule(machine: Machine, text: Text, rule: DraftLength, n_most: int = N_TOKENS) -> float:
    """Return the time of a token with as many drafts as the rule says."""
    time, n_tokens = 0.0, 0
    rule.begin_text()
    while n_tokens < n_most:
        n_tokens += 1
        if not rule.begins():
            took = machine.time(1.0)
            rule.full_took(took)
            time += took
            continue
        drafts: list[tuple[float, bool]] = []
        while not drafts or rule.goes_on([margin for margin, _ in drafts]):
            drafts.append(text.draft())
            took = machine.time(machine.lora)
            rule.lora_took(took)
            time += took
        took = machine.time(machine.checks[len(drafts)])
        rule.check_took(1 + len(drafts), took)
        time += took
        for margin, right in drafts:
            rule.came_to(margin, right)
            if not right:
                break
            n_tokens += 1
    return time / n_tokens


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("ease", [-3.0, -1.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("checks", [FLAT, STEEP])
@pytest.mark.parametrize("lora", [0.35, 0.6, 0.8])
def test_as_quick_as_the_best_number(lora: float, checks: tuple[float, ...], ease: float, noise: float) -> None:
    best = min(cost_of_fixed(Machine(lora, checks, noise), Text(ease), k) for k in range(K + 1))
    ours = cost_of_rule(Machine(lora, checks, noise), Text(ease), DraftLength(K))
    assert ours <= 1.03 * best


@pytest.mark.parametrize("ease", [-100.0, -4.0])
def test_drafts_that_are_never_right_cost_little(ease: float) -> None:
    ours = cost_of_rule(Machine(0.8, FLAT, 0.1), Text(ease), DraftLength(K))
    full = cost_of_fixed(Machine(0.8, FLAT, 0.1), Text(ease), 0)
    assert ours <= 1.03 * full


@pytest.mark.parametrize("lora", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("before", [3.0, 0.0])
def test_it_follows_texts_that_change(lora: float, before: float) -> None:
    """Short texts of which no draft is right, after one of which most were, and then such a one again."""
    rule, machine = DraftLength(K), Machine(lora, FLAT, 0.05)
    full = cost_of_fixed(Machine(lora, FLAT, 0.05), Text(before), 0)
    for _ in range(3):
        cost_of_rule(machine, Text(before), rule, 300)
        assert cost_of_rule(machine, Text(-100.0), rule, 100) <= 1.06 * full
        assert cost_of_rule(machine, Text(-100.0), rule, 200) <= 1.04 * full
    best = min(cost_of_fixed(Machine(lora, FLAT, 0.05), Text(before), k) for k in range(K + 1))
    assert cost_of_rule(machine, Text(before), rule, 1000) <= 1.06 * best


def test_drawn_drafts_have_rates_of_their_own() -> None:
    """What one kind has shown of a margin says nothing of the other."""
    rule = DraftLength(K)
    rule.full_took(1.0)
    rule.lora_took(0.5)
    rule.check_took(2, 1.05)
    rule.draw_drafts(True)
    for _ in range(100):
        rule.came_to(5.0, False)
    assert not rule.goes_on([5.0])
    rule.draw_drafts(False)
    assert rule.goes_on([5.0])
    rule.draw_drafts(True)
    assert not rule.goes_on([5.0])


def test_rounds_that_lose_are_tried_for_a_while_only() -> None:
    """Whatever was right before: two tokens' time when a text begins, and then what plain decoding earns."""
    rule = DraftLength(K)
    for _ in range(3):
        rule.full_took(1.0)
        rule.lora_took(0.5)
    for i in range(500):
        if i % 40 == 0:
            rule.full_took(1.0)
        rule.check_took(2, 1.2)
        rule.came_to(9.0, True)
    rule.full_took(1.0)
    rule.begin_text()
    lost = 0.0
    while rule.begins():
        rule.check_took(2, 1.2)
        rule.came_to(9.0, False)
        lost += 0.5 + 1.2 - 1.0
    assert 2.0 <= lost <= 2.0 + 0.7
    n_plain = 0
    while not rule.begins():
        rule.full_took(1.0)
        n_plain += 1
    assert n_plain >= (lost - 2.0) / 0.015


def test_nothing_is_drafted_before_a_full_step_was_measured() -> None:
    rule = DraftLength(K)
    assert not rule.begins()
    rule.begin_text()
    rule.full_took(9.0)  # the first pass after a prompt does not count
    assert not rule.begins()
    rule.full_took(1.0)
    assert rule.begins()


def test_full_steps_are_timed_again() -> None:
    """A machine that gets quicker while drafts are always right: they no longer pay, and that is found out."""
    rule = DraftLength(K)
    rule.full_took(1.0)
    n_rounds = n_plain = 0
    while n_rounds < 1000 and n_plain < 10:
        if rule.begins():
            rule.lora_took(0.5)
            rule.check_took(2, 0.6)
            rule.came_to(9.0, True)
            n_rounds += 1
        else:
            rule.full_took(0.5)
            n_plain += 1
    assert n_rounds < 400


def test_a_round_is_never_longer_than_k() -> None:
    rule = DraftLength(2)
    rule.full_took(1.0)
    rule.lora_took(0.01)
    assert rule.begins() and rule.goes_on([9.0])
    assert not rule.goes_on([9.0, 9.0])
    assert not rule.goes_on([9.0] * 100)


@pytest.mark.parametrize("margin", [math.nan, math.inf, -math.inf, -1.0, 1e30])
def test_any_margin_has_a_rate(margin: float) -> None:
    rule = DraftLength(K)
    rule.full_took(1.0)
    rule.lora_took(0.1)
    for _ in range(200):
        rule.came_to(margin, False)
    assert not rule.goes_on([margin])


@pytest.mark.parametrize("call", [lambda: DraftLength(0)])
def test_bad_arguments(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="k = 0, expected 1 or more"):
        call()
