"""Which layers a model without a corrector leaves out in drafts: tried once, and kept in the cache folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loradrop._core import Context, Corrector, Model, ModelError
from loradrop.distribution import Distribution
from loradrop.fingerprint import fingerprint
from loradrop.fixed_text import prompt_tokens
from loradrop.kept import keep, kept_path, read_kept

_VERSION = 1  # of the way in which they are found
_BEGINNINGS = range(4, 68, 2)  # positions of tokens after which drafts are tried
_DRAFTS = 2  # after each
_N_TOKENS = _BEGINNINGS[-1] + 1 + _DRAFTS
_FIRST_STEPS = 5  # runs that are tried first, about so many


def draft_layers(model: Model, n: int) -> list[int]:
    """Return the run of neighbouring layers without which drafts are nearest to the full model.

    What counts is the mean Kullback-Leibler divergence of a draft's distribution from the full model's, of two drafts
    after each of 32 tokens of a fixed text; all of these are decoded in one batch. Runs all over the model are tried,
    then those between the best and its neighbours. It takes as long as a prompt of some 1500 tokens, and is done once
    for a model and a number of layers: what was found lies in the cache folder, as far as that can be written to.

    A model without a tokenizer, or with too few positions, leaves out its middle.

    Parameters
    ----------
    model : Model
    n : int
        Layers that are left out, 1 or more, as many as can drop at most.

    Raises
    ------
    UnsupportedError
        If layers of this architecture cannot drop.
    ValueError
        If the model's logits are not finite.
    """
    kept = kept_path("draft_layers", _VERSION, n, model.layout_hash, fingerprint(model))
    first = read_kept(kept).get("first")
    if isinstance(first, int) and 1 <= first <= model.n_layer - 1 - n:
        return list(range(first, first + n))
    if 0 < model.n_ctx_train < _N_TOKENS:
        return Corrector.none(model).layers[:n]
    try:
        tokens = prompt_tokens(model, _N_TOKENS)
    except ModelError:
        return Corrector.none(model).layers[:n]
    first = _least(range(1, model.n_layer - n), _Trial(model, n, tokens).divergence)
    keep(kept, {"model": model.description, "n": n, "first": first})
    return list(range(first, first + n))


def _least(places: range, value: Callable[[int], float]) -> int:
    """Return the place of the least value, looked for coarsely first."""
    values: dict[int, float] = {}
    step = max(1, len(places) // _FIRST_STEPS)
    around = list(places[step // 2 :: step])
    while True:
        values |= {place: value(place) for place in around if place not in values}
        best = min(values, key=lambda place: values[place])
        if step == 1:
            return best
        step = -(-step // 2)
        around = [place for place in (best - step, best + step) if place in places]


class _Trial:
    """Drafts of a model without some layers, beside the full model on the same text."""

    def __init__(self, model: Model, n: int, tokens: list[int]) -> None:
        self.model, self.n, self.tokens = model, n, tokens
        n_seqs = 1 + len(_BEGINNINGS)
        self.options: dict[str, Any] = {
            "n_ctx": len(tokens) + n_seqs * (1 + _DRAFTS),
            "n_batch": max(len(tokens), n_seqs),
            "n_seq_max": n_seqs,
        }
        full = Context(model, **{**self.options, "n_seq_max": 1})
        full.decode(tokens, outputs=[True] * len(tokens))
        self.expected = [Distribution(full.logits(i)) for i in range(len(tokens))]
        full.close()

    def divergence(self, first: int) -> float:
        """Return the mean divergence, in nats, without the run that begins at a layer."""
        layers = list(range(first, first + self.n))
        context = Context(
            self.model,
            corrector=Corrector.none(self.model, layers),
            rho=self.n / self.model.n_layer,
            k=_DRAFTS,
            refresh="single",
            **self.options,
        )
        # a sequence for each token after which drafts are tried, all with the same text before it
        seq_ids = range(1, 1 + len(_BEGINNINGS))
        before = self.tokens[: _BEGINNINGS[-1]]
        context.decode(before, outputs=[False] * len(before))
        for seq_id, position in zip(seq_ids, _BEGINNINGS, strict=True):
            context.seq_cp(0, seq_id, 0, position)
        total = 0.0
        for distance in range(1 + _DRAFTS):  # at first the token itself, in full
            positions = [position + distance for position in _BEGINNINGS]
            batch = [self.tokens[position] for position in positions]
            context.decode(batch, seq_ids=seq_ids, positions=positions, outputs=[True] * len(batch))
            if distance:
                ours = (Distribution(context.logits(i)) for i in range(len(positions)))
                total += sum(self.expected[p].divergence(one) for p, one in zip(positions, ours, strict=True))
        context.close()
        return total / (_DRAFTS * len(_BEGINNINGS))
