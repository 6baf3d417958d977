"""Int8 engines' ONNX of networks that were not trained: the whole network's file, with its weights cut to size."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.compress.depth import DROP
from edgeopt.compress.nncf_placement import hook_storage
from edgeopt.compress.prune import History, replay
from edgeopt.compress.quantize import quantizer_config
from edgeopt.compress.quantizers import Quantizer, quantizer_from_config
from edgeopt.export.qdq import export_qdq
from edgeopt.models.branches import is_merged, merged_again
from edgeopt.models.modes import hooked
from edgeopt.schemes import Scheme

#: Between a layer and its weight in the file.
_BETWEEN = frozenset({"DequantizeLinear", "Transpose"})


@dataclass(frozen=True)
class Slicer:
    """A float model and the same quantized, whose placement and ranges every slice takes over.

    How long an engine takes depends on its shapes and on what runs in int8, not on what its weights are: so the file
    of the whole network is exported once, and a slice is that file with shorter weights (milliseconds instead of the
    exporter's ten seconds). Where a graph holds widths elsewhere too, the slice itself is exported.
    """

    model: nn.Module
    quantized: nn.Module
    scheme: Scheme
    folder: Path  # where the whole network's file is kept
    input_shape: tuple[int, int, int]
    _exported: list[str] = field(default_factory=list)  # slices that had to be exported

    def whole_file(self) -> Path:
        """The whole network's file."""
        path = self.folder / "whole.onnx"
        if not path.is_file():
            export_qdq(self.quantized, path, input_shape=self.input_shape, scheme=self.scheme)
        return path

    @cached_property
    def _whole(self) -> Any:
        import onnx

        return onnx.load(str(self.whole_file()))

    @cached_property
    def _deployed(self) -> nn.Module:
        """The float model with the layers that the whole network's file has."""
        return merged_again(copy.deepcopy(self.model).cpu()) if is_merged(self.quantized) else self.model

    def write(self, history: History, path: Path, input_shape: tuple[int, int, int] | None = None) -> None:
        """The QDQ ONNX of the model with the cuts of ``history``, for pictures of ``input_shape`` (C, H, W)."""
        import onnx

        shape = input_shape or self.input_shape
        example = torch.zeros(1, *shape)
        sliced = copy.deepcopy(self.model).cpu().eval()
        if history:
            replay(sliced, history, example=example)
        if is_merged(self.quantized):
            sliced = merged_again(sliced)
        graph = None
        if not any(act[1] == DROP for act in history):  # without a block there are other nodes, not other widths
            with suppress(onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
                graph = resliced(self._whole, self._deployed, sliced, shape)
        # "Same" padding is of the exported input's size, and another needs more or less.
        if graph is not None and (input_shape is None or _as_large(graph, sliced, example)):
            onnx.save(graph, str(path))
        else:
            self._exported.append(path.stem)
            quantized = quantized_like(sliced, self.quantized, example)
            export_qdq(quantized, path, input_shape=shape, scheme=self.scheme)


def resliced(whole: Any, model: nn.Module, sliced: nn.Module, input_shape: tuple[int, int, int]) -> Any:
    """``whole``, an ONNX ModelProto of ``model``, with the weights' shapes of ``sliced`` and for other pictures.

    Raises onnx's InferenceError when the shapes do not fit each other then.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.ModelProto()
    graph.CopyFrom(whole)
    del graph.graph.value_info[:]
    for dimension, size in zip(graph.graph.input[0].type.tensor_type.shape.dim[1:], input_shape, strict=True):
        dimension.dim_value = size
    before, after = dict(model.named_parameters()), dict(sliced.named_parameters())
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    makers = {output: node for node in graph.graph.node for output in node.output}
    wanted = {name: tuple(after[name].shape) for name in tensors.keys() & after.keys()}
    for node in graph.graph.node:
        weight = f"{node.name}.weight"
        if weight in before and len(node.input) > 1:
            shapes = tuple(before[weight].shape), tuple(after[weight].shape)
            for source in node.input[1:3]:
                wanted |= {name: _cut(tensors[name].dims, *shapes) for name in _initializers(source, makers, tensors)}
            _set_groups(node, sliced.get_submodule(node.name))
        if node.op_type == "Reshape" and node.input[1] in tensors and tuple(tensors[node.input[1]].dims) == (2,):
            # To (pictures, features), which states the number of features: Flatten finds it.
            node.op_type = "Flatten"
            del node.input[1], node.attribute[:]
    for name, shape in wanted.items():
        if tuple(tensors[name].dims) != shape:
            array = numpy_helper.to_array(tensors[name])[tuple(slice(size) for size in shape)]
            tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
    onnx.checker.check_model(graph)
    return onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)


def _as_large(graph: Any, model: nn.Module, example: Tensor) -> bool:
    """Whether the convolutions' outputs in ``graph``, its shapes inferred, are as high and wide as the model's."""
    import onnx

    stated = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim[2:]]
        for value in (*graph.graph.value_info, *graph.graph.input)
    }
    sizes: dict[str, list[int]] = {}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            told = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            sizes[node.name] = _slid(stated[node.input[0]], told)
    found: dict[str, list[int]] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: found.update({name: list(output.shape[2:])}))
        for name, module in model.named_modules()
        if name in sizes
    ]
    with hooked(handles), torch.no_grad():
        model(example)
    return found == sizes


def _slid(size: Sequence[int], told: dict[str, Any]) -> list[int]:
    """Height and width of a convolution's output; onnx's own inference gives 1 where a kernel does not fit."""
    kernel = told["kernel_shape"]
    pads = told.get("pads", [0] * 4)
    strides, dilations = (told.get(name, [1, 1]) for name in ("strides", "dilations"))
    return [(size[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(2)]


def _initializers(value: str, makers: dict[str, Any], tensors: dict[str, Any]) -> Iterator[str]:
    """The constants that a layer's weight or bias is made of."""
    if value in tensors:
        yield value
    elif value in makers and makers[value].op_type in _BETWEEN:
        for source in makers[value].input:
            yield from _initializers(source, makers, tensors)


def _cut(dims: Any, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a constant of a layer whose weight's shape goes from ``before`` to ``after``."""
    dims = tuple(dims)
    if dims == before:
        return after
    if dims == before[::-1]:
        return after[::-1]
    return (after[0],) if dims == (before[0],) else dims


def _set_groups(node: Any, layer: nn.Module) -> None:
    for attribute in node.attribute:
        if attribute.name == "group" and isinstance(layer, nn.Conv2d):
            attribute.i = layer.groups


def quantized_like(model: nn.Module, whole: nn.Module, example: Tensor) -> nn.Module:
    """``model`` (float, changed in place) with quantizers where ``whole`` has them and with its activations' ranges.

    Weights' scales come from their own largest values in each channel. ``example`` is (1, C, H, W).
    """
    ranges = {name: hook for name, hook in hook_storage(whole).named_hooks() if isinstance(hook, Quantizer)}
    storage, placed = hook_storage(model), []
    for entry in quantizer_config(whole)["quantizers"]:
        quantizer = quantizer_from_config(entry)
        if quantizer.per_channel:
            placed.append(quantizer.register_forward_pre_hook(_fit_to_weight))
        else:
            theirs = next(ranges[name] for name in entry["hooks"] if name in ranges)
            quantizer.log_scale.data.copy_(theirs.log_scale.detach())
        for name in entry["hooks"]:
            storage.insert_hook_by_name(name, quantizer)
    with hooked(placed), torch.no_grad():
        model.eval()(example)
    return model


def _fit_to_weight(quantizer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """One scale for each channel that is left, the largest value the outermost code."""
    assert isinstance(quantizer, Quantizer)
    weight: Tensor = inputs[0].detach()
    shape = quantizer.log_scale.shape
    axis = max(range(len(shape)), key=lambda one: shape[one])
    largest = weight.abs().amax(dim=[one for one in range(weight.dim()) if one != axis], keepdim=True)
    quantizer.log_scale = Quantizer(largest / quantizer.high, low=quantizer.low, high=quantizer.high).log_scale
