"""How much each direction of a layer's output matters to what the model predicts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from loradrop.state_store import N_SKIPPED
from loradrop.train.decoder import LayeredDecoder

FLOOR = 0.03  # of the mean eigenvalue, so that no direction is free


def fisher_metric(decoder: LayeredDecoder, layer: int, states: Tensor, seed: int = 0) -> Tensor:
    """Return R with |R^T d|^2 about twice the KL that a small error d in a layer's inputs causes.

    The Fisher information E[g g^T], with g the gradient, by the state, of the log-probability of a token drawn from
    the model (Amari, 1998), taken over the tokens of some texts; R is its square root.

    Parameters
    ----------
    decoder : LayeredDecoder
    layer : int
        The states are inputs of this layer.
    states : Tensor [n_texts, n_tokens, n_embd]
        A few thousand tokens are enough.
    seed : int
        Of the draws.

    Returns
    -------
    Tensor [n_embd, n_embd]
    """
    draws = torch.Generator(states.device).manual_seed(seed)
    positions = torch.arange(states.shape[1], device=states.device)
    total = torch.zeros(decoder.n_embd, decoder.n_embd, device=states.device)
    count = 0
    for text in states:
        x = text[None].detach().requires_grad_()
        y = x
        for i in range(layer, decoder.n_layer):
            y = decoder.layer(i, y, positions)
        predicted = log_softmax(decoder.logits(y), -1)[0]
        drawn = torch.multinomial(predicted.detach().exp(), 1, generator=draws)
        (gradient,) = torch.autograd.grad(predicted.gather(-1, drawn).sum(), x)
        gradient = gradient[0, N_SKIPPED:].float()
        total += gradient.T @ gradient
        count += len(gradient)
    values, vectors = torch.linalg.eigh(total / count)
    root: Tensor = vectors @ torch.diag((values + FLOOR * values.mean()).sqrt())
    return root
