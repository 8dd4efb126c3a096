"""What training minimises: distance of the student's predictions and states from the full model's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from loradrop.train.decoder import LayeredDecoder


def divergence(decoder: LayeredDecoder, student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of the next token in nats, mean over tokens.

    Parameters
    ----------
    student, teacher : Tensor [n, n_embd]
        Outputs of the last layer.
    """
    with torch.no_grad():
        target = log_softmax(decoder.logits(teacher).float(), -1)
    predicted = log_softmax(decoder.logits(student).float(), -1)
    return (target.exp() * (target - predicted)).sum(-1).mean()


def next_token(decoder: LayeredDecoder, student: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of the text's own next tokens [n] in nats, mean over tokens."""
    return cross_entropy(decoder.logits(student).float(), tokens)


def relative_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of states [n, n_embd], as a share of the teacher's mean square."""
    return (student - teacher).float().pow(2).mean() / teacher.float().pow(2).mean()


def state_distance(student: Tensor, teacher: Tensor, metric: Tensor) -> Tensor:
    """Return the mean squared distance of states [..., n_embd] after `metric` [n_embd, n_embd].

    With the metric of `fisher_metric` it is KL to second order, without running the layers above.
    """
    return ((student - teacher) @ metric).pow(2).sum(-1).mean()
