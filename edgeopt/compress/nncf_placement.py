"""The only module that touches NNCF: where quantizers go, their first ranges, corrected biases, the hook storage."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt import telemetry
from edgeopt.compress.output_quantizers import close_convolutions
from edgeopt.compress.quantizers import Quantizer, activation_quantizer, weight_quantizer
from edgeopt.errors import ModelError
from edgeopt.models.failing import failing_module
from edgeopt.models.modes import hooked
from edgeopt.schemes import Scheme

telemetry.switch_off()  # every import of NNCF comes after this module's

HOOKS = "__nncf_hooks"  # where NNCF keeps its hook modules, and so a prefix in the state dict
_SOURCES = ("nncf_model_input", "conv", "linear", "matmul", "bmm", "batch_norm", "layer_norm", "group_norm")
_DIVISIONS = frozenset({"div", "div_", "__truediv__", "__itruediv__"})
RANGE_ESTIMATORS = {"minmax": "MINMAX", "percentile": "MEAN_QUANTILE", "histogram": "HISTOGRAM"}


def hook_storage(model: nn.Module) -> Any:
    """The storage of the model's hooks; the model is wrapped (in place) when it has none yet."""
    check_wrappable(model)
    import_nncf()
    from nncf.torch.function_hook import get_hook_storage, wrap_model

    return get_hook_storage(wrap_model(model))


def check_wrappable(model: nn.Module) -> None:
    """Raises ModelError for containers that would run the hook storage as one of their layers."""
    if isinstance(model, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise ModelError(
            f"a bare {type(model).__name__} cannot be quantized",
            fix="make it an attribute of a module with a forward method",
        )


def import_nncf() -> Any:
    """NNCF with its C++ kernels never compiled: the user's machine may have no compiler."""
    # It imports torch's extension builder, which warns of a missing GPU that nobody asked for.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import nncf
    from nncf.torch.quantization import extensions
    from nncf.torch.quantization.reference import ReferenceBackendType, ReferenceQuantize

    # Only bias correction runs NNCF's quantizers here, once per layer, so plain torch operations are fast enough.
    # NNCF's own fallback (used after a failed compilation) goes through torch.compile, which wants a compiler again.
    reference = ReferenceQuantize(ReferenceBackendType.TORCH)
    kernels = SimpleNamespace(Quantize_forward=reference.forward, Quantize_backward=reference.backward)
    extensions.QuantizedFunctionsCPU._loaded_namespace = kernels
    _allow_computed_biases(nncf)
    return nncf


def _allow_computed_biases(nncf: Any) -> None:
    """Has NNCF follow biases put together from parameters, at which it fails (BEiT, EVA); they are not corrected."""
    from nncf.quantization.algorithms.fast_bias_correction import torch_backend
    from nncf.torch.function_hook.graph.build_graph_mode import GraphBuilderMode

    note, has_bias = GraphBuilderMode.register_op_input_tensor, torch_backend.is_node_with_fused_bias
    if note.__module__ == __name__:
        return

    def register_op_input_tensor(self: Any, tensor: Tensor, *arguments: Any) -> None:
        info = self.tensor_info.get(tensor)
        if info is not None and info.source_node_id is None:  # read in a tuple, which NNCF does not look into
            self.execute_hooks_for_parameter(tensor)
        note(self, tensor, *arguments)

    def is_node_with_fused_bias(node: Any, graph: Any) -> bool:
        try:
            return bool(has_bias(node, graph))
        except nncf.InternalError:  # its bias is no constant
            return False

    GraphBuilderMode.register_op_input_tensor = register_op_input_tensor
    torch_backend.is_node_with_fused_bias = is_node_with_fused_bias


def place_quantizers(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    scheme: Scheme,
    range_estimator: str,
    ignored: Sequence[str],
    int8_outputs: bool,
    progress: Callable[[int, int], None] | None,
) -> nn.Module:
    """A copy of ``model`` (float, eval, on the CPU) with corrected biases and our quantizers where NNCF wants some."""
    nncf = import_nncf()
    from nncf.quantization import advanced_parameters as advanced
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph

    quantized: nn.Module
    with _quiet(), _named(model):
        graph = build_nncf_graph(model, batches[0][:1])
        in_float = [*_operations(graph, ignored), *_divisions(graph)]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(_Counted(batches, progress)),
            preset=nncf.QuantizationPreset.PERFORMANCE
            if scheme.activation_symmetric
            else nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if _has_attention(model) else None,
            ignored_scope=nncf.IgnoredScope(names=in_float) if in_float else None,
            advanced_parameters=advanced.AdvancedQuantizationParameters(
                # NNCF's default, per channel on depthwise inputs, keeps the runtimes from fusing those convolutions.
                activations_quantization_params=advanced.QuantizationParameters(per_channel=False),
                # ENABLE halves the range of every weight: the biases are then corrected for 7-bit weights.
                overflow_fix=advanced.OverflowFix.DISABLE if scheme.weight_bits == 8 else advanced.OverflowFix.ENABLE,
                # SmoothQuant would leave multiplications of its own in the graph.
                smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                activations_range_estimator_params=getattr(
                    RangeEstimatorParametersSet, RANGE_ESTIMATORS[range_estimator]
                ),
            ),
        )
    _swap(quantized, scheme, _largest_weights(quantized, batches[0][:1]))
    if int8_outputs:
        close_convolutions(quantized, hook_storage(quantized), graph, batches, scheme)
    return quantized


class _Counted:
    """Batches that report each one that is read (NNCF reads them once, for ranges and biases together)."""

    def __init__(self, batches: Sequence[Tensor], progress: Callable[[int, int], None] | None) -> None:
        self.batches = batches
        self.progress = progress

    def __iter__(self) -> Iterator[Tensor]:
        for done, batch in enumerate(self.batches, 1):
            # Before the yield: NNCF stops asking once it has them all.
            if self.progress is not None:
                self.progress(done, len(self.batches))
            yield batch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps NNCF's progress bars and notes off stdout, which belongs to ``--json``."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _named(model: nn.Module) -> Iterator[None]:
    """What NNCF cannot follow is said with the module it happened in."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = failing_module(error, model)
        raise ModelError(
            f"the model cannot be quantized{f' at {where}' if where else ''}: {line}",
            fix=f"write the forward method of {where or 'the model'} with plain torch operations on its input",
        ) from error


def _largest_weights(model: nn.Module, example: Tensor) -> dict[nn.Module, Tensor]:
    """The largest magnitude of each channel of what each NNCF weight quantizer sees, shaped like its scale.

    Measured, because the ranges that NNCF gives 7-bit weights are twice too wide for some layers.
    """
    largest: dict[nn.Module, Tensor] = {}

    def note(quantizer: Any, inputs: tuple[Tensor, ...]) -> None:
        shape: tuple[int, ...] = quantizer.scale_shape
        axes = [axis for axis, size in enumerate(shape) if size == 1]
        largest[quantizer] = inputs[0].detach().abs().amax(dim=axes, keepdim=True)

    weights = [hook for _, hook in hook_storage(model).named_hooks() if hook.narrow_range]
    handles = [quantizer.register_forward_pre_hook(note) for quantizer in weights]
    with hooked(handles), torch.no_grad():
        model(example)
    return largest


def _swap(model: nn.Module, scheme: Scheme, largest_weights: dict[nn.Module, Tensor]) -> None:
    """Replace every NNCF quantizer by ours, one for one (a quantizer shared by several places stays shared)."""
    storage = hook_storage(model)
    swapped: dict[nn.Module, Quantizer | None] = {}
    for name, theirs in list(storage.named_hooks(remove_duplicate=False)):
        if theirs not in swapped:
            weight = largest_weights.get(theirs)
            if weight is not None:
                swapped[theirs] = weight_quantizer(weight, largest=scheme.weight_max)
            else:
                swapped[theirs] = _activation_quantizer(model, name, theirs, scheme)
        storage.delete_hook(name)
        ours = swapped[theirs]
        if ours is not None:
            storage.insert_hook_by_name(name, ours)


def _activation_quantizer(model: nn.Module, name: str, theirs: Any, scheme: Scheme) -> Quantizer | None:
    """Our quantizer with the range that NNCF found; None where no runtime has an int8 kernel."""
    operation = name.split(".")[1].rsplit("__", 1)[0].split("/")
    if operation[-2:-1] == ["layer_norm"] and name.startswith("pre_hooks"):
        return None  # the weight of a LayerNorm
    low, high = (value.detach() for value in theirs.get_input_low_input_high())
    if low.numel() != 1:
        raise ModelError(
            f"NNCF placed a per-channel activation quantizer at {name}",
            fix=f"leave that module in float: --ignore {'.'.join(operation[:-2]) or 'MODULE'}",
        )
    lower_end, upper_end = _ends(model, operation)
    return activation_quantizer(
        # NNCF widens very narrow ranges to both sides, also behind a ReLU; there zero must stay the lowest code.
        low.item() if lower_end is None else max(low.item(), lower_end),
        high.item(),
        signed=scheme.activation_signed,
        symmetric=scheme.activation_symmetric,
        centred=scheme.activation_centred,
        upper_end=upper_end,
    )


def _ends(model: nn.Module, operation: list[str]) -> tuple[float | None, float | None]:
    """Smallest and largest value that the operation ``[*module path, function, call]`` can give, where known."""
    function = operation[-2].rstrip("_") if len(operation) > 1 else ""
    if function == "relu":
        return 0.0, None
    if function == "relu6":
        return 0.0, 6.0
    if function == "hardtanh":
        module = model.get_submodule(".".join(operation[:-2]))
        if isinstance(module, nn.Hardtanh):  # nn.ReLU6 is one
            return float(module.min_val), float(module.max_val)
    return None, None


def _has_attention(model: nn.Module) -> bool:
    return any("attention" in type(module).__name__.lower() for module in model.modules())


def _operations(graph: Any, modules: Sequence[str]) -> list[str]:
    """The operations of ``modules`` and all within, by NNCF's names (``blocks/0/conv/conv2d/0``).

    Those of a module that a ModuleList holds carry the parent's name, and are told by the parameters they read.
    """
    found: dict[str, None] = {}
    for node in graph.get_all_nodes():
        if any(node.node_name.startswith(f"{name.replace('.', '/')}/") for name in modules):
            found[node.node_name] = None
        elif node.node_type == "nncf_model_const" and any(node.node_name.startswith(f"{name}.") for name in modules):
            found |= dict.fromkeys(edge.to_node.node_name for edge in graph.get_output_edges(node))
    return list(found)


def _divisions(graph: Any) -> Iterator[str]:
    """Divisions by what the network computes, with the sums, products and means that the divisor is made by.

    Int8 rounds small numbers to zero: linear attention and normalizations written out by hand would divide by it.
    """
    for division in graph.get_all_nodes():
        divisors = _computed(graph, division, port=1) if division.node_type in _DIVISIONS else []
        if divisors:
            yield division.node_name
        while len(divisors) == 1 and not divisors[0].node_type.startswith(_SOURCES):
            yield divisors[0].node_name
            divisors = _computed(graph, divisors[0])


def _computed(graph: Any, node: Any, port: int | None = None) -> list[Any]:
    """What ``node`` reads (at one ``port``) that is no constant."""
    edges = [edge for edge in graph.get_input_edges(node) if port in (None, edge.input_port_id)]
    return [edge.from_node for edge in edges if edge.from_node.node_type != "nncf_model_const"]
