"""Grad-CAM: where in a picture a network found its answer."""

from __future__ import annotations

from math import isqrt

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeopt.models.modes import evaluating, hooked

_MOST_PREFIX_TOKENS = 2  # class and distillation tokens stand before a vision transformer's patches


def gradcam(model: nn.Module, picture: npt.NDArray[np.float32], answer: int) -> npt.NDArray[np.float32] | None:
    """Shares 0-1 (rows, columns) of the evidence for class ``answer`` in one normalized picture (3, height, width).

    Selvaraju et al. 2017, arXiv:1610.02391: the last feature map that still has places, its channels weighted by the
    mean gradient of the answer's logit. Patches of a vision transformer count as places. None when the network has no
    such map, or nothing in it speaks for the answer.
    """
    maps: list[Tensor] = []
    size = (picture.shape[1], picture.shape[2])

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad and _places(output, size) is not None:
            maps.append(output)

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    with hooked(handles), evaluating(model), torch.enable_grad():
        example = torch.from_numpy(picture[None]).to(next(model.parameters()).device).requires_grad_()
        logit = model(example)[0, answer]
        gradients = torch.autograd.grad(logit, maps, allow_unused=True) if maps else ()
    # After its last attention a transformer reads the class token alone: an earlier map is the last that counts.
    for output, gradient in zip(reversed(maps), reversed(gradients), strict=True):
        found, slope = _places(output, size), None if gradient is None else _places(gradient, size)
        if found is not None and slope is not None and slope.abs().max() > 0:
            evidence = (slope.mean(dim=(1, 2), keepdim=True) * found).sum(dim=0).clamp(min=0).detach().cpu().numpy()
            top = float(evidence.max())
            return np.asarray(evidence / top, np.float32) if top > 0 else None
    return None


def _places(output: Tensor, size: tuple[int, int]) -> Tensor | None:
    """The features of one picture of ``size`` (height, width) as (channels, rows, columns); None without places."""
    if output.ndim == 4 and len(output) == 1:
        # Attention has outputs of four dimensions too; rows and columns are in the picture's proportion.
        for places in (output[0], output[0].permute(2, 0, 1)):
            if _fits(places.shape[1], places.shape[2], size):
                return places
    if output.ndim == 3 and output.shape[1] > 4:
        height, width = size
        for prefix in range(_MOST_PREFIX_TOKENS + 1):
            patches = output.shape[1] - prefix
            rows = isqrt(patches * height // width)  # patches are square
            if rows and patches % rows == 0 and rows * width == patches // rows * height:
                return output[0, prefix:].T.reshape(-1, rows, patches // rows)
    return None


def _fits(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Whether a network that halves pictures of ``size``, a row or column more or less, can come to such a map."""
    height, width = size
    return min(rows, columns) > 1 and abs(rows * width - columns * height) < width + height
