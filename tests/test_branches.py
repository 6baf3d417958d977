"""Networks trained with parallel branches: the branches of a block are one layer in what is quantized and exported."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, TrainConfig, api, models
from edgeopt.compress.latency.slices import Slicer
from edgeopt.compress.prune import prune
from edgeopt.compress.quantize import quantize, quantizer_config, rebuild_quantized, remove_quantizers
from edgeopt.config import Target
from edgeopt.errors import ModelError
from edgeopt.export.float_onnx import export_float
from edgeopt.export.noise import half_noise
from edgeopt.models.branches import is_merged, merge, merge_branches, merged_names
from edgeopt.registry import load_backend
from edgeopt.schemes import get_scheme

SHAPE = (3, 32, 32)
SCHEME = get_scheme("u8a8w")
#: By name: how many of its convolutions, products and sums are left.
BRANCHED = {
    "mobileone_s0": 44,
    "repvgg_a0": 23,
    "fastvit_t8": 63,
    "repvit_m0_9": 130,
    "repghostnet_050": 112,
    "lcnetv2_base": 48,
}


def lively(name: str) -> nn.Module:
    """A network of timm's whose BatchNorms have seen something, so that a branch merged wrongly shows."""
    torch.manual_seed(0)
    made = models.create(name, num_classes=5, pretrained=False, image_size=32).model
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    for parameter in made.parameters():
        if not parameter.any():  # the classifier, which starts silent
            nn.init.normal_(parameter, std=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def repvgg() -> nn.Module:
    return lively("repvgg_a0")


@pytest.fixture(scope="module")
def quantized(repvgg: nn.Module) -> nn.Module:
    merged = merge_branches(repvgg, SHAPE).model
    return quantize(merged, [torch.randn(4, *SHAPE)], scheme=SCHEME)


@pytest.mark.parametrize("name", BRANCHED)
def test_merged_a_network_takes_fewer_layers_and_answers_the_same(name: str) -> None:
    model = lively(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merging = merge_branches(model, SHAPE)
    assert not merging.problem
    assert merging.after == BRANCHED[name] < merging.before
    assert f"{merging.after} convolutions, products and sums instead of {merging.before}" in merging.said
    pictures = torch.randn(3, *SHAPE)
    with torch.no_grad():
        answers, expected = merging.model(pictures), model(pictures)
    assert (answers - expected).abs().max() <= 1e-4 * expected.abs().max(), "each is a sum of numbers as large as any"
    assert not is_merged(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "it is a copy"


@pytest.mark.parametrize("name", ["resnet18", "levit_128s.fb_dist_in1k", "tiny_vit_5m_224"])
def test_a_network_without_branches_stays_itself(name: str) -> None:
    """LeViT and TinyViT merge a BatchNorm into its layer, which training wants apart and the export folds anyway."""
    size = 224 if name != "resnet18" else 32
    model = models.create(name, num_classes=5, pretrained=False, image_size=size).model
    merging = merge_branches(model, (3, size, size))
    assert merging.model is model
    assert not merging.said
    assert not is_merged(model)


def test_all_that_could_be_trained_still_can_be() -> None:
    """timm's blocks detach all they hold when they merge, MobileOne-S4's squeeze-and-excitation with them."""
    model = models.create("mobileone_s4", num_classes=5, pretrained=False, image_size=32).model
    head = next(name for name, _ in model.named_parameters() if name.endswith("head.fc.weight"))
    model.get_parameter(head).requires_grad_(False)
    merged = merge_branches(model, SHAPE).model
    assert any(".se." in name or ".attn." in name for name, _ in merged.named_parameters())
    assert {name for name, parameter in merged.named_parameters() if not parameter.requires_grad} == {head}


@pytest.mark.parametrize("name", ["mobileone_s0", "fastvit_t8", "lcnetv2_base"])
def test_a_pruned_network_is_merged_too(name: str) -> None:
    """Blocks of FastViT and LCNetV2 make their layer as wide as they were made, not as they are."""
    found = prune(lively(name), fraction=0.3, example=torch.zeros(1, *SHAPE), importance="l2")
    merging = merge_branches(found.model, SHAPE)
    assert not merging.problem
    assert merging.after == BRANCHED[name]


class Odd(nn.Module):
    """A user's network, whose block merges as ``how`` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.block = Block(how)
        self.head = nn.Linear(4, 5)
        if how == "silent":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        answers: Tensor = self.head(self.block(pictures).mean((2, 3)))
        return answers


class Block(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.how = how

    def forward(self, pictures: Tensor) -> Tensor:
        both: Tensor = self.left(pictures) + self.right(pictures)
        return both

    def fuse(self) -> nn.Module | None:
        if self.how == "fails":
            raise RuntimeError("not after training")
        if self.how == "nothing":
            return None
        made = nn.Conv2d(3, 4, 3, padding=1)
        made.weight.copy_(self.left.weight + self.right.weight)
        made.bias.copy_(self.left.bias + (self.right.bias if self.how == "right" else 0))  # type: ignore[operator, union-attr]
        return made


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("fails", "RuntimeError: not after training"),
        ("nothing", "TypeError: Block.fuse() gives no module"),
        ("silent", "it answers zero to everything"),
        ("wrong", "merged by its own code, the network answers otherwise"),
    ],
)
def test_branches_that_cannot_be_merged_rightly_are_kept_and_it_is_said(how: str, said: str) -> None:
    model = Odd(how)
    merging = merge_branches(model, SHAPE)
    assert merging.model is model
    assert said in merging.said
    assert merging.said.startswith("its branches are not merged and run as they were trained: ")


class Named(Odd):
    """What is merely called so merges nothing, and keeps nothing else from being merged."""

    def __init__(self) -> None:
        super().__init__("right")
        self.reparameterize = True
        self.after = nn.Module()
        self.after.fuse = nn.Conv2d(4, 4, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        answers: Tensor = self.head(self.after.fuse(self.block(pictures)).mean((2, 3)))  # type: ignore[operator]
        return answers


@pytest.mark.parametrize("made", [lambda: Odd("right"), Named])
def test_a_users_own_blocks_merge_by_the_same_convention(made: Callable[[], nn.Module]) -> None:
    model, before = made(), torch.get_rng_state()
    merging = merge_branches(model, SHAPE)
    assert torch.equal(torch.get_rng_state(), before), "merging draws nothing of what training draws from"
    assert isinstance(merging.model.get_submodule("block"), nn.Conv2d)
    assert not merging.problem


def test_quantized_it_is_rebuilt_with_its_branches_merged(repvgg: nn.Module, quantized: nn.Module) -> None:
    config = json.loads(json.dumps(quantizer_config(quantized)))
    assert config["merged"] is True
    again = rebuild_quantized(copy.deepcopy(repvgg), config, SCHEME, torch.zeros(1, *SHAPE))
    again.load_state_dict(quantized.state_dict(), strict=True)
    pictures = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(again(pictures), quantized(pictures))
    assert quantizer_config(again) == config
    plain = remove_quantizers(again)  # to be quantized by another scheme
    assert merge_branches(plain, SHAPE).model is plain
    assert quantizer_config(quantize(plain, [pictures], scheme=get_scheme("s8a8w")))["merged"] is True


def test_an_unbranched_network_says_nothing_of_it() -> None:
    model = models.create("resnet18", num_classes=5, pretrained=False, image_size=32).model
    assert "merged" not in quantizer_config(quantize(model, [torch.randn(2, *SHAPE)], scheme=SCHEME))


def test_whether_it_is_merged_is_true_or_false(repvgg: nn.Module, quantized: nn.Module) -> None:
    config = {**quantizer_config(quantized), "merged": "yes"}
    with pytest.raises(ModelError, match="whether branches are merged"):
        rebuild_quantized(copy.deepcopy(repvgg), config, SCHEME, torch.zeros(1, *SHAPE))


def test_a_branch_that_is_to_stay_in_float_is_the_block_that_it_went_into(repvgg: nn.Module) -> None:
    merged = merge_branches(repvgg, SHAPE).model
    names = merged_names(repvgg, merged, ("stages.0.0.conv_1x1.conv", "stages.0.1", "head.fc", "elsewhere"))
    assert names == ("stages.0.0", "stages.0.1", "head.fc", "elsewhere"), "what nobody knows is refused by name later"
    assert merged_names(merged, merged, ("stages.0.0.conv_1x1.conv", "elsewhere")) == ("stages.0.0", "elsewhere")


def test_cut_a_network_whose_code_cannot_merge_it_keeps_its_branches_and_cannot_be_timed(tmp_path: Path) -> None:
    """Its block makes its one layer as wide as the whole network has it."""
    model = Odd("right").eval()
    found = prune(model, fraction=0.25, example=torch.zeros(1, *SHAPE), importance="l2", round_to=1)
    assert merge_branches(found.model, SHAPE).model is found.model
    assert "its branches are not merged" in merge_branches(found.model, SHAPE).said
    whole = quantize(merge_branches(model, SHAPE).model, [torch.randn(2, *SHAPE)], scheme=SCHEME)
    with pytest.raises(ModelError, match="the branches of this network cannot be merged: RuntimeError"):
        Slicer(model, whole, SCHEME, tmp_path, SHAPE).write(found.history, tmp_path / "cut.onnx")
    with pytest.raises(ModelError, match="the branches of this network cannot be merged: RuntimeError: not after"):
        rebuild_quantized(Odd("fails"), quantizer_config(whole), SCHEME, torch.zeros(1, *SHAPE))


def test_merged_a_networks_own_noise_is_still_that_of_all_its_layers(repvgg: nn.Module) -> None:
    """Parity is judged by it: of a network without BatchNorm, it was that of the classifier alone."""
    pictures = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    branched = half_noise(repvgg, pictures, torch.bfloat16)
    merged = half_noise(merge_branches(repvgg, SHAPE).model, pictures, torch.bfloat16)
    assert 0.2 * branched < merged < 5 * branched


def test_a_candidate_for_a_latency_is_cut_and_then_merged(
    repvgg: nn.Module, quantized: nn.Module, tmp_path: Path
) -> None:
    history = prune(repvgg, fraction=0.3, example=torch.zeros(1, *SHAPE), importance="l2").history
    slicer = Slicer(repvgg, quantized, SCHEME, tmp_path, SHAPE)
    slicer.write([], tmp_path / "all.onnx")
    slicer.write(history, tmp_path / "cut.onnx")
    assert not slicer._exported, "weights of the whole network's file were cut to size"
    cut = merge(prune(repvgg, fraction=0.3, example=torch.zeros(1, *SHAPE), importance="l2").model)
    for path, model in (("all.onnx", merge_branches(repvgg, SHAPE).model), ("cut.onnx", cut)):
        assert _widths(tmp_path / path) == sorted(
            tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Conv2d)
        )


def test_the_float_file_and_the_eager_baseline_have_no_branches(repvgg: nn.Module, tmp_path: Path) -> None:
    """A baseline that computes what nobody would deploy flatters what is held against it."""
    created = models.create("repvgg_a0", num_classes=5, pretrained=False, image_size=32)
    created.model.load_state_dict(repvgg.state_dict())
    run = Run.create(tmp_path / "run", data_root="photos", data={"path": "photos"}, fingerprint="a" * 64)
    variant = run.path / "host" / "float"
    models.save(created.model, created.architecture, variant)
    export_float(merge_branches(repvgg, SHAPE).model, tmp_path / "float.onnx", input_shape=SHAPE)
    target = Target(schema=1, name="pytorch", title="PyTorch", backend="pytorch", precision="fp32")
    pictures = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    with load_backend("pytorch").open(variant, target, precision="fp32", threads=1) as session:
        assert not is_merged(session._model), "nobody has checked it yet"  # type: ignore[attr-defined]
    stage = run.stage("host/float", "export", record="parity.json", key="e" * 64)
    outputs = {"onnx": stage.folder / "model.onnx", "logits": stage.folder / "logits.npy"}
    outputs["onnx"].write_bytes((tmp_path / "float.onnx").read_bytes())
    np.save(outputs["logits"], pictures)
    stage.commit(outputs=outputs, calibration_folder="data/sets/x", calibration_set="calib", merged=True)
    with load_backend("pytorch").open(variant, target, precision="fp32", threads=1) as session:
        assert is_merged(session._model)  # type: ignore[attr-defined]
        answers = session.infer(pictures)
    with torch.no_grad():
        np.testing.assert_allclose(answers, repvgg(torch.from_numpy(pictures)).numpy(), rtol=1e-3, atol=1e-4)
    assert len(_widths(tmp_path / "float.onnx")) == 22
    assert models.load(variant).state_dict().keys() == repvgg.state_dict().keys(), "stored as trained"


def _widths(path: Path) -> list[Any]:
    """Of every convolution's weight: its shape."""
    graph = onnx.load(str(path)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            name = node.input[1]
            found.append(shapes[name] if name in shapes else shapes[makers[name].input[0]])
    return sorted(found)


@pytest.mark.slow
def test_a_branched_network_goes_all_the_way(pictures: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(pictures), image_size=32)
    train = TrainConfig(epochs=25, batch_size=8, layer_decay=1.0, augment="light", flip=False)
    run = api.finetune(data, ModelConfig(name="mobileone_s0", pretrained=False), train, run=tmp_path / "run").run
    made = api.compress(run, CompressConfig(epochs=2), targets=("onnxruntime",))
    pruned = CompressConfig(epochs=2, prune=0.3, recovery_epochs=6)
    made += api.compress(run, pruned, targets=("onnxruntime",))
    names = {"float"} | {one.name for one in made if one.record.get("scheme")}
    assert len(names) == 3
    built = api.build(run, "onnxruntime")
    assert len(built) >= 2
    again = Run.open(run.path)
    for name in names:
        layers = json.loads((again.path / "device" / "onnxruntime" / name / "fusion.json").read_text())
        assert layers["compute_layers"] == 44
