"""Networks trained with parallel branches (RepVGG, MobileOne, FastViT, RepViT), with the branches of each block merged.

Branches are for training: convolutions side by side, their sum normalized or not, are one convolution in inference
(Ding et al. 2021, RepVGG, https://arxiv.org/abs/2101.03697). timm's modules, and whoever follows its convention, do it
themselves by a method ``fuse``, ``reparameterize`` or ``switch_to_deploy``; here it is asked for, held against what the
network answered before, and remembered, so that a quantized network is rebuilt alike.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeopt.errors import ModelError

_METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # timm.utils.reparameterize_model asks in this order
_MERGED = "edgeopt_merged"
_TOLERANCE = 1e-4  # of the largest answer: the sum of four branches in another order is about 1e-6 away
_aten = torch.ops.aten
_COUNTED = frozenset({_aten.convolution, _aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm, _aten.add, _aten.add_})
#: How blocks call what their convolutions call so, which pruning cuts without telling them.
_WIDTHS = {
    ("in_chs", "in_channels", "dim"): "in_channels",
    ("out_chs", "out_channels", "dim_out"): "out_channels",
    ("groups",): "groups",
}
_GATES = frozenset({"se", "attn"})  # children with convolutions of their own, which are no branches


@dataclass(frozen=True)
class Merging:
    """``model`` as it is to be deployed; how many convolutions, products and sums a picture takes, and took.

    ``problem`` says why branches were kept, where they were for another reason than that there are none.
    """

    model: nn.Module
    before: int = 0
    after: int = 0
    problem: str = ""

    @property
    def said(self) -> str:
        """What to tell the user, without the network's name; empty where there is nothing to tell."""
        if self.problem:
            return f"its branches are not merged and run as they were trained: {self.problem}"
        if self.after == self.before:
            return ""
        return f"its branches are merged: {self.after} convolutions, products and sums instead of {self.before}"


def merge_branches(model: nn.Module, input_shape: tuple[int, int, int]) -> Merging:
    """A copy of the float ``model`` in eval mode with its branches merged, or ``model`` where it has none.

    ``input_shape`` is (C, H, W). The copy is taken only if it computes less and answers noise as ``model`` does, to a
    ten-thousandth of the largest logit; else ``problem`` says what was wrong, and ``model`` stays.
    """
    if is_merged(model) or not any(_method(module) for module in model.modules() if module is not model):
        return Merging(model)
    example = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(model).cpu()
    expected, before = _counted(plain, example)
    try:
        merge(plain)
        answers, after = _counted(plain, example)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the network's own code, timm's or the user's; said with its type
        return Merging(model, problem=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    if after >= before:  # of a convolution and its BatchNorm, which training wants apart and the export folds
        return Merging(model)
    largest = float(expected.abs().max())
    if largest == 0.0:
        return Merging(model, problem="it answers zero to everything, which tells nothing about what was merged")
    distance = float((answers - expected).abs().max()) / largest
    if not distance <= _TOLERANCE:
        return Merging(model, problem=f"merged by its own code, the network answers otherwise ({distance:.2%} off)")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return Merging(plain.to(device), before, after)


def merge(model: nn.Module) -> nn.Module:
    """``model`` with every block merged, in place and unchecked: for one that :func:`merge_branches` merged before.

    What the blocks' own code raises goes through; :func:`merged_again` says it in a line.
    """
    model.eval()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    _tell_widths(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # layers are made, and drawn, before they are filled
        _merge_children(model)
    for block in model.modules():
        vars(block).pop("id_tensor", None)  # timm's identity kernels, as large as the weights
    for name, parameter in model.named_parameters():  # blocks detach all that is left in them, gates too
        parameter.requires_grad_(name not in frozen)
    setattr(model, _MERGED, True)
    return model


def merged_again(model: nn.Module) -> nn.Module:
    """As :func:`merge`; raises ModelError where the network's own code fails: after cuts, or because it changed."""
    try:
        return merge(model)
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"the branches of this network cannot be merged: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]}",
            fix="compress without pruning; or, of an older run, make the variant again with --force",
        ) from error


def _merge_children(parent: nn.Module) -> None:
    """As timm.utils.reparameterize_model does, but of what is merely called so (a layer ``self.fuse``)."""
    for name, child in list(parent.named_children()):
        method = _method(child)
        made = child
        if method is not None:
            returned = method()
            if method.__name__ == "fuse":
                if not isinstance(returned, nn.Module):
                    raise TypeError(f"{type(child).__name__}.fuse() gives no module")
                made = returned
                setattr(parent, name, made)
        _merge_children(made)


def _method(module: nn.Module) -> Callable[[], Any] | None:
    """What merges the module: its class's method of one of the names, if it takes no arguments."""
    for name in _METHODS:
        if inspect.isfunction(getattr(type(module), name, None)):
            method: Callable[[], Any] = getattr(module, name)
            needed = [one for one in inspect.signature(method).parameters.values() if one.default is one.empty]
            if not needed:
                return method
    return None


def is_merged(model: nn.Module) -> bool:
    """Whether the branches of this very network were merged."""
    return bool(getattr(model, _MERGED, False))


def merged_names(model: nn.Module, merged: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """``names`` of modules of ``model`` as they are in ``merged``: of a branch, the block that it went into.

    What ``model`` does not know stays as it is; where it is merged itself, every name was of the network before.
    """
    known, there = dict(model.named_modules()), dict(merged.named_modules())
    return tuple(_nearest(name, there) if name in known or is_merged(model) else name for name in names)


def _nearest(name: str, there: dict[str, nn.Module]) -> str:
    parts = name.split(".")
    parents = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((parent for parent in parents if parent in there), name)


def _tell_widths(model: nn.Module) -> None:
    """Blocks make their one convolution as wide as they were made: tell those that were pruned how wide they are."""
    for block in model.modules():
        if _method(block) is None:
            continue
        branches = [child for name, child in block.named_children() if name not in _GATES]
        convolutions = [one for child in branches for one in child.modules() if isinstance(one, nn.Conv2d)]
        for names, attribute in _WIDTHS.items():
            there = [getattr(one, attribute) for one in convolutions]
            for name in names:
                if there and isinstance(vars(block).get(name), int) and getattr(block, name) not in there:
                    setattr(block, name, there[0])


def _counted(model: nn.Module, example: Tensor) -> tuple[Tensor, int]:
    """What the model answers, and by how many convolutions, products and sums."""
    counter = _Counter()
    with torch.no_grad(), counter:
        answers: Tensor = model.eval()(example)
    return answers, counter.count


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._overloadpacket in _COUNTED
        return func(*args, **(kwargs or {}))
