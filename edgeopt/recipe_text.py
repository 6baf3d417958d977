"""Recipes as text: the commented one that `edgeopt init` writes, and any recipe in its form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.config import CheckConfig, EnsembleConfig, Recipe

RECIPE = """\
# An edgeopt recipe: the whole run. Every key is here; one left out or commented keeps its default, which a comment
# shows or says. Run it with: edgeopt run {name}

targets = ["onnxruntime", "openvino"]    # names from `edgeopt targets`, or paths to your own .toml files; one alone
#                                        # where [compress] has a latency
# package = false                        # true: for each of them a folder and a zip to copy to the device
# name = "photos"                        # the run is runs/NAME; default: the name of the pictures' folder

[data]
path = "photos"                          # one subfolder a class; or train/val/test subfolders of such; or labels.csv
# image_size = 224                       # or [height, width]; default: the model's own; smaller is faster
# resize = "crop"                        # "crop", "squash" or "letterbox"
# interpolation = "bicubic"              # or "nearest", "bilinear", "lanczos"; default: the model's own
# normalize = "model"                    # mean and deviation of the "model", of the train pictures ("data"), or "unit"
# val = 0.1                              # the share of each class that picks epochs and is never trained on
# test = 0.2                             # the share of each class that only the report looks at
# seed = 0                               # of the split
# max_test = 10000                       # at most so many test pictures are judged, drawn in class proportions
# max_pixels = 100000000                 # a picture of more pixels is refused: it could fill the memory
# exclude = "leave-out.txt"              # pictures to leave out, as `edgeopt check --exclude` lists them; default: none
# group_near = false                     # true: near duplicates stay in one split

# [check]                                # before training the pictures are looked at, as by `edgeopt check`
# model = "tf_efficientnet_lite0"        # pretrained, labels are checked with it
# labels = true                          # false: not for wrong labels, which takes longest
# leave_out = false                      # true: train without the pictures it would leave out; each is named

[model]
name = "tf_efficientnet_lite0"           # see `edgeopt models`; torchvision:NAME; module:attr of your own
# arguments = {{}}                         # of its constructor: {{ drop_path_rate = 0.1, depths = [1, 1, 3, 1] }}
# pretrained = true                      # false: from random weights
# weights = "backbone.safetensors"       # a file of weights; default: the pretrained ones

[train]
epochs = 20                              # passes over the train pictures, at most
# time = "20m"                           # the most training may take, folds together, epochs a bound too; default: none
# patience = 10                          # early stopping: it ends after so many epochs without a better one on val
# lr = 0.001                             # the head's learning rate, here AdamW's; "auto": by a range test
# layer_decay = 0.9                      # each layer has so much of the rate of the one above it; 1.0: all the same
# batch_size = 32                        # "auto": by a probe
# optimizer = "adamw"                    # "adam", "sgd", "momentum", "rmsprop", which bring an lr and weight_decay of
#                                        # their own where none are stated, or another of timm's
# momentum = 0.9                         # of sgd, momentum and rmsprop; default: 0.9
# schedule = "cosine"                    # "step", "one_cycle", "exponential", "plateau"
# warmup_epochs = 1.0                    # in which the rate rises from zero
# lr_decay = 0.1                         # of step and plateau at a drop (default: 0.1), of exponential in an epoch
# lr_step_epochs = 5.0                   # between two drops of step; default: a third of the epochs
# lr_patience = 3                        # epochs without a better one before plateau drops; default: 3
# head_epochs = 0.0                      # epochs of the head alone, before all else is trained
# unfreeze = "all"                       # then "all" at once, "gradual" from the head down, "none" (a linear probe)
# batchnorm = "trained"                  # "frozen": its statistics, gains and biases stay as they are
# loss = "cross_entropy"                 # "weighted" or "focal" where classes are rare, or "module:attr"
# loss_arguments = {{}}                    # of the loss: {{ gamma = 2.0 }} of focal
# label_smoothing = 0.1                  # default: 0.1, and 0 for a loss of hard labels
# sampling = "shuffled"                  # "balanced": every class equally often
# select = "auto"                        # the epoch kept is best in "top1" or mean "recall"; auto: by loss and sampling
# dropout = 0.2                          # before the head; default: the model's own
# drop_path = 0.1                        # of residual blocks; default: the model's own
# weight_decay = 0.05                    # neither of norms nor of biases
# l1 = 0.0                               # the same, of absolute values
# clip_grad = 1.0                        # the largest norm of the gradient; 0.0: any
# ema_decay = 0.99                       # of the averaged weights that are judged and kept; 0.0: no average
# folds = 5                              # cross-validation: so many trainings; default: one training
# keep = "best"                          # of the folds' models the best on val, or their "soup"; default: the best
# teacher = "runs/big"                   # another run of the same classes, to learn from as well; default: none
# distill = "hinton"                     # how: or "dkd", "dist", "features"
# temperature = 3.0                      # of the teacher's softened answers; default: the method's own
# distill_weight = 0.9                   # of the teacher, the labels have the rest; default: the method's own
# augment = "default"                    # "none", "light", "default" or "heavy"
# flip = true                            # false where left and right differ, as for digits and text
# seed = 0                               # of batches, augmentation and new weights
# precision = "auto"                     # "fp32" or "bf16"; auto: the faster here, which takes some seconds to find
# memory_format = "auto"                 # "channels_last" or "contiguous"; auto: as precision
# workers = 0                            # processes that make batches; 0: the training's own

[augment]                                # single values in place of the preset's, which are the defaults
# crop = 0.5                             # the smallest share of the area that a random crop keeps; 1.0: no crop
# rotation = 15.0                        # degrees, either way
# scale = 0.1                            # larger or smaller by this fraction
# shift = 0.1                            # by this fraction of width and height
# horizontal_flip = true                 # default: train.flip
# vertical_flip = true
# brightness = 0.2
# contrast = 0.2
# saturation = 0.2
# hue = 0.05                             # a fraction of the colour circle
# policy = "trivial"                     # TrivialAugment, RandAugment ("rand") or "none"
# operations = 2                         # of RandAugment, one after the other
# magnitude = 9                          # of RandAugment, 0 to 30
# blur = 1.0                             # sigma in pixels
# noise = 0.05                           # standard deviation; white is 1
# erase = 0.25                           # the probability that a rectangle is erased
# mixup = 0.2                            # alpha
# cutmix = 1.0                           # alpha
# unmixed = 0.1                          # the last share of the epochs, without mixup and cutmix

# [ensemble]                             # of the folds' models; it then teaches what is compressed
# vote = "soft"                          # "hard", "weighted", "stacking", or "soup": one model, which is compressed
# members = []                           # variants that vote; none: the models of the folds

[compress]
int8 = true                              # ranges from calibration pictures, then quantization-aware training
# fp16 = false                           # in place of int8: float engines of this precision, without training
# bf16 = false                           # as fp16
# schemes = []                           # int8 layouts by name; none: what each target prefers
# calibration = "default"                # "fast", "default" or "thorough"
# epochs = 5                             # of quantization-aware training
# lr = 0.0001                            # in it
# scale_lr = 10.0                        # in it, of the int8 scales: so many times lr
# ema_decay = 0.99                       # in it: as train.ema_decay
# batchnorm_epochs = 0.0                 # in it: epochs before BatchNorm's statistics stay; 0.0: they always do
# light_end = 0.0                        # in it: the last share of the epochs with crops and flips alone
# ignore = []                            # modules to leave unpruned and in float, such as "head"
# int8_outputs = false                   # of convolutions before swish and the like; default: for ONNX Runtime
# prune = 0.3                            # the fraction of the MACs that is removed before int8; default: nothing
# prune_steps = 1                        # in so many steps, each with its share of the recovery
# drop_blocks = 0                        # whole residual blocks to remove before channels
# drop_heads = 0                         # heads of attention to remove before channels
# importance = "taylor"                  # channels cut are chosen by loss, or by weights: "l2", "l1", "bn_scale"
# layer_cap = 0.7                        # the most of its channels that a layer may lose
# round_to = 8                           # widths that are left are multiples of it; default: as the targets say
# reconstruct = true                     # layers left are fitted to what they gave before
# recovery_epochs = 20                   # of training after pruning, a round
# recovery_rounds = 3                    # at most: another follows while val shows that the last one helped
# recovery_lr = 0.001                    # in it
# match_weight = 1.0                     # in it: of layers giving what those of the whole network give
# latency = "4ms"                        # in place of prune: of the one target's int8 engine, or "0.6x"; default: any
# rival = true                           # of latency: the unpruned model at a smaller input is made and measured too
# timing_seconds = 60.0                  # of latency: for timing candidates before anything is trained
# latency_candidates = false             # true, alone: candidates for another device to time first
# max_drop = 1.0                         # do as little as keeps val top-1 within so many points; default: all of it
# time = "1h"                            # of max_drop: try for so long; default: until nothing is left to try
# trials = 5                             # of max_drop: try so many ways; default: all
# teacher = "runs/big"                   # or a variant, an ensemble, timm:NAME; default: what is compressed
# distill = "hinton"                     # how: or "dkd", "dist", "features"
# temperature = 3.0                      # as in [train]
# distill_weight = 0.9                   # as in [train]

[build]
# strict = false                         # true: fewer MACs in int8 than a target asks for (by default all) are an error
# float_layers = []                      # layers of int8 engines left in float, as fusion.json names them, or modules
# embed_preprocessing = false            # true: engines take uint8 pictures (N, height, width, 3), normalizing these

[bench]
seconds = 20                             # at most, for all engines together
# starts = 2                             # each engine in so many new processes, which divide the seconds
# width = 0.03                           # it ends early when every ratio's interval is this narrow
# threads = 0                            # of each engine; 0: every core
# cross_check = false                    # true: each engine by its runtime's own tool too
# compiled = false                       # true: torch.compile as another baseline
# throughput = false                     # true: search batches and processes for the most pictures a second
# max_latency_ms = 50.0                  # of throughput: what nine of ten calls must keep; default: any

[tune]                                   # of `edgeopt tune {name}` alone; `edgeopt run` does not search
# trials = 20                            # default: 20, or as many as there is time for
# time = "2h"                            # of one call; default: no bound
# workers = 1                            # processes that share the study
# pruner = "median"                      # trials that lag behind end early: "median", "halving", "hyperband" or "none"
# seed = 0                               # of the search
# space.train.lr = {{ low = 0.0001, high = 0.01, log = true }}
# space.model.name = ["tf_efficientnet_lite0", "resnet18"]

[budget]                                 # a missed line makes `edgeopt run` exit with 3; default: no line
max_drop_points = 1.0                    # top-1 may fall by this many percentage points
# max_class_drop_points = 5.0            # of any class's recall
# min_class_recall = 0.8                 # of every class, a fraction
# min_top1 = 0.9                         # a fraction
# min_speedup = {{ original = 2.0, float = 1.1 }} # against the PyTorch model, and the target's fastest float engine
# max_p50_ms = 10.0                      # milliseconds are judged on the target's own device alone
# max_p99_ms = 30.0
# min_throughput_ips = 100.0             # pictures a second
# max_size_mib = 8.0                     # of the engine's files
# max_memory_mib = 200.0                 # of the process, at most
# min_int8_share = 0.9                   # of the layers that compute
# allow_undecided = false                # true: exit with 0, not 5, where pictures or time are too few to tell

# [baseline]                             # an earlier report that the new one must not fall behind
# report = "baseline.json"               # report.json or a run folder; default: none
# slower = 0.05                          # the fraction by which an engine may be slower
# drop_points = 1.0                      # the points of top-1 it may lose
# larger = 0.05                          # the fraction by which it may be larger
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
    tables = {"data": {"path": ""}, "check": CheckConfig(), "ensemble": EnsembleConfig()}
    default = Recipe.model_validate(tables).model_dump(mode="json")
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
