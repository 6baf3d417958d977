"""Model names: what they mean, how a bare model is built from one, and how it wants its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgeopt.errors import ModelError, did_you_mean
from edgeopt.models.architecture import Architecture, Argument, ImageSize, Source, parse, sides
from edgeopt.models.arguments import refusal, require_taken
from edgeopt.models.weights import fit_state
from edgeopt.registry import import_users_module

#: torchvision's models with second outputs for training, and the keys of those in a checkpoint: they are left out, as
#: is their own transform of the input. What that does to ImageNet's normalization is mean and deviation 0.5.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
_WITHOUT_AUXILIARY: dict[str, Argument] = {"aux_logits": False, "transform_input": False, "init_weights": True}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Created:
    """A model, how to build it again, where its weights came from, and the checkpoint's keys that were not used."""

    model: nn.Module
    architecture: Architecture
    weights_origin: str
    dropped_keys: tuple[str, ...] = ()


# --- names --------------------------------------------------------------------------------------------------------


def split_name(name: str) -> tuple[Source, str]:
    """Where the model comes from, and its name there."""
    prefix, colon, rest = name.partition(":")
    if not colon:
        return "timm", name
    if prefix == "timm":
        return "timm", rest
    if prefix == "torchvision":
        return "torchvision", rest
    return "attr", name


def require_known(source: Source, name: str) -> None:
    """Raise ModelError, with the nearest name, for a name that is in no registry."""
    if source == "timm":
        import timm

        if timm.is_model(name):
            return
        known, kind = timm.list_models(), "timm model"
    elif source == "torchvision":
        known, kind = torchvision_names(), "torchvision classification model"
        if name in known:
            return
    else:
        return
    raise ModelError(f'unknown {kind} "{name}"{did_you_mean(name, known)}', fix="edgeopt models lists some of them")


def torchvision_names() -> list[str]:
    """torchvision's classifiers that give one tensor of logits."""
    from torchvision import models

    return list(models.list_models(module=models))


def describe(
    source: Source, name: str, arguments: Mapping[str, Argument], image_size: ImageSize | None
) -> Architecture:
    """The architecture of a name the user gave, with the input size the model was made for."""
    values = {"source": source, "name": name, "arguments": dict(arguments)}
    draft = parse(values, where=f"model {name}")
    require_known(source, name)
    channels = draft.arguments.get("in_chans", 3) if source == "timm" else 3
    size = sides(image_size) if image_size else native_size(draft)
    return parse({**values, "input_size": (channels, *size)}, where=f"model {name}")


def native_size(architecture: Architecture) -> tuple[int, int]:
    """(height, width) in pixels that the model's default weights were trained at."""
    height, width = named_preprocess(architecture)["size"]
    return int(height), int(width)


def size_arguments(source: Source, name: str, image_size: ImageSize | None) -> dict[str, Argument]:
    """What a constructor must be told about the picture's size: transformers with position embeddings need it.

    Raises ModelError for torchvision's vision transformers, which take square pictures alone.
    """
    if image_size is None:
        return {}
    height, width = sides(image_size)
    if source == "timm":
        import timm

        fixed = timm.is_model(name) and timm_cfg(name).get("fixed_input_size", False)
        return {"img_size": height if height == width else (height, width)} if fixed else {}
    if source == "torchvision" and name.startswith("maxvit"):
        return {"input_size": (height, width)}
    if source != "torchvision" or not name.startswith("vit_"):
        return {}
    if height != width:
        raise ModelError(
            f"torchvision:{name} takes square pictures alone, not {height}x{width}",
            fix=f"--image-size {max(height, width)}, or timm's own, such as vit_base_patch16_224, which takes both",
        )
    return {"image_size": height}


# --- building -----------------------------------------------------------------------------------------------------


def build(architecture: Architecture) -> nn.Module:
    """The bare model with random weights."""
    require_known(architecture.source, architecture.name)
    arguments = dict(architecture.arguments)
    try:
        if architecture.source == "timm":
            import timm

            model = timm.create_model(architecture.name, pretrained=False, **arguments)
        elif architecture.source == "torchvision":
            from torchvision import models

            fixed = _WITHOUT_AUXILIARY if architecture.name in _AUXILIARY else {}
            model = models.get_model(architecture.name, weights=None, **fixed, **arguments)
            require_taken(architecture, model)
        else:
            model = _import_attribute(architecture.name)(**arguments)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, AssertionError, MemoryError) as error:
        raise refusal(architecture, error) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{architecture.name} returned {type(model).__name__}, not a torch module",
            fix="return a torch.nn.Module that turns pictures (N, C, H, W) into logits (N, classes)",
        )
    return model


def _import_attribute(reference: str) -> Any:
    """The object ``module:attr`` names; modules in the current folder are found as by ``python -m``."""
    module_name, _, attribute = reference.partition(":")
    try:
        value: Any = import_users_module(module_name)
    except ImportError as error:
        raise ModelError(
            f"cannot import {module_name} for model {reference}: {error}",
            fix=f"start edgeopt in the folder that holds {module_name}, or install it and what it imports",
        ) from error
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise ModelError(
            f"{reference} is not a callable that returns a model",
            fix=f"name a class or function of {module_name} that takes num_classes: {module_name}:NAME",
        )
    return value


def heads_of(model: nn.Module, num_classes: int) -> tuple[str, ...]:
    """The classifier modules: as timm states them, else the last layer with ``num_classes`` outputs."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    stated = cfg.get("classifier")
    if stated:
        return (stated,) if isinstance(stated, str) else tuple(stated)
    for name, module in reversed(list(model.named_modules())):
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, (nn.Linear, nn.Conv2d)) and outputs == num_classes:
            return (name,)
    return ()


def fit(
    model: nn.Module, state: Mapping[str, Tensor], architecture: Architecture, origin: str, *, keep_head: bool
) -> tuple[str, ...]:
    """``state`` into ``model``; returns the classifier keys left out. Raises as ``weights.fit_state``."""
    unused = _AUXILIARY.get(architecture.name, ()) if architecture.source == "torchvision" else ()
    return fit_state(
        model,
        {key: value for key, value in state.items() if not key.startswith(unused)},
        heads=heads_of(model, architecture.num_classes),
        origin=origin,
        model_name=architecture.full_name,
        keep_head=keep_head,
    )


# --- preprocessing ------------------------------------------------------------------------------------------------


def timm_cfg(name: str) -> dict[str, Any]:
    """timm's configuration of a model's default weights (or of the tag in ``name``)."""
    import timm

    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ModelError(
            f"{name}: {error}", fix=f'leave the tag out, or use one of timm.list_pretrained("{name.split(".")[0]}*")'
        ) from None
    return dict(cfg.to_dict()) if cfg is not None else {}


def named_preprocess(architecture: Architecture) -> dict[str, Any]:
    """What the default weights of a named model were trained with, in the form of ``models.preprocess_of``."""
    if architecture.source == "timm":
        return timm_preprocess(timm_cfg(architecture.name))
    if architecture.source == "torchvision":
        from torchvision import models

        preset = models.get_model_weights(architecture.name).DEFAULT.transforms()
        crop, resize = preset.crop_size[0], preset.resize_size[0]
        return {
            "size": (crop, crop),
            "crop_pct": crop / resize,
            "interpolation": str(preset.interpolation.value),
            "mean": (0.5, 0.5, 0.5) if architecture.name in _AUXILIARY else tuple(preset.mean),
            "std": (0.5, 0.5, 0.5) if architecture.name in _AUXILIARY else tuple(preset.std),
        }
    return {
        "size": (224, 224),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": _IMAGENET_MEAN,
        "std": _IMAGENET_STD,
    }


def timm_preprocess(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The same from timm's configuration of some weights."""
    from timm.data import resolve_data_config

    config = resolve_data_config(args={}, pretrained_cfg=dict(cfg))
    return {
        "size": tuple(config["input_size"][1:]),
        "crop_pct": float(config["crop_pct"]),
        "interpolation": str(config["interpolation"]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
    }
