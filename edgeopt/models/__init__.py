"""Models by name: created with pretrained weights, adopted from a checkpoint, saved, and rebuilt as they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import ModelError
from edgeopt.files import write_bytes
from edgeopt.model_table import ModelRow, known_models
from edgeopt.models.architecture import Architecture, Argument, ImageSize, sides
from edgeopt.models.builders import (
    Created,
    build,
    describe,
    fit,
    named_preprocess,
    size_arguments,
    split_name,
    timm_preprocess,
)
from edgeopt.models.macs import count_macs, count_parameters, layer_macs
from edgeopt.models.pretrained import pretrained_model
from edgeopt.models.sizes import require_classifier
from edgeopt.models.weights import read_state

__all__ = [
    "Architecture",
    "Created",
    "ModelRow",
    "adopt",
    "count_macs",
    "count_parameters",
    "create",
    "known_models",
    "layer_macs",
    "load",
    "preprocess_of",
    "rebuild",
    "save",
]

ARCHITECTURE_FILE = "architecture.json"
WEIGHTS_FILE = "model.safetensors"
RANDOM = "random initialization"


def create(
    name: str,
    *,
    num_classes: int,
    arguments: Mapping[str, Argument] | None = None,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: ImageSize | None = None,
) -> Created:
    """A model with a classifier for ``num_classes``, on the CPU, in evaluation mode.

    ``name`` is a timm name (``timm:NAME`` too), ``torchvision:NAME``, or ``module:attr``: a callable that takes
    ``num_classes`` and ``arguments`` and returns a module that turns pictures (N, C, H, W) into logits (N, classes).
    ``image_size`` is in pixels: one number, or (height, width); default: the model's own.
    Weights come from the file ``weights`` when given; else, when ``pretrained``, from an installed package that
    carries them, or from the hub. A classifier with another number of classes starts from zero; its keys are in
    ``dropped_keys``. Raises ModelError for unknown names, refused arguments, weights that do not fit, and for weights
    that cannot be had without a network.
    """
    architecture = _described(name, num_classes, arguments, image_size)
    created = _created(architecture, pretrained and architecture.source != "attr", weights)
    require_classifier(created.model, architecture)
    return created


def _described(
    name: str, num_classes: int, arguments: Mapping[str, Argument] | None, image_size: ImageSize | None
) -> Architecture:
    source, bare = split_name(name)
    values = {**size_arguments(source, bare, image_size), **(arguments or {}), "num_classes": num_classes}
    return describe(source, bare, values, image_size)


def _created(architecture: Architecture, pretrained: bool, weights: Path | None) -> Created:
    if weights is not None:
        model = build(architecture)
        dropped = fit(model, read_state(weights), architecture, str(weights), keep_head=False)
        return _with_silent_head(Created(model.eval(), architecture, f"file {weights.name}", dropped))
    if not pretrained:
        return Created(build(architecture).eval(), architecture, RANDOM)
    return _with_silent_head(pretrained_model(architecture))


def _with_silent_head(created: Created) -> Created:
    """A new classifier on a trained backbone starts from zero: logits of chance would first teach the backbone noise.

    Measured on digits with tf_efficientnet_lite0, whose own initialization starts at a loss of 4.0 for 10 classes.
    """
    parameters = dict(created.model.named_parameters())
    with torch.no_grad():
        for key in created.dropped_keys:
            if key in parameters:
                parameters[key].zero_()
    return created


def adopt(
    name: str,
    weights: Path,
    *,
    num_classes: int,
    arguments: Mapping[str, Argument] | None = None,
    image_size: ImageSize | None = None,
) -> Created:
    """A model trained elsewhere, with every key of the state dict in ``weights`` in its place, classifier included.

    Names as in ``create``. Raises ModelError that names the first keys that do not fit and the probable cause (another
    model, another number of classes), and for a file that is a whole pickled module.
    """
    architecture = _described(name, num_classes, arguments, image_size)
    state = read_state(weights)
    model = build(architecture)
    fit(model, state, architecture, str(weights), keep_head=True)
    require_classifier(model, architecture)
    return Created(model.eval(), architecture, f"file {weights.name}")


def rebuild(architecture: Architecture, *, allow_code: bool = False) -> nn.Module:
    """The model ``architecture`` describes, its weights random, in evaluation mode: cuts replayed, quantizers placed.

    A ``module:attr`` model runs code of the user's, so it is only built when ``allow_code``; names are otherwise
    looked up in timm's and torchvision's own registries. The global random state is left as it was.
    """
    if architecture.source == "attr" and not allow_code:
        raise ModelError(
            f"{architecture.name} is Python code outside edgeopt, and building the model would run it",
            fix="trust it only in a run of your own",
        )
    # Inside a caller's inference mode the parameters could never be traced or trained.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        return _rebuilt(architecture)


def _rebuilt(architecture: Architecture) -> nn.Module:
    model = build(architecture).eval()
    if architecture.source == "attr":
        require_classifier(model, architecture)  # the user's code may have changed since
    example = torch.zeros(1, *architecture.input_size)
    if architecture.pruning:
        from edgeopt.compress.prune import replay

        model = replay(model, architecture.pruning, example=example)
    if architecture.quantizers is not None and architecture.scheme is not None:
        from edgeopt.compress.quantize import rebuild_quantized
        from edgeopt.schemes import get_scheme

        model = rebuild_quantized(model, architecture.quantizers, get_scheme(architecture.scheme), example)
    return model.eval()


def save(model: nn.Module, architecture: Architecture, folder: Path) -> None:
    """Write ``model.safetensors`` and ``architecture.json`` into ``folder``, each under a temporary name first."""
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS_FILE, to_bytes(_plain_state(model)))
    architecture.write(folder / ARCHITECTURE_FILE)


def load(folder: Path, *, allow_code: bool = False) -> nn.Module:
    """The model ``save`` wrote, in evaluation mode on the CPU; its outputs are bit-equal to the saved model's.

    Raises ModelError when a file is missing, damaged, or the weights are not those of the architecture.
    """
    architecture = Architecture.read(folder / ARCHITECTURE_FILE)
    state = read_state(folder / WEIGHTS_FILE)
    model = rebuild(architecture, allow_code=allow_code)
    expected = model.state_dict()
    wrong = [key for key in {*state, *expected} if key not in state or key not in expected]
    wrong += [key for key in state if key in expected and state[key].shape != expected[key].shape]
    if wrong:
        raise ModelError(
            f"{folder}: {WEIGHTS_FILE} is not of {ARCHITECTURE_FILE}: {min(wrong)} and {len(wrong) - 1} more differ",
            fix="make the variant again with --force",
        )
    model.load_state_dict(state, strict=True)
    return model.eval()


def preprocess_of(
    model_or_architecture: nn.Module | Architecture, *, image_size: ImageSize | None = None
) -> dict[str, Any]:
    """How the model expects its pictures: size (height, width), crop_pct, interpolation, mean and std.

    From timm's data configuration (a timm module carries its own) or the transforms of torchvision's default weights;
    ``module:attr`` models get ImageNet's mean and std. ``image_size`` replaces the size, else the architecture's own
    ``input_size`` counts. Values are plain tuples, floats and strings.
    """
    if isinstance(model_or_architecture, Architecture):
        values = named_preprocess(model_or_architecture)
        values["size"] = model_or_architecture.input_size[1:]
    else:
        cfg = getattr(model_or_architecture, "pretrained_cfg", None)
        if cfg is None:
            raise ModelError("this model does not carry its preprocessing", fix="pass its Architecture")
        values = timm_preprocess(cfg)
    if image_size is not None:
        values["size"] = sides(image_size)
    return values


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, contiguous; tensors that share memory are written out each (safetensors needs it)."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{key} of this model is not a tensor and cannot be saved",
                fix="make it a buffer, or let get_extra_state return a tensor",
            )
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        state[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return state
