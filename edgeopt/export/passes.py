"""What ONNX passes are made of: requires -> call -> ensures, in order, with errors that name what was already done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import REPORT, LoweringError

COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_UNKNOWN_GRAPH = f"this edgeopt does not know such a graph: name the model, and {REPORT}"


def _holds(model: ir.Model) -> str | None:
    """The condition that is always met."""
    return None


@dataclass(frozen=True)
class GraphPass:
    """One rewriting of a graph, in place. ``requires`` and ``ensures`` return what is wrong, or None."""

    name: str
    call: Callable[[ir.Model], None]
    requires: Callable[[ir.Model], str | None] = _holds
    ensures: Callable[[ir.Model], str | None] = _holds


def run_passes(model: ir.Model, passes: Sequence[GraphPass]) -> None:
    """Run the passes in order; raises LoweringError when a condition fails."""
    done: list[str] = []
    for graph_pass in passes:
        after = f"after {', '.join(done)}" if done else "at the start"
        if problem := graph_pass.requires(model):
            raise LoweringError(f"pass {graph_pass.name} cannot run {after}: {problem}", fix=_UNKNOWN_GRAPH)
        graph_pass.call(model)
        if problem := graph_pass.ensures(model):
            raise LoweringError(f"pass {graph_pass.name} ({after}) did not do its work: {problem}", fix=_UNKNOWN_GRAPH)
        done.append(graph_pass.name)


def absent(*op_types: str) -> Callable[[ir.Model], str | None]:
    """The condition that no node of these types is left."""

    def check(model: ir.Model) -> str | None:
        left = next((node for node in model.graph if node.op_type in op_types), None)
        return f"{left.op_type} {left.name} is left" if left is not None else None

    return check


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array that ``value`` always is, or None when it is computed or missing."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def known(value: ir.Value | None) -> NDArray[Any]:
    """Like ``constant`` for a value that must be known; raises LoweringError otherwise."""
    array = constant(value)
    if array is None:
        raise LoweringError(
            f"{value.name if value is not None else 'a missing input'} is not a constant",
            fix="keep weights and BatchNorm's statistics as parameters and buffers, not computed in forward",
        )
    return array


def initializer(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer; ``name`` gets a number appended when it is taken."""
    taken = model.graph.initializers
    unique, number = name, 1
    while unique in taken:
        unique, number = f"{name}.{number}", number + 1
    value = ir.Value(name=unique, const_value=ir.tensor(array, name=unique))
    value.shape = ir.Shape(array.shape)
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    taken[unique] = value
    return value


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read ``value``, each once; a graph output is nobody's input."""
    return list({id(use.node): use.node for use in value.uses()}.values())


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, None when there are several or the graph gives it out."""
    readers = consumers(value)
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def replace(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    """Remove a node with one output; everything reads ``value`` instead."""
    output = node.outputs[0]
    if output.is_graph_output():
        name = output.name
        output.name = f"{name}.replaced"
        value.name = name
        value.shape, value.type = output.shape, output.type
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def insert_after(
    anchor: ir.Node, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, int] | None = None, *, name: str
) -> ir.Node:
    """A new node with one output behind ``anchor``, its output named after it and shaped like its first input."""
    node = ir.node(op_type, list(inputs), attributes or {}, name=name)
    node.outputs[0].name = f"{name}.output"
    node.outputs[0].shape = inputs[0].shape
    # QuantizeLinear gives the type of its zero point; everything else inserted here gives float32.
    node.outputs[0].type = inputs[2].type if op_type == "QuantizeLinear" else ir.TensorType(ir.DataType.FLOAT)
    anchor.append(node)
    return node
