"""``edgeopt init``: write a commented recipe."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.errors import ConfigError

RECIPE = """\
# An edgeopt recipe: the whole run. Every key left out keeps its default. Run it with: edgeopt run {name}

targets = ["onnxruntime", "openvino"]    # names from `edgeopt targets`, or paths to your own .toml files

[data]
path = "photos"                          # one subfolder a class; or train/val/test subfolders of such; or labels.csv
# image_size = 224                       # default: the model's own; smaller is faster
# resize = "crop"                        # "crop", "squash" or "letterbox"
# exclude = "leave-out.txt"              # pictures to leave out: edgeopt check photos --exclude leave-out.txt
# group_near = true                      # keep near duplicates in one split

[model]
name = "tf_efficientnet_lite0"           # see `edgeopt models`; torchvision:NAME; module:attr of your own
# arguments.drop_path_rate = 0.1         # of its constructor; also lists, as in arguments.depths = [1, 1, 3, 1]
# weights = "backbone.safetensors"       # default: pretrained weights

[train]
epochs = 20
# lr = 0.001                             # "auto": by a range test
# batch_size = 32                        # "auto": by a probe
# optimizer = "adamw"                    # "adam", "sgd", "momentum", "rmsprop", or another of timm's
# schedule = "cosine"                    # "step", "one_cycle", "exponential", "plateau"
# loss = "cross_entropy"                 # "weighted" or "focal" where classes are rare, or "module:attr"
# dropout = 0.2                          # also drop_path, weight_decay, l1, label_smoothing, clip_grad, ema_decay
# augment = "default"                    # "none", "light", "default" or "heavy"
# flip = false                           # where left and right differ, as for digits and text

[augment]                                # single values in place of the preset's
# rotation = 15                          # degrees; also scale, crop, shift, hue, blur, noise, erase, policy, ...
# mixup = 0.2                            # alpha; off in the last tenth of the epochs, as is cutmix

[compress]
int8 = true                              # ranges from calibration pictures, then quantization-aware training
# prune = 0.3                            # remove this fraction of the MACs first
# calibration = "default"                # "fast", "default" or "thorough"
# int8_outputs = false                   # of convolutions before swish and the like: faster on OpenVINO alone

[bench]
seconds = 20

[budget]                                 # a missed line makes `edgeopt run` exit with 3
max_drop_points = 1.0                    # top-1 may fall by this many percentage points
# min_speedup = 1.5                      # over the same backend in float
"""


@click.command("init")
@click.argument("path", type=click.Path(path_type=Path), default=Path("edgeopt.toml"))
def command(path: Path) -> None:
    """Write a commented recipe to PATH; an existing file is never overwritten."""
    try:
        with path.open("x", encoding="utf-8") as handle:
            handle.write(RECIPE.format(name=path.name))
    except FileExistsError:
        raise ConfigError(f"{path} exists already", fix="give another name: edgeopt init other.toml") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", fix="give another path") from None
    click.echo(f"wrote {path}; edit it, then: edgeopt run {path}")
