"""Quantized models: placement by scheme, bit-equal reload, training, and refusal of configs that do not fit."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeopt.compress import nncf_placement
from edgeopt.compress.quantize import (
    is_quantized,
    named_quantizers,
    quantize,
    quantizer_config,
    quantizer_parameters,
    rebuild_quantized,
    remove_quantizers,
)
from edgeopt.config import CompressConfig
from edgeopt.errors import ModelError, TrainingError
from edgeopt.schemes import SCHEMES, get_scheme
from edgeopt.stages.training import TrainingPlan, own_rates
from edgeopt.train.freezing import freeze_batchnorm_statistics
from edgeopt.train.loop import LoopConfig, train
from edgeopt.train.objectives import CrossEntropy
from edgeopt.train.optimizer import make_optimizer
from tests.tiny_torch import PlainNet, TinyNet, calibration, tiny_net


@pytest.fixture(scope="module")
def net() -> TinyNet:
    return tiny_net()


@pytest.fixture(scope="module")
def quantized(net: TinyNet) -> nn.Module:
    return quantize(net, calibration(), scheme=get_scheme("u8a8w"))


@pytest.fixture
def kept_quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr().out == "", "stdout belongs to --json"


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_every_layer_is_quantized_as_the_scheme_says(net: TinyNet, scheme: Any, kept_quiet: None) -> None:
    model = quantize(net, calibration(), scheme=scheme)
    quantizers = dict(named_quantizers(model))
    weights = [quantizer for quantizer in quantizers.values() if quantizer.per_channel]
    activations = [quantizer for quantizer in quantizers.values() if not quantizer.per_channel]
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(weights) == len(layers)
    assert {(q.low, q.high, q.zero_point) for q in weights} == {(-scheme.weight_max, scheme.weight_max, 0)}
    if scheme.activation_symmetric:
        assert {(q.low, q.high, q.zero_point) for q in activations} == {(-128, 127, 0)}
    else:
        assert {(q.low, q.high) for q in activations} == {(0, 255)}
        assert any(q.zero_point for q in activations)
    logits, original = model(calibration()[0]), net(calibration()[0])
    assert (logits - original).abs().mean() < 0.1 * original.std()
    assert not torch.equal(logits, original)


def test_calibration_leaves_the_model_alone_and_reports_progress(net: TinyNet) -> None:
    before = copy.deepcopy(net.state_dict())
    seen: list[tuple[int, int]] = []
    quantize(net, calibration(), scheme=get_scheme("u8a8w"), progress=lambda done, total: seen.append((done, total)))
    assert not is_quantized(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert seen[-1] == (3, 3)
    assert seen == sorted(seen)


@pytest.mark.parametrize("range_estimator", ["percentile", "histogram"])
def test_other_range_estimators_give_other_ranges(net: TinyNet, quantized: nn.Module, range_estimator: str) -> None:
    other = quantize(net, calibration(), scheme=get_scheme("u8a8w"), range_estimator=range_estimator)
    scales = [quantizer.scale for _, quantizer in named_quantizers(other) if not quantizer.per_channel]
    minmax = [quantizer.scale for _, quantizer in named_quantizers(quantized) if not quantizer.per_channel]
    assert sum(float(a) < float(b) for a, b in zip(scales, minmax, strict=True)) > len(scales) / 2


def test_reload_from_safetensors_and_json_is_bit_equal(net: TinyNet, quantized: nn.Module, tmp_path: Path) -> None:
    save_file(quantized.state_dict(), tmp_path / "model.safetensors")
    text = json.dumps(quantizer_config(quantized))
    again = rebuild_quantized(TinyNet().eval(), json.loads(text), get_scheme("u8a8w"), calibration()[0][:1])
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        for x in (calibration()[0], calibration()[1][:1], calibration()[2].to(memory_format=torch.channels_last)):
            assert torch.equal(again(x), quantized(x))
    assert quantizer_config(again) == quantizer_config(quantized)


def test_copies_answer_alike_and_apart(quantized: nn.Module) -> None:
    x = calibration()[0]
    twin = copy.deepcopy(quantized)
    with torch.no_grad():
        expected = quantized(x)
        assert torch.equal(twin(x), expected)
        assert torch.equal(twin(x[:3]), expected[:3]), "any batch size"
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(twin(x), expected)
        assert torch.equal(quantized(x), expected)


def test_training_moves_weights_and_scales_and_lowers_the_loss(quantized: nn.Module) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(quantized).train()
    freeze_batchnorm_statistics(model)
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    statistics = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    x = torch.cat(calibration())
    labels = (x[:, 0].mean((1, 2)) > 0).long() + 2 * (x[:, 1].mean((1, 2)) > 0).long()
    scales = quantizer_parameters(model)
    assert len(scales) == len(named_quantizers(model))
    before = [scale.detach().clone() for scale in scales]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    moved = [not torch.equal(old, new) for old, new in zip(before, scales, strict=True)]
    assert all(moved)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in statistics.items())


def test_answers_are_those_of_nncfs_own_quantizers_up_to_rounding_ties(
    net: TinyNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, theirs = torch.cat(calibration()), []

    def swap(model: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            theirs.append(model(x))
        original(model, *rest)

    original = nncf_placement._swap
    monkeypatch.setattr(nncf_placement, "_swap", swap)
    with torch.no_grad():
        # Centred ranges are our own: NNCF leaves every range as it was seen.
        as_seen = replace(get_scheme("u8a8w"), activation_centred=False)
        ours = quantize(net, calibration(), scheme=as_seen)(x)
        apart = (ours - theirs[0]).abs()
        rounding = (ours - net(x)).abs()
    assert apart.mean() < 0.1 * rounding.mean(), "what differs is ties, next to what quantizing itself changes"
    assert (ours.argmax(dim=1) == theirs[0].argmax(dim=1)).float().mean() >= 0.99


def test_a_loss_that_is_not_finite_ends_quantization_aware_training_with_advice(
    quantized: nn.Module, tmp_path: Path
) -> None:
    x = torch.cat(calibration())
    x[3, 0, 5, 5] = math.nan  # a network that has begun to diverge
    with torch.no_grad():
        assert quantized(x)[3].isnan().any(), "rounding does not hide it"
    with pytest.raises(TrainingError, match=r"became nan in epoch 1, step 1") as caught:
        train(
            copy.deepcopy(quantized),
            batches=lambda epoch, first: [(x, torch.zeros(len(x), dtype=torch.int64))],
            steps_per_epoch=1,
            evaluate=lambda model: {"top1": 0.5, "loss": 1.0},
            objective=CrossEntropy(),
            config=LoopConfig(epochs=1, lr=1e-4, layer_decay=1.0, precision="fp32", memory_format="contiguous"),
            folder=tmp_path,
        )
    assert "lower lr (now 0.0001)" in str(caught.value.fix)


def test_scales_have_a_rate_of_their_own_and_no_weight_decay(quantized: nn.Module) -> None:
    plan = TrainingPlan.for_qat(CompressConfig(lr=0.002, scale_lr=3.0))
    groups = make_optimizer(quantized, plan.loop, extra_groups=own_rates(plan, quantized)).param_groups
    scales = {id(scale) for scale in quantizer_parameters(quantized)}
    for group in groups:
        of_scales = [id(parameter) in scales for parameter in group["params"]]
        assert all(of_scales) or not any(of_scales)
        assert group["initial_lr"] == pytest.approx(0.006 if all(of_scales) else 0.002)
        assert group["weight_decay"] == 0.0


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 16:  # of all layers, it is this one that fails
            raise ValueError("cannot do 16")
        return x


def test_a_model_that_cannot_be_followed_is_refused_with_the_module(net: TinyNet) -> None:
    model = copy.deepcopy(net)
    model.add_module("stem_norm", nn.Sequential(model.stem_norm, Picky()))
    with pytest.raises(ModelError, match=r"cannot be quantized at stem_norm\.1: cannot do 16") as caught:
        quantize(model, calibration(), scheme=get_scheme("u8a8w"))
    assert "the forward method of stem_norm.1" in str(caught.value.fix)


def test_removing_quantizers_gives_the_plain_model_back(net: TinyNet, quantized: nn.Module) -> None:
    plain = remove_quantizers(quantized)
    assert not is_quantized(plain)
    assert set(plain.state_dict()) == set(net.state_dict())
    x = calibration()[0]
    with torch.no_grad():
        assert (plain(x) - net(x)).abs().max() < 0.2 * net(x).std(), "only biases were corrected"
    assert is_quantized(quantize(plain, calibration(), scheme=get_scheme("s8a8w")))


def test_biases_make_up_for_what_rounding_shifts() -> None:
    """All weights of a layer but one are rounded to zero, though on bright pictures they add up to something."""
    net = PlainNet().eval()
    with torch.no_grad():
        net.convs[0].weight.fill_(0.004)
        net.convs[0].weight[:, 0, 1, 1] = 1.27  # of which a hundredth part is a step
        net.norms[0].bias.fill_(0.5)  # one of nothing is left alone by NNCF
    pictures = [batch.abs() for batch in calibration()]
    model = quantize(net, pictures, scheme=get_scheme("u8a8w"))
    lost = net.convs[0].weight.detach() * (net.convs[0].weight < 0.01)
    shift = nn.functional.conv2d(torch.cat(pictures), lost, stride=2, padding=1).mean(dim=(0, 2, 3))
    assert shift.min() > 0.03
    found = model.get_submodule("norms.0").bias - net.norms[0].bias
    torch.testing.assert_close(found.detach(), shift, rtol=0.1, atol=0.0)


def test_ignored_modules_stay_in_float(net: TinyNet) -> None:
    model = quantize(net, calibration(), scheme=get_scheme("u8a8w"), ignored=["stem"])
    names = [name for name, _ in named_quantizers(model)]
    assert not any("stem/" in name for name in names)
    assert any("head/" in name for name in names)


class Swish(nn.Module):
    """A convolution before a HardSwish, one before a SiLU, and one whose output is quantized anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.norm(self.first(x)))
        x = nn.functional.relu(self.third(nn.functional.silu(self.second(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_open_convolutions_are_closed_on_request() -> None:
    torch.manual_seed(0)
    net, scheme = Swish().eval(), get_scheme("u8a7w")
    nn.init.constant_(net.norm.weight, 30.0)  # far below -3, where HardSwish is zero
    left = dict(named_quantizers(quantize(net, calibration(), scheme=scheme)))
    closed = quantize(net, calibration(), scheme=scheme, int8_outputs=True)
    quantizers = dict(named_quantizers(closed))
    added = [name for name in quantizers if name not in left]
    assert added == ["post_hooks.norm/batch_norm/0__0.0", "post_hooks.second/conv2d/0__0.0"]
    before_swish = quantizers[added[0]]
    assert before_swish.scale * (0 - before_swish.zero_point) == pytest.approx(-3.0, abs=float(before_swish.scale))
    again = rebuild_quantized(Swish().eval(), quantizer_config(closed), scheme, calibration()[0][:1])
    again.load_state_dict(closed.state_dict())
    assert torch.equal(again(calibration()[0]), closed(calibration()[0]))


class Capped(nn.Module):
    """Convolutions before a ReLU6, before a swish, and one that the next convolution and an addition both read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(width, 4, 3, padding=1) for width in (3, 4, 4, 4))
        self.norm, self.cap = nn.BatchNorm2d(4), nn.ReLU6()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.cap(self.norm(self.first(x))))
        x = x + nn.functional.silu(self.fourth(nn.functional.silu(self.third(x))))
        x = nn.functional.layer_norm(x, x.shape[1:])
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_int8_outputs_are_fused_by_onnx_runtime_behind_a_relu6_and_before_a_residual(tmp_path: Path) -> None:
    """Two quantizers in a row, or a second reader in float, left such convolutions in float."""
    from edgeopt.backends.onnxruntime_audit import audit
    from edgeopt.export.qdq import export_qdq

    torch.manual_seed(0)
    scheme = get_scheme("u8a7w")
    model = quantize(Capped().eval(), calibration(), scheme=scheme, int8_outputs=True)
    names = dict(named_quantizers(model))
    assert not any(name.startswith("post_hooks.norm/") for name in names), "the one behind the ReLU6 is enough"
    export_qdq(model, tmp_path / "model.onnx", input_shape=(3, 32, 32), scheme=scheme)
    report = audit(tmp_path / "model.onnx", "CPUExecutionProvider", torch.zeros(1, 3, 32, 32).numpy())
    assert (report.int8_layers, report.compute_layers) == (5, 5), report.float_layers
    again = rebuild_quantized(Capped().eval(), quantizer_config(model), scheme, calibration()[0][:1])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(calibration()[0]), model(calibration()[0]))


class Ghost(nn.Module):
    """GhostNet's: half of the maps are made of the others, and both go through a depthwise convolution."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.primary, self.cheap = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        own = nn.functional.relu(self.primary(x))
        both = torch.cat([own, nn.functional.relu(self.cheap(own))], dim=1)
        both = both[:, : self.kept] if self.kept else both  # as timm does, whether it takes channels away or not
        logits: Tensor = self.head(nn.functional.relu(self.point(self.depthwise(both))).mean((2, 3)))
        return logits


@pytest.mark.parametrize("kept", [0, 16])
def test_a_depthwise_convolution_of_maps_on_two_grids_is_int8_in_onnx_runtime(tmp_path: Path, kept: int) -> None:
    from edgeopt.backends.onnxruntime_audit import audit
    from edgeopt.export.qdq import export_qdq

    torch.manual_seed(0)
    scheme = get_scheme("u8a7w")
    left = dict(named_quantizers(quantize(Ghost(kept).eval(), calibration(), scheme=scheme)))
    model = quantize(Ghost(kept).eval(), calibration(), scheme=scheme, int8_outputs=True)
    assert sum(name not in left for name in dict(named_quantizers(model))) == 1
    export_qdq(model, tmp_path / "model.onnx", input_shape=(3, 32, 32), scheme=scheme)
    report = audit(tmp_path / "model.onnx", "CPUExecutionProvider", torch.zeros(1, 3, 32, 32).numpy())
    assert (report.int8_layers, report.compute_layers) == (5, 5), report.float_layers


class LiteMLA(nn.Module):
    """EfficientViT's linear attention: what a place reads is divided by its weights' sum, which is often small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 24, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.stem(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        query, key = nn.functional.relu(query - 0.4), nn.functional.relu(key)
        read = query @ (key.transpose(1, 2) @ nn.functional.pad(value, (0, 1), value=1.0))
        answers: Tensor = self.head(read[..., :-1] / (read[..., -1:] + 1e-15)).mean(1)
        return answers


def test_what_a_network_divides_by_is_not_rounded_to_zero(tmp_path: Path) -> None:
    from edgeopt.export.qdq import export_qdq

    torch.manual_seed(0)
    net, scheme = LiteMLA().eval(), get_scheme("u8a7w")
    model = quantize(net, calibration(), scheme=scheme)
    hooks = {name.split(".")[1] for name, _ in nncf_placement.hook_storage(model).named_hooks()}
    assert {"/relu/0__0", "/relu/1__0", "/matmul/0__0", "/pad/0__0"} <= hooks, "its products are of int8 tensors"
    assert not hooks & {"/matmul/1__0", "/__getitem__/1__0", "/add/0__0"}
    answers, expected = model(calibration()[0]), net(calibration()[0])
    assert (answers - expected).std() < 0.2 * expected.std()
    export_qdq(model, tmp_path / "model.onnx", input_shape=(3, 32, 32), scheme=scheme)
    answers.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


class ComputedBias(nn.Module):
    """BEiT's and EVA's: queries and values have a bias, keys have none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(24, 3)
        self.weight, self.query_bias, self.value_bias = (
            nn.Parameter(torch.randn(size)) for size in ((24, 8), (8,), (8,))
        )
        self.register_buffer("key_bias", torch.zeros(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat((self.query_bias, self.key_bias, self.value_bias))
        places = nn.functional.relu(self.stem(x)).flatten(2).transpose(1, 2)
        answers: Tensor = self.head(nn.functional.linear(places, self.weight, bias).mean(1))
        return answers


def test_a_bias_may_be_put_together_from_parameters() -> None:
    torch.manual_seed(0)
    net, scheme = ComputedBias().eval(), get_scheme("u8a8w")
    model = quantize(net, calibration(), scheme=scheme)
    hooks = {name for name, _ in nncf_placement.hook_storage(model).named_hooks()}
    assert {"pre_hooks./linear/0__1.0", "post_hooks./relu/0__0.0"} <= hooks
    x = calibration()[0]
    answers, expected = model(x), net(x)
    assert (answers - expected).std() < 0.05 * expected.std()
    again = rebuild_quantized(copy.deepcopy(net), quantizer_config(model), scheme, x[:1])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), answers)
    answers.sum().backward()
    assert model.get_parameter("query_bias").grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "no calibration batches"),
        ({"batches": [torch.zeros(3, 32, 32)]}, "not float32 NCHW"),
        ({"batches": [torch.zeros(1, 3, 32, 32, dtype=torch.uint8)]}, "not float32 NCHW"),
        ({"batches": [torch.full((1, 3, 32, 32), torch.nan)]}, "not finite"),
        ({"ignored": ["steam"]}, 'did you mean "stem"'),
        ({"range_estimator": "min-max"}, 'did you mean "minmax"'),
    ],
)
def test_wrong_arguments_are_refused(net: TinyNet, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        quantize(net, **{"batches": calibration(), "scheme": get_scheme("u8a8w"), **arguments})


def test_quantizing_twice_is_refused(quantized: nn.Module) -> None:
    with pytest.raises(ModelError, match="quantized already"):
        quantize(quantized, calibration(), scheme=get_scheme("u8a8w"))
    with pytest.raises(ModelError, match="not quantized"):
        quantizer_config(TinyNet())


def _set(key: str, value: Any, index: int = 0) -> Any:
    def change(config: dict[str, Any]) -> None:
        config["quantizers"][index][key] = value

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config.update(format=2),
        lambda config: config.update(quantizers=[]),
        lambda config: config.update(quantizers="all"),
        lambda config: config["quantizers"].append(config["quantizers"][0]),
        lambda config: config["quantizers"][0].update(module_path="os"),
        _set("hooks", ["post_hooks.nowhere/relu/0__0.0"]),
        _set("hooks", ["__class__"]),
        _set("hooks", []),
        _set("shape", [10**9]),
        _set("shape", [4, 4, 4, 4]),
        _set("shape", [7, 1, 1, 1]),
        _set("shape", "x"),
        _set("low", -127.0),
        _set("high", True),
        _set("zero_point", 300),
        _set("max_scale", -1.0),
        _set("max_scale", float("nan")),
    ],
)
def test_a_config_that_does_not_fit_is_refused(quantized: nn.Module, damage: Any) -> None:
    config = copy.deepcopy(quantizer_config(quantized))
    damage(config)
    with pytest.raises(ModelError, match="do not fit this model"):
        rebuild_quantized(TinyNet().eval(), config, get_scheme("u8a8w"), calibration()[0][:1])


def test_a_config_of_another_scheme_or_architecture_is_refused(quantized: nn.Module) -> None:
    config = quantizer_config(quantized)
    with pytest.raises(ModelError, match="not of scheme s8a8w"):
        rebuild_quantized(TinyNet().eval(), config, get_scheme("s8a8w"), calibration()[0][:1])
    other = TinyNet().eval()
    other.wide = nn.Conv2d(8, 20, 3, padding=1)
    other.head = nn.Linear(20, 4)
    with pytest.raises(ModelError, match=r"do not fit this model: .*wide"):
        rebuild_quantized(other, config, get_scheme("u8a8w"), calibration()[0][:1])


def test_a_bare_container_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match="a bare Sequential") as error:
        quantize(nn.Sequential(nn.Conv2d(3, 4, 3)), calibration(), scheme=get_scheme("u8a8w"))
    assert "forward method" in str(error.value)


def test_nothing_is_compiled_and_telemetry_is_off() -> None:
    script = (
        "import torch, torch.utils.cpp_extension as e, torch._dynamo as d\n"
        "def refuse(*a, **k): raise SystemExit('compiled something')\n"
        "e.load = e.load_inline = refuse; d.optimize = refuse; torch.compile = refuse\n"
        "from edgeopt.compress.quantize import quantize\n"
        "from edgeopt.schemes import get_scheme\n"
        "from tests.tiny_torch import TinyNet\n"
        "quantize(TinyNet().eval(), [torch.randn(2, 3, 32, 32)], scheme=get_scheme('u8a7w'))\n"
        "from nncf.telemetry.wrapper import NNCFTelemetry, telemetry\n"
        "print('telemetry', isinstance(telemetry, NNCFTelemetry))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NNCF", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "telemetry False"
