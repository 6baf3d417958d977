"""Takes named layers of a trained int8 model back to float, its other layers as they were trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from edgeopt.backends.audit import layer_of
from edgeopt.compress.nncf_placement import hook_storage
from edgeopt.compress.sensitivity import quantizers_of_layers
from edgeopt.errors import ModelError, did_you_mean


def int8_layers(model: nn.Module, example: Tensor, names: Sequence[str]) -> list[str]:
    """The int8 layers of ``model`` that ``names`` mean, in the order of the forward pass.

    A name is a layer's, as ``fusion.json`` and ``layer_times.json`` have it, or a module's that has such layers in it.
    ``example`` is a normalized float32 batch (N, 3, height, width). Raises ModelError for a name that is neither.
    """
    known = quantizers_of_layers(model, example)
    chosen: set[str] = set()
    for name in names:
        one = layer_of(name, known)
        found = {one} if one is not None else {layer for layer in known if layer.startswith(f"{name}.")}
        if not found:
            raise ModelError(
                f'the model has no int8 layer "{name}"{did_you_mean(name, known)}',
                fix="fusion.json and layer_times.json of an engine name its layers",
            )
        chosen |= found
    return [layer for layer in known if layer in chosen]


def in_float(model: nn.Module, example: Tensor, layers: Sequence[str]) -> nn.Module:
    """A copy of the quantized ``model`` whose ``layers``, of :func:`int8_layers`, multiply in float32.

    Their weights are no longer rounded. What they read and give stays int8 values: taken away, the runtimes would run
    the layers before them in float as well. Raises ModelError when no int8 layer would be left.
    """
    copied = copy.deepcopy(model)
    known = quantizers_of_layers(copied, example)
    if not set(known) - set(layers):
        raise ModelError("no layer would be left in int8", fix="take the float variant instead")
    weights = {id(known[layer][0]) for layer in layers}
    storage = hook_storage(copied)
    for name, hook in list(storage.named_hooks(remove_duplicate=False)):
        if id(hook) in weights:
            storage.delete_hook(name)
    return copied
