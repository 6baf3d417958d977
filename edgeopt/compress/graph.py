"""How channels depend on each other: torch-pruning's dependency graph of a model, or a clear refusal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import ModelError
from edgeopt.models.modes import hooked

#: A group has this many acts at most for each tie between two layers: EdgeNeXt's has 0.8, most have 0.1.
_MOST = 8
_FAILED = "edgeopt_failed"  # of a graph: its reshapes and concatenations that could not be understood
_SPLITS = "edgeopt_splits"  # and its splits: which part goes where is not in the graph
_AXES = 4  # of a batch of maps
_LAST = 2**64 - 1  # an axis counted from the end is negative, and read as unsigned
UNFOLLOWED = "the way its channels take through reshapes or slices cannot be followed"
_SEARCHES = 64  # that fail, of a few tenths of a second each; MaxViT has 7, ReXNet 1
#: Ends of a search: ours, channels beyond what a split has, and torch-pruning's division by a split's zero (GCViT).
_ASTRAY = (ModelError, LookupError, ArithmeticError)
_ROOTS = (nn.Linear, nn.modules.conv._ConvNd)
_LONGEST = 64  # times the widest layer: a flattening's list is as long as the inputs of the layer after it


@contextmanager
def quiet() -> Iterator[None]:
    """torch-pruning warns of parameters outside layers; they are handled, and the result is run before it is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        yield


def trace(model: nn.Module, example: Tensor) -> Any:
    """torch-pruning's dependency graph; raises ModelError naming the module that could not be run or followed."""
    import torch_pruning as tp

    running: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: running.append(name))
        for name, module in model.named_modules()
    ]
    handles.append(model.register_forward_hook(lambda *_: running.clear()))
    requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        # The graph is read off autograd's, so every parameter must take part.
        model.requires_grad_(True)
        with hooked(handles), torch.enable_grad(), quiet(), _mappings_that_fail() as failed:
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
            splits = _splits(graph)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError) as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        # Once the model has run through, it is the way channels take through its reshapes that is not understood.
        where = f"at {running[-1] or type(model).__name__}" if running else f"through {type(model).__name__}"
        raise ModelError(
            f"prune: the model cannot be traced {where}: {line}",
            fix="leave out --prune (--int8 alone may do), or write that part of forward with plain torch layers",
        ) from error
    finally:
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)
    if not any(is_layer(module) for module in graph.module2node):
        raise ModelError(
            f"prune: the model cannot be traced through {type(model).__name__}: no layer is tied to its output",
            fix="the forward pass must be plain differentiable torch, without detach() or no_grad()",
        )
    setattr(graph, _FAILED, {node.module for node in failed})
    setattr(graph, _SPLITS, splits)
    return graph


def _splits(graph: Any) -> set[Any]:
    """The splits of the network, those of tokens (N, tokens, C) and of maps (N, H, W, C) mapped where they were not.

    torch-pruning takes the parts in the order in which it comes upon them, which is a guess.
    """
    from torch_pruning.dependency.index_mapping import _SplitIndexMapping
    from torch_pruning.ops import OPTYPE

    found = [one for one in graph.module2node.values() if one.type == OPTYPE.SPLIT]
    for node in found:
        sizes, offsets = tuple(getattr(node.grad_fn, "_saved_self_sym_sizes", ())), node.module.offsets or [0]
        ties = [*node.dependencies, *(dep for one in node.outputs for dep in one.dependencies if dep.target is node)]
        last = len(sizes) > 2 and getattr(node.grad_fn, "_saved_dim", 0) in (len(sizes) - 1, _LAST)
        if not last or offsets[-1] != sizes[-1] or sizes[-1] == sizes[1] or len(offsets) != len(node.outputs) + 1:
            continue
        if any(dep.index_mapping[0] is not None for dep in ties):
            continue
        for index, output in enumerate(node.outputs):
            for dep in ties:
                if output in (dep.target, dep.source) and dep.index_mapping[0] is None:
                    part = offsets[index : index + 2]
                    dep.index_mapping[0] = _SplitIndexMapping(offset=part, reverse=dep.target is node)
    return {node.module for node in found}


@contextmanager
def _mappings_that_fail() -> Iterator[list[Any]]:
    """Within, nodes at which torch-pruning's own arithmetic fails are noted instead, and left without a mapping.

    It divides by zero at a reshape (ShuffleNetV2's shuffle), and adds up channels it does not know at a concatenation
    (of slices of the picture: the focus of CSPDarknet).
    """
    from torch_pruning.dependency import index_mapping

    failed: list[Any] = []
    fragile = {"update_reshape_index_mapping": ZeroDivisionError, "update_concat_index_mapping": TypeError}
    originals = {name: getattr(index_mapping, name) for name in fragile}

    def tried(name: str) -> Callable[[Any, Any], None]:
        def update(graph: Any, node: Any) -> None:
            try:
                originals[name](graph, node)
            except fragile[name]:
                failed.append(node)

        return update

    for name in fragile:
        setattr(index_mapping, name, tried(name))
    try:
        yield failed
    finally:
        for name, original in originals.items():
            setattr(index_mapping, name, original)


def groups_of(graph: Any, reached: set[nn.Module]) -> tuple[list[tuple[Any, bool]], set[nn.Module]]:
    """torch-pruning's groups of coupled layers, each with whether it can be trusted, and the layers that are in none.

    Where the way of channels is lost in one part (channels shuffled between branches, windows of a picture moved into
    the batch), no group whose channels are rearranged at all is trusted: what is there may be wrong as well. One that
    goes through a split never is. ``reached`` is what :func:`bounded` gives, within which it is to be called. Raises
    ModelError where not even the rest can be followed.
    """
    try:
        groups, lost = list(graph.get_all_groups()), set[nn.Module]()
    except _ASTRAY:
        lost = _lost(graph, reached)
        try:
            groups = list(graph.get_all_groups(ignored_layers=list(lost)))
        except (LookupError, ArithmeticError):
            raise _unfollowed("splits") from None
    sound = [_is_sound(graph, group) for group in groups]
    followed = not lost and not getattr(graph, _FAILED) and all(sound)
    return [
        (group, right and not _is_split(graph, group) and (followed or not _is_rearranged(graph, group)))
        for group, right in zip(groups, sound, strict=True)
    ], lost


def _is_split(graph: Any, group: Any) -> bool:
    return any(dep.target.module in getattr(graph, _SPLITS) for dep, _ in group)


def _is_rearranged(graph: Any, group: Any) -> bool:
    return any(_rearranges(graph, dep.target) for dep, _ in group)


def _is_sound(graph: Any, group: Any) -> bool:
    """Whether the channels it cuts are those of the layers it cuts them from."""
    for dep, channels in group:
        module = dep.target.module
        if is_layer(module):
            outputs = graph.is_out_channel_pruning_fn(dep.handler)
            if max(channels) >= (graph.get_out_channels(module) if outputs else graph.get_in_channels(module)):
                return False
    return True


def _lost(graph: Any, reached: set[nn.Module]) -> set[nn.Module]:
    """Layers from which torch-pruning's search comes to no end; ModelError where too many searches do not."""
    lost: set[nn.Module] = set()
    failed = 0
    for module in [one for one in graph.module2node if isinstance(one, _ROOTS)]:
        if module in lost:
            continue
        prune_outputs = graph.get_pruner_of_module(module).prune_out_channels
        reached.clear()
        try:
            graph.get_pruning_group(module, prune_outputs, list(range(graph.get_out_channels(module))))
        except _ASTRAY:
            lost |= {module, *reached}
            failed += 1
            if failed > _SEARCHES:
                raise _unfollowed("reshapes and slices") from None
    return lost


def _rearranges(graph: Any, node: Any) -> bool:
    """Whether channels may come out of a node of the graph in other places than they went in."""
    from torch_pruning.ops import OPTYPE

    if node.module in getattr(graph, _FAILED):
        return True
    if node.type == OPTYPE.RESHAPE:
        # Channels that were taken apart (five axes or more) have changed places before they are put together again.
        taken_apart = len(getattr(node.grad_fn, "_saved_self_sizes", ())) > _AXES
        mapped = any(mapping is not None for dep in node.dependencies for mapping in dep.index_mapping)
        return taken_apart or mapped
    return node.type in (OPTYPE.SLICE, OPTYPE.SPLIT, OPTYPE.UNBIND, OPTYPE.EXPAND)


@contextmanager
def bounded(graph: Any) -> Iterator[set[nn.Module]]:
    """Within, torch-pruning's search for coupled channels ends: what no layer could mean raises ModelError.

    Gives the set of layers that a search had reached when it was given up.

    Where windows of a picture are reshaped into the batch (MaxViT, CoAtNet), it takes every reshape for a flattening
    and multiplies the channels by it again and again, until memory is full. Where a block adds its input to the first
    of its channels (ReXNet), every slice shifts them again, and it comes to no end.
    """
    from torch_pruning.dependency.group import Group
    from torch_pruning.dependency.index_mapping import _FlattenIndexMapping as Flatten

    layers = [module for module in graph.module2node if is_layer(module)]
    inputs = (int(getattr(module, "in_features", getattr(module, "in_channels", 0))) for module in layers)
    longest = _LONGEST * max(*map(outputs_of, layers), *inputs)
    most = _MOST * sum(len(node.dependencies) for node in graph.module2node.values())
    reached: set[nn.Module] = set()
    current: list[Any] = []  # the group that is being searched
    work = [0]

    def given_up(way: str, *groups: Any) -> ModelError:
        reached.update(one.target.module for group in groups for one, _ in group.items)
        reached.intersection_update(layers)
        return _unfollowed(way)

    flatten, add_dep = Flatten.__call__, Group.add_dep

    def call(self: Any, channels: Any) -> Any:
        if not self.reverse and len(channels) * int(self._stride) > longest:
            raise given_up("reshapes", *current)
        return flatten(self, channels)

    def add(self: Any, dep: Any, idxs: Any) -> None:
        if len(self) > most:
            raise given_up("slices", self)
        # Each act looks through all before it, so that their number alone bounds no time.
        work[0] = work[0] + len(idxs) if len(self) else len(idxs)
        if work[0] > most // _MOST * longest // _LONGEST:  # the most of known networks is 0.12 of it, VGG-16's
            raise given_up("reshapes and slices", self)
        current[:] = [self]
        add_dep(self, dep, idxs)

    Flatten.__call__, Group.add_dep = call, add
    try:
        with _mappings_that_fail():
            yield reached
    finally:
        Flatten.__call__, Group.add_dep = flatten, add_dep


def _unfollowed(way: str) -> ModelError:
    return ModelError(
        f"prune: the way channels take through the model's {way} cannot be followed",
        fix="leave out --prune (--int8 alone may do)",
    )


def is_layer(module: Any) -> bool:
    """Whether the module has weights that channels are cut from."""
    return isinstance(module, (nn.Linear, nn.Conv2d))


def outputs_of(module: nn.Module) -> int:
    """How many channels or features a layer gives."""
    return int(getattr(module, "out_features", getattr(module, "out_channels", 0)))
