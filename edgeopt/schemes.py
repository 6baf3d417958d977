"""The int8 layouts edgeopt can write, as data: names say what the numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgeopt.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Scheme:
    """One int8 layout. Activations are per tensor, weights symmetric per output channel, both stored in 8 bits."""

    name: str
    activation_signed: bool
    activation_symmetric: bool  # zero point 0 (signed) when true
    weight_bits: int  # 7 keeps u8*s8 pair sums inside int16 on x86 without VNNI
    title: str
    # Zero is the middle code of ranges that reach about as far to both sides. OpenVINO makes int8 with zero point 0 of
    # it, which spares its kernels a correction; without VNNI they would halve the weights' codes instead.
    activation_centred: bool = False

    @property
    def weight_max(self) -> int:
        """Largest magnitude of a stored weight: 127 for 8 bits, 63 for 7."""
        return int(2 ** (self.weight_bits - 1) - 1)


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme(
                "u8a8w",
                False,
                False,
                8,
                "uint8 asymmetric activations, int8 weights: CPUs with VNNI, AMX or NEON dot-product",
                activation_centred=True,
            ),
            Scheme("u8a7w", False, False, 7, "uint8 asymmetric activations, 7-bit weights: x86 CPUs without VNNI"),
            Scheme("s8a8w", True, True, 8, "int8 symmetric activations, int8 weights: TensorRT"),
        )
    }
)


def made_elsewhere(scheme: Scheme) -> str:
    """How ONNX Runtime's quantizer makes a float file of ``scheme``, for classifiers that edgeopt cannot train."""
    kind = "QInt8" if scheme.activation_signed else "QUInt8"
    typed = (
        f"quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.{kind}, weight_type=QuantType.QInt8"
    )
    if scheme.weight_bits < 8:
        typed += ", reduce_range=True"
    if scheme.activation_symmetric:
        typed += ', extra_options={"ActivationSymmetric": True, "QuantizeBias": False}'
    return f"quantize the float file with onnxruntime.quantization.quantize_static(..., {typed})"


def get_scheme(name: str) -> Scheme:
    """The scheme called ``name``; raises ConfigError with the known names otherwise."""
    if name not in SCHEMES:
        raise ConfigError(
            f'unknown scheme "{name}"{did_you_mean(name, SCHEMES)}', fix=f"use one of {', '.join(SCHEMES)}"
        )
    return SCHEMES[name]
