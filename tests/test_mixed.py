"""Named layers of int8 models back in float: what is changed, what is not, and how engines and audits see it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edgeopt import Recipe, Run, api
from edgeopt.backends.base import FusionReport
from edgeopt.cli.build_cmd import command
from edgeopt.compress.mixed import in_float, int8_layers
from edgeopt.compress.quantize import named_quantizers, quantize, quantizer_config, rebuild_quantized
from edgeopt.compress.sensitivity import quantizers_of_layers
from edgeopt.console import Silent
from edgeopt.errors import ModelError
from edgeopt.pipeline import STEPS, Journey
from edgeopt.schemes import get_scheme
from edgeopt.stages.built import Built, _share_where_asked
from tests.tiny_torch import PlainNet, calibration, tiny_net

SCHEME = get_scheme("u8a7w")


@pytest.fixture(scope="module")
def quantized() -> nn.Module:
    return quantize(tiny_net(), calibration(), scheme=SCHEME)


def test_only_the_weights_of_the_named_layers_are_no_longer_rounded(quantized: nn.Module) -> None:
    example = calibration()[0][:1]
    known = list(quantizers_of_layers(quantized, example))
    first, *others = known
    mixed = in_float(quantized, example, [first])
    assert list(quantizers_of_layers(mixed, example)) == others
    before, after = (dict(named_quantizers(model)) for model in (quantized, mixed))
    [gone] = before.keys() - after.keys()
    assert before[gone].per_channel
    for name, quantizer in after.items():
        assert torch.equal(quantizer.log_scale, before[name].log_scale)
    assert not torch.equal(mixed(example), quantized(example))
    again = rebuild_quantized(tiny_net(), quantizer_config(mixed), SCHEME, example)
    again.load_state_dict(mixed.state_dict())
    assert torch.equal(again(example), mixed(example))
    with pytest.raises(ModelError, match="no layer would be left in int8"):
        in_float(quantized, example, known)


def test_layers_are_named_as_audits_and_profiles_do_or_by_their_module() -> None:
    example = calibration()[0][:1]
    quantized = quantize(PlainNet().eval(), calibration(), scheme=SCHEME)
    known = ["convs.0", "convs.1", "convs.2", "convs.3", "head"]
    assert int8_layers(quantized, example, [f"{known[1]}_quant", f"{known[0]}/WithoutBiases"]) == known[:2]
    assert int8_layers(quantized, example, ["head", "convs"]) == known
    assert int8_layers(quantized, example, ["convs.2"]) == ["convs.2"]
    with pytest.raises(ModelError, match=r'no int8 layer "heat" \(did you mean "head"'):
        int8_layers(quantized, example, ["heat"])


def test_strict_judges_the_layers_that_nobody_asked_to_be_float() -> None:
    fusion: dict[str, Any] = {"int8_share_macs": 0.6, "float_layers": ["a", "b"], "float_shares_macs": [0.25, 0.15]}
    fusion |= {"compute_layers": 10, "int8_layers": 8}
    assert _share_where_asked({**fusion, "float_by_request": []}) == (0.6, "MACs")
    assert _share_where_asked({**fusion, "float_by_request": ["a"]}) == (pytest.approx(0.8), "MACs")
    assert _share_where_asked({**fusion, "float_by_request": ["a", "b"]})[0] == pytest.approx(1.0)
    unknown = {**fusion, "int8_share_macs": None, "float_shares_macs": None, "float_by_request": ["a"]}
    assert _share_where_asked(unknown) == (pytest.approx(8 / 9), "compute layers")


@pytest.mark.slow
def test_an_engine_has_the_named_layers_in_float_and_all_others_in_int8(path_run: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(path_run.path, tmp_path / "run"))
    whole = next(name for name in run.variants() if name.startswith("int8-u8") and "prune" not in name)
    before = {path: path.read_bytes() for path in (run.path / "host" / whole).rglob("*") if path.is_file()}
    typed = ["--target", "onnxruntime", "--target", "openvino", "--variant", whole, "--strict"]
    typed += ["--float-layer", "layer1.0.conv1", "--float-layer", "fc", "--run", str(run.path), "--json"]
    built = json.loads(CliRunner().invoke(command, typed, catch_exceptions=False).stdout)
    mixed = [one for one in built if one["precision"] == "int8"]
    assert [(one["target"], one["variant"]) for one in mixed] == [
        ("onnxruntime", f"{whole}-mixed"), ("openvino", f"{whole}-mixed"),
    ]  # fmt: skip
    for one in mixed:
        fusion = one["fusion"]
        assert len(fusion["float_layers"]) == 2, fusion["float_layers"]
        assert fusion["float_by_request"] == fusion["float_layers"]
        assert fusion["int8_layers"] == fusion["compute_layers"] - 2
        assert 0.8 < fusion["int8_share_macs"] < 1.0
        assert one["parity"]["ok"]
    assert run.variant(f"{whole}-mixed")["float_layers"] == ["layer1.0.conv1", "fc"]
    assert {path: path.read_bytes() for path in before} == before, "the variant it is made of stays as it is"
    with pytest.raises(ModelError, match=r'no int8 layer "layer1.0.conv3" \(did you mean "layer1.0.conv'):
        api.build(run, "onnxruntime", variants=[whole], float_layers=["layer1.0.conv3"])
    # The same by a recipe: of the recipe's every int8 variant, and made before.
    values = {
        "targets": ["onnxruntime"],
        "data": {"path": "nowhere"},
        "build": {"float_layers": ["layer1.0.conv1", "fc"]},
    }
    [step] = [one for one in STEPS if one.__name__ == "_build"]
    step(Journey(Recipe.model_validate(values), None, False, Silent(), run=run))
    pruned = [name for name in run.variants() if name.startswith(f"{whole}-prune")]
    assert {f"onnxruntime/{name}" for name in pruned if name.endswith("-mixed")} <= set(run.engines())
    assert any(name.endswith("-mixed") for name in pruned)


@pytest.mark.parametrize(
    ("left", "requested", "said"),
    [
        ((), (), "5 of 5 compute layers in int8"),
        (("a",), (), "4 of 5 compute layers in int8 with 90.0% of the MACs (in float: a; see fusion.json)"),
        (("a",), ("a",), "4 of 5 compute layers in int8, 1 in float by request"),
        (
            tuple("abcde"),
            ("a",),
            "0 of 5 compute layers in int8 with 50.0% of the MACs (in float: b, c, d and 1 more; see fusion.json), "
            "1 in float by request",
        ),
    ],
)
def test_the_line_on_an_engine_names_what_is_float_unasked(
    left: tuple[str, ...], requested: tuple[str, ...], said: str
) -> None:
    share = 1.0 - 0.1 * len(left)
    fusion = FusionReport("onnxruntime", 5, 5 - len(left), left, "planted", share, float_by_request=requested)
    record = {"engine": "engine.onnx", "precision": "int8", "fusion": fusion.to_json(), "parity": None}
    assert Built("onnxruntime", "int8-u8a8w", record, skipped=False).summary() == (
        f"onnxruntime/int8-u8a8w: built, {said}"
    )
