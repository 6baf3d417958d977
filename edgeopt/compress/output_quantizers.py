"""Quantizers that NNCF leaves out and ONNX Runtime needs: its int8 convolutions and pools have int8 outputs only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.compress.quantizers import Quantizer, activation_quantizer
from edgeopt.models.modes import hooked
from edgeopt.schemes import Scheme

_POOLS = frozenset({"mean", "adaptive_avg_pool2d"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_CONCATENATIONS, _SLICE = frozenset({"cat", "concat", "concatenate"}), "__getitem__"
# What the lowering folds into the convolution, so that the quantizer still stands right behind it. One before a ReLU6
# would make two in a row, which ONNX Runtime merges into a scale that the next layer's bias was not made for.
_ABSORBED = frozenset({"batch_norm", "relu", "relu_", "relu6", "hardtanh", "hardtanh_"})
# Below this the activation gives exactly zero, and codes spent there would be wasted.
_ZERO_BELOW = {"hardswish": -3.0, "hardswish_": -3.0}


def close_convolutions(model: nn.Module, storage: Any, graph: Any, batches: Sequence[Tensor], scheme: Scheme) -> None:
    """Add a quantizer to ``model`` (in place) behind every int8 convolution, and pool of int8 maps, that stays open.

    They are convolutions before a HardSwish, SiLU, GELU or LayerNorm, those that a residual addition reads in float
    too, and the pools of squeeze-and-excitation, for which whole maps would be made float and laid out anew; and
    concatenations of maps on several grids, which a convolution behind them would read in float (GhostNet's depthwise
    ones, for which NNCF does not make the grids one).
    ``graph`` is NNCF's graph of the float model, ``storage`` the hook storage of the quantized one; ranges are the
    smallest and largest values over ``batches``.
    """
    _close_for_every_reader(graph, storage)
    places = {**_open_places(graph, storage), **dict.fromkeys(_open_pools(graph, storage))}
    places |= dict.fromkeys(_open_concatenations(graph, storage))
    recorders = {name: _Recorder() for name in places}
    handles = [storage.register_post_function_hook(name, 0, recorder) for name, recorder in recorders.items()]
    with hooked(handles), torch.no_grad():
        for batch in batches if places else ():
            model(batch)
    for name, recorder in recorders.items():
        storage.register_post_function_hook(name, 0, recorder.quantizer(places[name], scheme))


class _Recorder(nn.Module):
    """Passes a tensor on and keeps its smallest and largest value."""

    def __init__(self) -> None:
        super().__init__()
        self.low = 0.0
        self.high = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.low, self.high = min(self.low, x.min().item()), max(self.high, x.max().item())
        return x

    def quantizer(self, zero_below: float | None, scheme: Scheme) -> Quantizer:
        """The quantizer of what was seen; values under ``zero_below`` need no codes."""
        return activation_quantizer(
            self.low if zero_below is None else max(self.low, zero_below),
            self.high,
            signed=scheme.activation_signed,
            symmetric=scheme.activation_symmetric,
            centred=scheme.activation_centred,
        )


def _open_places(graph: Any, storage: Any) -> dict[str, float | None]:
    """Operations (``blocks/0/bn1/batch_norm/0``) that need a quantizer behind them -> the end of useful values."""
    places: dict[str, float | None] = {}
    for last in _ends_of_convolutions(graph, storage):
        if ports := _open_ports(graph, storage, last):
            places[last.node_name] = _ZERO_BELOW.get(ports[0][0].node_type) if len(ports) == 1 else None
    return places


def _open_pools(graph: Any, storage: Any) -> Iterator[str]:
    """Pools over whole maps that are quantized themselves, read by what takes float."""
    for node in graph.get_all_nodes():
        if node.node_type not in _POOLS or not _open_ports(graph, storage, node):
            continue
        (source, *_) = graph.get_previous_nodes(node) or [None]
        if source is not None and (_has(storage.pre_hooks, node, 0) or _has(storage.post_hooks, source, 0)):
            yield node.node_name


def _open_concatenations(graph: Any, storage: Any) -> Iterator[str]:
    """Ends of concatenations of maps with quantizers of their own, read by a convolution with int8 weights."""
    hooks = dict(storage.named_hooks(remove_duplicate=False))
    for node in graph.get_all_nodes():
        if node.node_type not in _CONCATENATIONS:
            continue
        last, following = node, graph.get_next_nodes(node)
        while len(following) == 1 and following[0].node_type == _SLICE and _open_ports(graph, storage, last):
            last, following = following[0], graph.get_next_nodes(following[0])
        ports = _open_ports(graph, storage, last)
        grids = [hooks.get(f"post_hooks.{_key(source, 0)}.0") for source in graph.get_previous_nodes(node)]
        read = any(reader.node_type in _CONVOLUTIONS and _has(storage.pre_hooks, reader, 1) for reader, _ in ports)
        if read and None not in grids and len(set(grids)) > 1:
            yield last.node_name


def _open_ports(graph: Any, storage: Any, node: Any) -> list[tuple[Any, int]]:
    """Who reads ``node``, and at which input, where nothing quantizes it; none where the network ends with it."""
    ports = [(edge.to_node, edge.input_port_id) for edge in graph.get_output_edges(node)]
    closed = _has(storage.post_hooks, node, 0) or any(_has(storage.pre_hooks, *port) for port in ports)
    outer = any(reader.node_type == "nncf_model_output" for reader, _ in ports)
    return [] if closed or outer else ports


def _close_for_every_reader(graph: Any, storage: Any) -> None:
    """Move quantizers that one of several readers has behind the convolution: a residual addition read it in float."""
    hooks = dict(storage.named_hooks(remove_duplicate=False))
    for last in _ends_of_convolutions(graph, storage):
        ports = [(edge.to_node, edge.input_port_id) for edge in graph.get_output_edges(last)]
        quantized = [_key(*port) for port in ports if _has(storage.pre_hooks, *port)]
        outer = any(reader.node_type == "nncf_model_output" for reader, _ in ports)
        if outer or _has(storage.post_hooks, last, 0) or not 0 < len(quantized) < len(ports):
            continue
        storage.register_post_function_hook(last.node_name, 0, hooks[f"pre_hooks.{quantized[0]}.0"])
        for key in quantized:
            storage.delete_hook(f"pre_hooks.{key}.0")


def _ends_of_convolutions(graph: Any, storage: Any) -> Iterator[Any]:
    """The last operation that the lowering folds into each convolution with int8 weights: itself, or its activation."""
    for node in graph.get_all_nodes():
        if node.node_type not in _CONVOLUTIONS or not _has(storage.pre_hooks, node, 1):
            continue
        last, following = node, graph.get_next_nodes(node)
        while len(following) == 1 and following[0].node_type in _ABSORBED and not _has(storage.post_hooks, last, 0):
            last, following = following[0], graph.get_next_nodes(following[0])
        yield last


def _has(hooks: nn.ModuleDict, node: Any, port: int) -> bool:
    return _key(node, port) in hooks


def _key(node: Any, port: int) -> str:
    return f"{node.node_name.replace('.', ':')}__{port}"
