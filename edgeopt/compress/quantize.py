"""Int8 models for quantization-aware training: made from calibration pictures, and rebuilt from a run folder."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.compress.nncf_placement import HOOKS, RANGE_ESTIMATORS, check_wrappable, hook_storage, place_quantizers
from edgeopt.compress.quantizers import Quantizer, quantizer_from_config, quantizer_to_config
from edgeopt.errors import ModelError, did_you_mean
from edgeopt.models.branches import is_merged, merged_again
from edgeopt.models.modes import hooked
from edgeopt.schemes import Scheme
from edgeopt.train.allocator import give_back_memory

CONFIG_FORMAT = 1
_HOOK_NAME = re.compile(r"(pre_hooks|post_hooks)\.[^.]{1,500}__\d{1,3}\.\d{1,3}")
_GIVE_BACK = 4  # batches: faulting the memory in again takes a tenth of a batch's time
_MOST_QUANTIZERS = 10_000
_MOST_CHANNELS = 1_000_000


def quantize(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    scheme: Scheme,
    range_estimator: str = "minmax",
    ignored: Sequence[str] = (),
    int8_outputs: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """A quantized copy of a float classifier, in eval mode, ready for quantization-aware training.

    ``batches`` are normalized float32 NCHW tensors on the CPU, read once or more, and one at a time unless they are an
    iterator; all of them set the ranges and correct the biases
    (NNCF post-training quantization with fast bias correction, after Nagel et al. 2019,
    https://arxiv.org/abs/1906.04721). ``range_estimator``: ``minmax`` (smallest and largest value seen),
    ``percentile`` or ``histogram``. ``ignored``: module names left in float. ``int8_outputs`` adds quantizers between
    convolutions and HardSwish, SiLU, GELU or LayerNorm: without them ONNX Runtime runs those convolutions in float
    (MobileNetV3 small: 16 of 53 in int8 instead of 35, at 3.6 times the latency), with them OpenVINO is slower (1.3 to
    1.6 times). ``progress(done, total)`` counts batches read. BatchNorm stays a module of its own: the export folds it
    exactly into the weights' scales. Raises ModelError.
    """
    if is_quantized(model):
        raise ModelError("the model is quantized already", fix="quantize remove_quantizers(model)")
    check_wrappable(model)
    if range_estimator not in RANGE_ESTIMATORS:
        raise ModelError(
            f'unknown range estimator "{range_estimator}"{did_you_mean(range_estimator, RANGE_ESTIMATORS)}',
            fix=f"use one of {', '.join(RANGE_ESTIMATORS)}",
        )
    kept = _Checked(batches)
    _check_ignored(model, ignored)
    # On the CPU always: NNCF's CUDA kernels need nvcc on the user's machine.
    source = copy.deepcopy(model).cpu().eval()
    quantized = place_quantizers(
        source,
        kept,
        scheme=scheme,
        range_estimator=range_estimator,
        ignored=ignored,
        int8_outputs=int8_outputs,
        progress=progress,
    )
    return quantized.to(_device(model)).eval()


def is_quantized(model: nn.Module) -> bool:
    """True when the model carries quantizers."""
    return hasattr(model, HOOKS)


def remove_quantizers(model: nn.Module) -> nn.Module:
    """A float copy of a quantized model with the same weights (to find fresh ranges under another scheme)."""
    plain = copy.deepcopy(model)
    if is_quantized(plain):
        delattr(plain, HOOKS)
        # Both are instance attributes that NNCF laid over the class's own methods.
        for name in ("forward", "_replicate_for_data_parallel"):
            plain.__dict__.pop(name, None)
    return plain


def named_quantizers(model: nn.Module) -> list[tuple[str, Quantizer]]:
    """Every quantizer with the name of its first place (``post_hooks.x__0.0``), in the order of the state dict."""
    if not is_quantized(model):
        return []
    return [(name, hook) for name, hook in hook_storage(model).named_hooks() if isinstance(hook, Quantizer)]


def quantizer_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The learnable logarithms of the scales.

    Train them without weight decay. An Adam-like step of size ``lr`` changes a scale by the fraction ``lr``, so 1e-4 to
    1e-3 is a sensible rate whatever the layer.
    """
    return [quantizer.log_scale for _, quantizer in named_quantizers(model)]


def quantizer_config(model: nn.Module) -> dict[str, Any]:
    """JSON-able placement of the quantizers: all that ``rebuild_quantized`` needs besides the tensors."""
    if not is_quantized(model):
        raise ModelError("the model is not quantized", fix="call quantize first")
    places: dict[Quantizer, list[str]] = {}
    for name, hook in hook_storage(model).named_hooks(remove_duplicate=False):
        places.setdefault(hook, []).append(name)
    entries = [{"hooks": names, **quantizer_to_config(quantizer)} for quantizer, names in places.items()]
    merged = {"merged": True} if is_merged(model) else {}
    return {"format": CONFIG_FORMAT, **merged, "quantizers": entries}


def rebuild_quantized(model: nn.Module, config: dict[str, Any], scheme: Scheme, example: Tensor) -> nn.Module:
    """``model`` (a fresh float architecture, changed in place) with the quantizers that ``config`` places in it.

    ``config`` may come from a stranger: it is data, checked entry by entry. ``example`` is a normalized float32 NCHW
    tensor; one forward pass proves that every quantizer is reached. Load the state dict afterwards. Raises ModelError.
    """
    entries = _checked_entries(config, scheme)
    if is_quantized(model):
        raise ModelError("the model is quantized already", fix="rebuild on a fresh float model")
    training = model.training
    if config.get("merged"):
        model = merged_again(model)
    device = _device(model)
    storage = hook_storage(model)
    for entry in entries:
        quantizer = quantizer_from_config(entry).to(device)
        for name in entry["hooks"]:
            storage.insert_hook_by_name(name, quantizer)
    _check_reached(model.eval(), example.to(device))
    return model.train(training)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class _Checked(Sequence[Tensor]):
    """Calibration batches, each looked at as it is read, so that only those of an iterator are kept in memory."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = batches if isinstance(batches, Sequence) else list(batches)
        if not len(self._batches):
            raise ModelError("there are no calibration batches", fix="give at least one batch of pictures")

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        if index % _GIVE_BACK == 0:  # what NNCF keeps of each batch is small, and must not hold on to the rest
            give_back_memory()
        batch = self._batches[index]
        if isinstance(batch, Tensor):
            _check_batch(batch)
        return batch


def _check_batch(batch: Tensor) -> None:
    if batch.dim() != 4 or batch.dtype != torch.float32:
        raise ModelError(
            f"a calibration batch is {batch.dtype} of shape {tuple(batch.shape)}, not float32 NCHW",
            fix="normalize the pictures and stack them",
        )
    if not torch.isfinite(batch).all():
        raise ModelError("a calibration batch holds values that are not finite", fix="check the preprocessing")


def _check_ignored(model: nn.Module, ignored: Sequence[str]) -> None:
    known = [name for name, _ in model.named_modules() if name]
    for name in ignored:
        if name not in known:
            raise ModelError(
                f'the model has no module "{name}"{did_you_mean(name, known)}',
                fix="name modules as model.named_modules() does",
            )


def _mismatch(message: str) -> ModelError:
    return ModelError(
        f"the quantizers do not fit this model: {message}",
        fix="use the architecture.json and model.safetensors of one variant together",
    )


def _checked_entries(config: Any, scheme: Scheme) -> list[dict[str, Any]]:
    """The entries of ``config``, each one known to be of the right types and of this scheme."""
    if not isinstance(config, dict) or config.get("format") != CONFIG_FORMAT:
        raise _mismatch(f"the config is not of format {CONFIG_FORMAT}")
    if not isinstance(config.get("merged", False), bool):
        raise _mismatch("whether branches are merged is not said by true or false")
    entries = config.get("quantizers")
    if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_QUANTIZERS:
        raise _mismatch("the config lists no quantizers")
    seen: set[str] = set()
    for entry in entries:
        _check_entry(entry, scheme)
        for name in entry["hooks"]:
            if name in seen:
                raise _mismatch(f"{name!r} is listed twice")
            seen.add(name)
    return entries


def _check_entry(entry: Any, scheme: Scheme) -> None:
    keys = {"hooks", "shape", "low", "high", "zero_point", "max_scale"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise _mismatch(f"an entry does not have exactly the keys {', '.join(sorted(keys))}")
    hooks, shape = entry["hooks"], entry["shape"]
    if (
        not isinstance(hooks, list)
        or not hooks
        or not all(isinstance(name, str) and _HOOK_NAME.fullmatch(name) for name in hooks)
    ):
        raise _mismatch(f"{str(hooks)[:80]!r} are not names of hooks")
    if not isinstance(shape, list) or len(shape) > 5 or not all(_is_int(n, 1, _MOST_CHANNELS) for n in shape):
        raise _mismatch(f"the shape of {hooks[0]} is wrong")
    if sum(n > 1 for n in shape) > 1:
        raise _mismatch(f"the shape of {hooks[0]} has more than one channel axis")
    for key in ("low", "high", "zero_point"):
        if not _is_int(entry[key], -128, 255):
            raise _mismatch(f"{key} of {hooks[0]} is not an 8-bit integer")
    bounds = (entry["low"], entry["high"])
    largest = scheme.weight_max
    expected = (-largest, largest) if shape else (-128, 127) if scheme.activation_signed else (0, 255)
    symmetric = bool(shape) or scheme.activation_symmetric
    if bounds != expected or not bounds[0] <= entry["zero_point"] <= bounds[1] or (symmetric and entry["zero_point"]):
        raise _mismatch(f"{hooks[0]} is not of scheme {scheme.name}")
    limit = entry["max_scale"]
    if limit is not None and not (isinstance(limit, float) and 0 < limit < float("inf")):
        raise _mismatch(f"max_scale of {hooks[0]} is not a positive number")


def _is_int(value: Any, smallest: int, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def _check_reached(model: nn.Module, example: Tensor) -> None:
    """One forward pass; every quantizer must see a tensor whose channels fit its own."""
    waiting = dict((quantizer, name) for name, quantizer in named_quantizers(model))

    def note(quantizer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(quantizer, Quantizer)
        name = waiting.pop(quantizer, None)
        shape = tuple(quantizer.log_scale.shape)
        if name is not None and not _fits(shape, inputs[0]):
            raise _mismatch(f"{name} has scales of shape {shape}")

    handles = [quantizer.register_forward_pre_hook(note) for quantizer in list(waiting)]
    with hooked(handles), torch.no_grad():
        model(example)
    if waiting:
        name = next(iter(waiting.values()))
        raise _mismatch(f"{len(waiting)} of them are never reached, the first is {name}")


def _fits(shape: tuple[int, ...], value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    return not shape or (
        len(shape) == value.dim() and all(n in (1, m) for n, m in zip(shape, value.shape, strict=True))
    )
