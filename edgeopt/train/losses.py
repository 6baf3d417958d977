"""Losses by name: cross-entropy, class-weighted cross-entropy, focal, and one's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.errors import ConfigError, did_you_mean
from edgeopt.registry import load_users_own, losses


class Loss(Protocol):
    """float32 logits (N, classes) and targets to a scalar, or to one value a picture, (N,).

    Targets are int64 classes (N,). Where the loss has the attribute ``soft_targets = True``, MixUp and CutMix may hand
    it float32 shares (N, classes) instead.
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor: ...


class CrossEntropyLoss:
    """Cross-entropy against targets softened by ``label_smoothing`` (Szegedy et al. 2016)."""

    soft_targets = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=self._label_smoothing)


class WeightedCrossEntropyLoss:
    """Cross-entropy with every picture weighted by its class: ``count ** -power``, scaled to 1 in the mean over train.

    ``power`` 1 gives every class the same say, 0.5 goes half the way. A mixed picture has the mean weight of its
    shares.
    """

    soft_targets = True

    def __init__(self, class_counts: Sequence[float], label_smoothing: float = 0.0, power: float = 1.0) -> None:
        if not 0 <= power <= 2:
            raise ValueError(f"power must be between 0 and 2, got {power:g}")
        counts = torch.tensor(class_counts, dtype=torch.float64)
        # A class without pictures in train has no weight: nothing can be learned of it.
        weights = torch.where(counts > 0, counts**-power, torch.zeros_like(counts))
        self._weights = (weights * counts.sum() / (weights * counts).sum()).float()
        self._label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        # Not torch's own weights: those go to the smoothed share of each class too, so that pictures of a frequent one
        # would pull harder to the rare than to their own; and its mean divides by the batch's weights.
        weights = self._weights.to(logits.device)
        by_picture = targets @ weights if targets.is_floating_point() else weights[targets]
        return by_picture * functional.cross_entropy(
            logits, targets, label_smoothing=self._label_smoothing, reduction="none"
        )


class FocalLoss:
    """``alpha * (1 - p) ** gamma * -log p`` of the true class's probability p: what is easy counts less.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002. ``balanced`` makes alpha the weight of
    :class:`WeightedCrossEntropyLoss`, else it is 1.
    """

    def __init__(self, class_counts: Sequence[float], gamma: float = 2.0, balanced: bool = True) -> None:
        if not 0 <= gamma <= 10:
            raise ValueError(f"gamma must be between 0 and 10, got {gamma:g}")
        self._gamma = gamma
        self._weights = WeightedCrossEntropyLoss(class_counts, power=1.0 if balanced else 0.0)._weights

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = functional.log_softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]
        return self._weights.to(logits.device)[targets] * (1 - log_p.exp()) ** self._gamma * -log_p


def takes_soft_targets(name: str) -> bool:
    """Whether MixUp, CutMix and label smoothing make sense with this loss."""
    return bool(getattr(_load(name), "soft_targets", False))


def make_loss(
    name: str,
    *,
    class_counts: Sequence[float],
    label_smoothing: float = 0.0,
    arguments: Mapping[str, Any] | None = None,
) -> Loss:
    """The loss of a name in the table (or of an entry point in ``edgeopt.losses``), or of ``module:attr``.

    A class is made with ``arguments`` and those of ``class_counts`` and ``label_smoothing`` that it takes; the counts
    are of the pictures of train an epoch shows, fractions where a manifest weighs them. A function
    ``(logits, targets, **arguments)`` is the loss itself. Raises ConfigError.
    """
    made: Any = _load(name)
    given = dict(arguments or {})
    known = inspect.signature(made).parameters
    for key in given:
        if key not in known and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            raise ConfigError(
                f'the loss {name} takes no "{key}"{did_you_mean(key, known)}', fix="correct train.loss_arguments"
            )
    if not isinstance(made, type):
        function: Loss = partial(made, **given)
        return function
    make: Any = made
    context = {"class_counts": tuple(class_counts), "label_smoothing": label_smoothing}
    try:
        loss: Loss = make(**{key: value for key, value in context.items() if key in known}, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the loss {name} cannot be made with {given}: {error}", fix="correct train.loss_arguments"
        ) from error
    return loss


def _load(name: str) -> Any:
    return load_users_own(losses().get(name, name), kind="loss")
