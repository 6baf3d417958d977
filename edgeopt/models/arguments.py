"""Why a constructor refused its arguments, in a line: a misspelt name, a fixed width, a size it cannot take."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from edgeopt.errors import ModelError, did_you_mean
from edgeopt.models.architecture import Architecture

_UNEXPECTED = re.compile(r"(?:(\w+)\.)?(\w+)\(\) got an unexpected keyword argument '(\w+)'")
_TWICE = re.compile(r"got multiple values for (?:keyword )?argument '(\w+)'")
#: Parameters of constructors that are not the user's to give, or not in a recipe.
_INTERNAL = frozenset(
    {"self", "args", "kwargs", "cfg", "arch", "block", "num_classes", "pretrained", "weights", "progress", "device",
     "dtype"}
)  # fmt: skip
_SHOWN = 12


def refusal(architecture: Architecture, error: Exception) -> ModelError:
    """The error to raise for what the constructor of ``architecture`` raised."""
    unexpected, twice = _UNEXPECTED.search(str(error)), _TWICE.search(str(error))
    name = architecture.full_name
    if unexpected and unexpected[3] in ("img_size", "image_size", "input_size"):
        return ModelError(f"{name} is made for one picture size", fix="leave --image-size out")
    if unexpected and unexpected[3] in architecture.arguments and unexpected[3] != "num_classes":
        made_by = sys.modules.get(_maker(architecture).__module__)
        return _unknown(
            architecture, unexpected[3], _parameters(getattr(made_by, unexpected[1] or unexpected[2], None))
        )
    if twice:
        siblings = _siblings(architecture.name) if architecture.source == "timm" else []
        return ModelError(
            f"{name} sets {twice[1]} itself",
            fix=f"leave model.arguments.{twice[1]} out"
            + (f", or take a model with another: {_listed(siblings)}" if siblings else ""),
        )
    line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    stated = ", ".join(f"{key}={value}" for key, value in architecture.arguments.items())
    return ModelError(
        f"{name} cannot be built with {stated}: {line}",
        fix="correct its code, or model.arguments in the recipe: it is called with both num_classes and these"
        if architecture.source == "attr"
        else "correct --image-size, or model.arguments in the recipe: they go to its constructor",
    )


def require_taken(architecture: Architecture, model: nn.Module) -> None:
    """Raise ModelError for arguments that torchvision's builders swallowed: some pass ``**kwargs`` on to nobody.

    Known are those of the model's class and of its module's private functions, which make it.
    """
    if architecture.source != "torchvision":
        return
    module = sys.modules[_maker(architecture).__module__]
    builders = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] == "_"
    ]
    known = list(dict.fromkeys(name for maker in (type(model), *builders) for name in _parameters(maker)))
    for name in architecture.arguments:
        if name not in known and name != "num_classes":
            raise _unknown(architecture, name, known)


def _unknown(architecture: Architecture, argument: str, known: list[str]) -> ModelError:
    return ModelError(
        f"{architecture.full_name} takes no argument {argument}{did_you_mean(argument, known)}",
        fix=f"leave model.arguments.{argument} out" + (f"; it takes {_listed(known)}" if known else ""),
    )


def _parameters(maker: Any) -> list[str]:
    """Names of what ``maker``, a class or function, takes and a recipe can say."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):  # not callable, or built in
        return []
    return [item.name for item in parameters if item.name not in _INTERNAL and not _is_code(item)]


def _maker(architecture: Architecture) -> Callable[..., Any]:
    if architecture.source == "timm":
        import timm

        maker: Callable[..., Any] = timm.model_entrypoint(architecture.name)
    elif architecture.source == "torchvision":
        from torchvision import models

        maker = models.get_model_builder(architecture.name)
    else:
        module, _, attribute = architecture.name.partition(":")
        maker = getattr(sys.modules[module], attribute.split(".")[0])
    return maker


def _siblings(name: str) -> list[str]:
    """Other timm models whose name differs from ``name`` in its numbers only: the widths and depths there are."""
    import timm

    pattern = re.sub(r"\d+", r"\\d+", re.escape(name.split(".")[0]))
    return [other for other in timm.list_models() if re.fullmatch(pattern, other) and other != name]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _is_code(parameter: inspect.Parameter) -> bool:
    return parameter.default is not inspect.Parameter.empty and callable(parameter.default)
