"""Feature matching: a student's features, through an adapter that is thrown away, are to be the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.errors import ModelError
from edgeopt.models.modes import evaluating, hooked
from edgeopt.train.distillation import Asked
from edgeopt.train.losses import CrossEntropyLoss, Loss

#: The adapter's name in the student's classifier layer while it is trained.
ADAPTER = "distillation_adapter"
_ROUNDING = 0.05  # relative: what int8 may move means by


@dataclass(frozen=True)
class Features:
    """Where a model's last features are: the ``output`` or else the input of the module ``layer``.

    ``is_map``: they are (N, channels, height, width), else (N, channels). ``classifier`` is the layer they lead to.
    """

    classifier: str
    layer: str
    output: bool
    is_map: bool
    channels: int


class FeatureMatching:
    """``weight * mean((adapter(student) - teacher)^2) / mean(teacher^2) + (1 - weight) * loss``.

    The features are the last map before the classifier, or the classifier's input where one of the two has no map
    (Romero et al. 2015, "FitNets", https://arxiv.org/abs/1412.6550, whose regressor the 1x1 convolution or linear layer
    of the adapter is); dividing by the teacher's mean square makes 1 the error of a student that answers nothing, in
    any architecture. ``example`` is a batch (N, 3, height, width) for the student. The teacher is copied, in eval mode,
    never trained. Raises ModelError for a model without a classifier layer.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, example: Tensor, *, weight: float = 0.5, loss: Loss | None = None
    ) -> None:
        self.weight = weight
        self._loss = loss or CrossEntropyLoss()
        self._teacher = Asked(teacher)
        self._theirs = last_features(self._teacher.like(example), example)
        self._ours = last_features(student, example)
        self._maps = self._theirs.is_map and self._ours.is_map

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        teacher = self._teacher.like(images)
        with torch.no_grad(), _watched(teacher, self._theirs) as theirs:
            teacher(images)
        with _watched(model, self._ours) as ours:
            logits = model(images).float()
        wanted, given = (self._shaped(seen[-1]) for seen in (theirs, ours))
        if self._maps and wanted.shape[2:] != given.shape[2:]:
            wanted = functional.adaptive_avg_pool2d(wanted, list(given.shape[2:]))  # type: ignore[arg-type]
        adapted = model.get_submodule(f"{self._ours.classifier}.{ADAPTER}")(given)
        apart = (adapted.float() - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)
        loss: Tensor = self.weight * apart + (1 - self.weight) * self._loss(logits, targets).mean()
        return loss

    @contextmanager
    def adapted(self, model: nn.Module, *, seed: int = 0) -> Iterator[nn.Module]:
        """``model`` carries the adapter while the block runs, so that what trains, averages and resumes it does so
        with the adapter too; gives the adapter. It hangs in the classifier layer, whose forward does not know it.

        It starts as the identity where both have as many channels, else from random numbers drawn from ``seed``.
        """
        sizes = self._ours.channels, self._theirs.channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = nn.Conv2d(*sizes, kernel_size=1) if self._maps else nn.Linear(*sizes)
        if sizes[0] == sizes[1]:
            with torch.no_grad():
                adapter.weight.view(sizes).copy_(torch.eye(sizes[0]))
                nn.init.zeros_(adapter.bias)  # type: ignore[arg-type]
        classifier = model.get_submodule(self._ours.classifier)
        classifier.add_module(ADAPTER, adapter.to(next(model.parameters()).device))
        try:
            yield adapter
        finally:
            delattr(classifier, ADAPTER)

    def _shaped(self, features: Tensor) -> Tensor:
        """float32 maps (N, channels, height, width), or vectors (N, channels), which maps are averaged to."""
        features = features.float()
        return features if self._maps or features.dim() == 2 else features.mean(dim=(2, 3))


def last_features(model: nn.Module, example: Tensor) -> Features:
    """Where the last features of ``model`` are; one forward pass in eval mode, modes are restored.

    They are the map whose mean over height and width is the classifier's input, where some layer gives one, else that
    input. Raises ModelError for a model without a linear layer or convolution as its classifier.
    """
    calls = _calls(model, example)
    heads = [index for index, call in enumerate(calls) if isinstance(call.module, (nn.Linear, nn.Conv2d))]
    head = calls[heads[-1]] if heads else None
    if head is None or head.given is None or head.given.dim() not in (2, 4):
        raise ModelError(
            "the model has no classifier layer whose input could be matched", fix="--distill hinton, dkd or dist"
        )
    name, channels, given = head.name, head.given.shape[1], head.given
    if given.dim() == 4 and given.shape[2:].numel() > 1:  # a convolution as the classifier, before the pooling
        return Features(name, name, output=False, is_map=True, channels=channels)
    for call in reversed(calls[: heads[-1]]):
        if _is_pooled_to(call.output, given.flatten(1)):
            return Features(name, call.name, output=True, is_map=True, channels=channels)
    return Features(name, name, output=False, is_map=False, channels=channels)


@dataclass(frozen=True)
class _Call:
    """What a layer was given and gave."""

    name: str
    module: nn.Module
    given: Tensor | None
    output: Tensor | None


def _calls(model: nn.Module, example: Tensor) -> list[_Call]:
    """The layers of one forward pass, in the order in which they ended."""
    calls: list[_Call] = []

    def noted(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            made = output if isinstance(output, Tensor) else None
            calls.append(_Call(name, module, given, made))

        return note

    layers = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    # Quantizers are no layers: one may be called in several places.
    handles = [module.register_forward_hook(noted(name)) for name, module in layers if "__nncf_hooks" not in name]
    with hooked(handles), torch.no_grad(), evaluating(model):
        model(example)
    return calls


def _is_pooled_to(map_: Tensor | None, given: Tensor) -> bool:
    """Whether ``given`` (N, channels) is the mean of a map, but for what quantizers in between round."""
    if map_ is None or map_.dim() != 4 or map_.shape[2:].numel() < 2 or map_.shape[:2] != given.shape:
        return False
    return bool((map_.mean(dim=(2, 3)) - given).norm() <= _ROUNDING * given.norm())


@contextmanager
def _watched(model: nn.Module, features: Features) -> Iterator[list[Tensor]]:
    """The features of every forward pass in the block, the last one last."""
    seen: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        value = output if features.output else inputs[0]
        # A copy of what the next layer may change in place; maps of one picture element are vectors.
        seen.append(value.clone() if features.is_map or value.dim() == 2 else value.flatten(1))

    handle = model.get_submodule(features.layer).register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
