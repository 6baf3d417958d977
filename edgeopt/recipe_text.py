"""Recipes as text: the commented one that `edgeopt init` writes, and any recipe in its form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.config import EnsembleConfig, Recipe

RECIPE = """\
# An edgeopt recipe: the whole run. Every key left out keeps its default. Run it with: edgeopt run {name}

targets = ["onnxruntime", "openvino"]    # names from `edgeopt targets`, or paths to your own .toml files; one alone
#                                        # where [compress] has a latency
# package = true                         # for each of them a folder and a zip to copy to the device

[data]
path = "photos"                          # one subfolder a class; or train/val/test subfolders of such; or labels.csv
# image_size = 224                       # or [height, width]; default: the model's own; smaller is faster
# resize = "crop"                        # "crop", "squash" or "letterbox"
# interpolation = "bicubic"              # or "nearest", "bilinear", "lanczos"; default: the model's own
# normalize = "model"                    # mean and deviation of the "model", of the train pictures ("data"), or "unit"
# exclude = "leave-out.txt"              # pictures to leave out: edgeopt check photos --exclude leave-out.txt
# group_near = true                      # keep near duplicates in one split

[model]
name = "tf_efficientnet_lite0"           # see `edgeopt models`; torchvision:NAME; module:attr of your own
# arguments.drop_path_rate = 0.1         # of its constructor; also lists, as in arguments.depths = [1, 1, 3, 1]
# weights = "backbone.safetensors"       # default: pretrained weights

[train]
epochs = 20
# time = "20m"                           # the most training may take, folds together; epochs are a bound then too
# lr = 0.001                             # "auto": by a range test
# batch_size = 32                        # "auto": by a probe
# optimizer = "adamw"                    # "adam", "sgd", "momentum", "rmsprop", or another of timm's
# schedule = "cosine"                    # "step", "one_cycle", "exponential", "plateau"
# head_epochs = 2                        # the head alone first; unfreeze = "gradual" or "none" for what follows
# loss = "cross_entropy"                 # "weighted" or "focal" where classes are rare, or "module:attr"
# dropout = 0.2                          # also drop_path, weight_decay, l1, label_smoothing, clip_grad, ema_decay
# folds = 5                              # cross-validation: 5 trainings; keep = "best" or "soup" of them
# teacher = "runs/big"                   # another run of the same classes, to learn from as well
# distill = "hinton"                     # or "dkd", "dist", "features"; also temperature, distill_weight
# augment = "default"                    # "none", "light", "default" or "heavy"
# flip = false                           # where left and right differ, as for digits and text

[augment]                                # single values in place of the preset's
# rotation = 15                          # degrees; also scale, crop, shift, hue, blur, noise, erase, policy, ...
# mixup = 0.2                            # alpha; off in the last tenth of the epochs, as is cutmix

# [ensemble]                             # of the folds' models; it then teaches what is compressed
# vote = "soft"                          # "hard", "weighted", "stacking", or "soup": one model, which is compressed

[compress]
int8 = true                              # ranges from calibration pictures, then quantization-aware training; or in
#                                        # its place bf16 = true or fp16 = true: float engines, without training
# prune = 0.3                            # remove this fraction of the MACs first; or, with one target instead of two,
#                                        # latency = "4ms" ("0.6x" of the unpruned int8 engine): prune until its engine
#                                        # takes no longer (another device times first: latency_candidates = true)
# max_drop = 1.0                         # do as little as keeps val top-1 within so many points
# time = "1h"                            # with max_drop: try for so long
# calibration = "default"                # "fast", "default" or "thorough"
# teacher = "runs/big"                   # default: what is compressed; or a variant, an ensemble, timm:NAME
# distill = "hinton"                     # or "dkd", "dist", "features"; also temperature, distill_weight
# ignore = ["head"]                      # modules to leave unpruned and in float
# int8_outputs = false                   # of convolutions before swish and the like: faster on OpenVINO alone

[build]
# strict = true                          # fewer MACs in int8 than a target asks for (by default all) are an error
# float_layers = ["head"]                # layers of int8 engines left in float, as fusion.json names them, or modules
# embed_preprocessing = true             # engines take uint8 pictures (N, height, width, 3) and normalize themselves

[bench]
seconds = 20                             # at most, for all engines together
# cross_check = true                     # each engine by its runtime's own tool too
# compiled = true                        # torch.compile as another baseline
# throughput = true                      # search batches and processes; max_latency_ms = 50.0 caps a call
# width = 0.03                           # it ends early when every ratio's interval is this narrow

[tune]                                   # of `edgeopt tune {name}` alone; `edgeopt run` does not search
# trials = 20                            # or time = "2h", or both
# space.train.lr = {{ low = 0.0001, high = 0.01, log = true }}
# space.model.name = ["tf_efficientnet_lite0", "resnet18"]

[budget]                                 # a missed line makes `edgeopt run` exit with 3
max_drop_points = 1.0                    # top-1 may fall by this many percentage points
# max_class_drop_points = 5.0            # of any class's recall; also min_class_recall, min_top1
# min_speedup = {{ original = 2.0, float = 1.1 }}  # against the PyTorch model, and the target's fastest float engine
# max_p99_ms = 30.0                      # also max_p50_ms, min_throughput_ips; judged on the target's own device alone
# max_size_mib = 8.0                     # also max_memory_mib, min_int8_share
# allow_undecided = true                 # exit with 0, not 5, where pictures or time are too few to tell

# [baseline]                             # an earlier report.json (or run) that the new one must not fall behind
# report = "baseline.json"
# slower = 0.05                          # the fraction by which an engine may be slower; also drop_points, larger
"""

_LINE = re.compile(r"(?:# )?(\w+) = (.*?)(\s+#.*)?")
_TABLE = re.compile(r"(# )?(\[(\w+)\])(.*)")  # a comment: one that is in a recipe only when it is stated
_BARE = re.compile(r"[A-Za-z0-9_-]+")
#: Files a recipe names: those of a recipe in another folder are found by absolute paths.
_PATHS = (("data", "path"), ("data", "exclude"), ("model", "weights"), ("baseline", "report"))
_TAUGHT = ("train", "compress")


def recipe_text(recipe: Recipe, head: Sequence[str], *, name: str = "edgeopt.toml") -> str:
    """``recipe`` as TOML that reads as the same recipe, with init's comments and the lines ``head`` as its first ones.

    What keeps its default is left a comment; a search space (``[tune]``) is left out.
    """
    default = Recipe.model_validate({"data": {"path": ""}, "ensemble": EnsembleConfig()}).model_dump(mode="json")
    stated: dict[str, dict[str, Any]] = {"": {}}
    for key, value in _absolute(recipe.model_dump(mode="json", exclude={"tune"})).items():
        if isinstance(value, Mapping):
            stated[key] = {name: _without_none(one) for name, one in value.items() if one != default[key][name]}
            stated[key] = {name: one for name, one in stated[key].items() if one is not None}
        elif value != default[key] and value is not None:
            stated[""][key] = value
    stated["data"]["path"] = _absolute(recipe.model_dump(mode="json"))["data"]["path"]
    lines = [f"# {line}" for line in head]
    table = ""
    for line in RECIPE.format(name=name).splitlines():
        if found := _TABLE.fullmatch(line):
            lines += _left(stated.get(table, {}), lines)
            table = found[3]
            line = f"{found[2]}{found[4]}" if table in stated else line
        elif found := _LINE.fullmatch(line):
            value = stated.get(table, {}).pop(found[1], None)
            line = _line(found, value)
        lines.append(line)
    lines += _left(stated.pop(table, {}), lines)
    return "\n".join(lines) + "\n"


def _without_none(value: Any) -> Any:
    """A table without the keys that state nothing."""
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, Mapping) else value


def _line(found: re.Match[str], value: Any) -> str:
    """init's line with ``value``, or as a comment when there is none; its comment stays in its column."""
    text = f"# {found[1]} = {found[2]}" if value is None else f"{found[1]} = {toml_value(value)}"
    comment = (found[3] or "").lstrip()
    return f"{text.ljust(found.end() - len(comment) - 2)}  {comment}" if comment else text


def toml_value(value: Any) -> str:
    """A bool, number, text, list or table of these as TOML writes it, on one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(str(name))} = {toml_value(one)}" for name, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        text = repr(value)  # the shortest that reads as the same number
        return text if {".", "e", "n", "i"} & set(text) else f"{text}.0"
    # JSON's strings are TOML's, but for the delete character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else toml_value(name)


def _left(values: dict[str, Any], lines: list[str]) -> list[str]:
    """Lines for keys that init's recipe does not show, before the blank line that ends their table."""
    found = [f"{name} = {toml_value(value)}" for name, value in values.items()]
    values.clear()
    if not found or not lines or lines[-1]:
        return found
    lines.pop()
    return [*found, ""]


def _absolute(values: dict[str, Any]) -> dict[str, Any]:
    tables = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for table, key in _PATHS:
        if (path := tables[table][key]) and not path.startswith("torchvision:"):
            tables[table][key] = str(Path(path).absolute())
    tables["compress"]["calibration"] = _named(tables["compress"]["calibration"])
    for table in _TAUGHT:
        if (teacher := tables[table]["teacher"]) and "/" in teacher:
            tables[table]["teacher"] = str(Path(teacher).absolute())
    return {**tables, "targets": [_named(name) for name in tables["targets"]]}


def _named(name: str) -> str:
    """A shipped target or calibration recipe by its name, one's own by its absolute path."""
    return str(Path(name).absolute()) if name.endswith(".toml") or "/" in name else name
