"""The networks of the table of engines, and the files each tool makes of them: ours, the rivals', the float ones.

Weights are random and pictures painted: how long an engine takes, and what of it runs in int8, depends on neither.
Ours are quantizers placed and ranges read as `edgeopt compress --int8` does before it trains, then the export's QDQ.
Every file is made once in a network's folder and found there by the next call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.backends.base import Backend
from edgeopt.compress.quantize import quantize
from edgeopt.export.float_onnx import export_float
from edgeopt.export.qdq import export_qdq
from edgeopt.preprocess import PreprocessSpec, normalize
from edgeopt.registry import load_backend
from edgeopt.schemes import Scheme, get_scheme

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

CALIBRATION_PICTURES, CALIBRATION_BATCH = 16, 8
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """One architecture. ``shares`` are the least of the MACs in int8, by backend."""

    key: str
    title: str
    model: str
    shares: dict[str, float]
    size: int = 224
    attention: bool = False

    @property
    def spec(self) -> PreprocessSpec:
        return PreprocessSpec(size=(self.size, self.size))


_ALL: dict[str, float] = {"onnxruntime": 1.0, "openvino": 1.0}
_GATED: dict[str, float] = {"onnxruntime": 0.95, "openvino": 0.95}

NETWORKS = {
    one.key: one
    for one in (
        Network("resnet18", "ResNet-18", "resnet18", _ALL),
        Network("resnet50", "ResNet-50", "resnet50", _ALL),
        Network("mobilenetv2", "MobileNetV2", "mobilenetv2_100", _ALL),
        Network("mobilenetv3", "MobileNetV3-Large", "mobilenetv3_large_100", _GATED),
        Network("efficientnet-b0", "EfficientNet-B0", "efficientnet_b0", _GATED),
        Network("efficientnet-lite0", "EfficientNet-Lite0", "tf_efficientnet_lite0", _ALL),
        # Products of two activations stay float: ONNX Runtime's quantize_static takes these in as well, and has all.
        Network(
            "deit-tiny", "DeiT-Tiny", "deit_tiny_patch16_224", {"onnxruntime": 0.85, "openvino": 0.9}, attention=True
        ),
        # About a millisecond, where the overhead of a session would show; not a row of the issue's.
        Network("efficientnet-lite0-96", "EfficientNet-Lite0", "tf_efficientnet_lite0", _ALL, size=96),
    )
}


def model_of(network: Network) -> Any:
    """The float network in eval mode, with the same random weights every time."""
    import timm
    import torch

    torch.manual_seed(0)
    arguments = {"img_size": network.size} if network.attention else {}
    return timm.create_model(network.model, pretrained=False, num_classes=1000, **arguments).eval()


def pictures_of(network: Network, count: int = CALIBRATION_PICTURES) -> npt.NDArray[np.uint8]:
    """uint8 (count, height, width, 3), painted."""
    from conftest import paint

    size = (network.size, network.size)
    return np.stack([np.asarray(paint(index % 4, index, size)) for index in range(count)])


def calibration(network: Network) -> list[Float32]:
    """Batches float32 (N, 3, height, width)."""
    pictures = pictures_of(network, CALIBRATION_PICTURES)
    parts = range(0, len(pictures), CALIBRATION_BATCH)
    return [normalize(pictures[start : start + CALIBRATION_BATCH], network.spec) for start in parts]


def scheme_of(backend: Backend) -> Scheme:
    """What this machine's CPU runs exactly."""
    return get_scheme(backend.schemes()[0])


def float_onnx(network: Network, folder: Path) -> Path:
    """The float32 ONNX that every tool but ours starts from."""
    return _made(folder / "float.onnx", lambda path: export_float(model_of(network), path, input_shape=_shape(network)))


def edgeopt_onnx(network: Network, backend: str, folder: Path) -> Path:
    """Our QDQ file for ``backend``: ONNX Runtime's with int8 outputs before swish and the like, as compress chooses."""
    import torch

    scheme = scheme_of(load_backend(backend))

    def make(path: Path) -> None:
        batches = [torch.from_numpy(batch) for batch in calibration(network)]
        model = quantize(model_of(network), batches, scheme=scheme, int8_outputs=backend == "onnxruntime")
        export_qdq(model, path, input_shape=_shape(network), scheme=scheme)

    return _made(folder / f"edgeopt-{backend}-{scheme.name}.onnx", make)


#: Settings of ONNX Runtime's quantize_static that its documentation recommends for CPUs; the fastest is its row.
STATIC = {
    "u8s8, per channel": {"activation": "QUInt8", "weight": "QInt8", "per_channel": True},
    "u8s8, per tensor": {"activation": "QUInt8", "weight": "QInt8", "per_channel": False},
    "u8u8, per tensor": {"activation": "QUInt8", "weight": "QUInt8", "per_channel": False},
    "s8s8, per channel": {"activation": "QInt8", "weight": "QInt8", "per_channel": True},
}
#: NNCF's presets for OpenVINO models: symmetric activations, or asymmetric where they go below zero.
NATIVE = ("mixed", "performance")


def static_onnx(network: Network, setting: str, folder: Path) -> Path:
    """ONNX Runtime's own quantization of the float file, after its own pre-processing."""
    stated = STATIC[setting]
    reduced = scheme_of(load_backend("onnxruntime")).weight_bits == 7  # as its documentation says for AVX2

    def make(path: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.batches = iter(calibration(network))

            def get_next(self) -> dict[str, Float32] | None:
                batch = next(self.batches, None)
                return None if batch is None else {"input": batch}

        prepared = path.with_suffix(".prepared.onnx")
        quant_pre_process(str(float_onnx(network, folder)), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=bool(stated["per_channel"]),
            reduce_range=reduced,
            activation_type=getattr(QuantType, str(stated["activation"])),
            weight_type=getattr(QuantType, str(stated["weight"])),
        )
        prepared.unlink()

    return _made(folder / f"static-{setting.replace(', ', '-').replace(' ', '-')}.onnx", make)


def native_xml(network: Network, preset: str, folder: Path) -> Path:
    """NNCF's quantization of OpenVINO's own model, as IR."""

    def make(path: Path) -> None:
        import openvino

        from edgeopt.compress.nncf_placement import import_nncf

        nncf = import_nncf()
        quantized = nncf.quantize(
            openvino.Core().read_model(str(float_onnx(network, folder))),
            nncf.Dataset([{"input": batch} for batch in calibration(network)]),
            preset=getattr(nncf.QuantizationPreset, preset.upper()),
            subset_size=-(-CALIBRATION_PICTURES // CALIBRATION_BATCH),
            model_type=nncf.ModelType.TRANSFORMER if network.attention else None,
        )
        openvino.save_model(quantized, str(path), compress_to_fp16=False)

    return _made(folder / f"native-{preset}.xml", make)


def _shape(network: Network) -> tuple[int, int, int]:
    return network.spec.input_shape


def _made(path: Path, make: Callable[[Path], object], beside: Sequence[str] = (".bin",)) -> Path:
    """``path``, by ``make`` when it is not there; what is half made has another name."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_name(f"making-{path.name}")
        make(making)
        for ending in beside:
            if making.with_suffix(ending).exists():
                making.with_suffix(ending).rename(path.with_suffix(ending))
        making.rename(path)
    return path
