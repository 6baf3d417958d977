"""Pruning in depth: which blocks may go, which go first, and that what is left comes back as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import paint_folder
from torch import nn

from edgeopt import CompressConfig, DataConfig, ModelConfig, TrainConfig, api, models
from edgeopt.compress.depth import dropped, rank_blocks, residual_blocks
from edgeopt.compress.heads import choose_heads, rank_heads
from edgeopt.compress.prune import prune, replay
from edgeopt.config import validate
from edgeopt.errors import ConfigError, ModelError
from edgeopt.models.architecture import parse


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("mobilenetv2_035", [f"blocks.{s}.{b}" for s, depth in ((1, 2), (2, 3), (3, 4), (4, 3), (5, 3))
                             for b in range(1, depth)]),
        ("vgg11_bn", []),
    ],
)  # fmt: skip
def test_residual_blocks_are_those_that_pass_their_input_on(name: str, expected: list[str]) -> None:
    arguments = {"mlp_ratio": 0.0625} if name.startswith("vgg") else {}
    model = timm.create_model(name, num_classes=3, **arguments)
    assert residual_blocks(model, torch.randn(2, 3, 32, 32)) == expected
    assert model.training  # left as it was


def test_a_transformers_blocks_are_found_too() -> None:
    created = models.create(
        "deit_tiny_patch16_224", num_classes=3, pretrained=False, arguments={"depth": 3}, image_size=32
    )
    assert residual_blocks(created.model, torch.randn(2, 3, 32, 32)) == ["blocks.0", "blocks.1", "blocks.2"]


def test_the_block_that_does_nothing_goes_first_and_the_rest_comes_back_bit_equal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    created = models.create("resnet18", num_classes=3, pretrained=False)
    model = created.model.eval()
    for module in model.modules():  # timm's residual branches start at zero, and none would be missed
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    nn.init.zeros_(model.get_submodule("layer3.1").bn2.weight)
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 3

    def loss_of(one: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(one(images), labels))

    ranked = rank_blocks(model, images[:2], loss_of)
    costs = {block.name: block.loss for block in ranked}
    assert costs["layer3.1"] == pytest.approx(loss_of(model))
    assert [block.loss for block in ranked] == sorted(costs.values())
    assert len(set(costs.values())) == 5

    acts = dropped(["layer3.1", "layer1.0"])
    shallow = replay(copy.deepcopy(model), acts)
    result = prune(shallow, fraction=0.3, example=images[:1], importance="l2")
    history = [*acts, *result.history]
    models.save(result.model, created.architecture.pruned(history), tmp_path)
    assert json.loads((tmp_path / "architecture.json").read_text())["pruning"][0] == ["layer3.1", "drop"]
    again = models.load(tmp_path)
    assert torch.equal(again(images), result.model.eval()(images))
    assert "layer3.1.conv1" not in dict(again.named_modules())


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_relpos_small_patch16_224"])
def test_blocks_that_are_handed_more_than_their_input_can_go_too(name: str) -> None:
    """Positions and biases, which whatever stands in their place is handed as well."""
    size = {"image_size": 56} if "vit_relpos" not in name else {"image_size": 64}
    created = models.create(name, num_classes=3, pretrained=False, arguments={"depth": 2}, **size)
    pictures = torch.randn(2, 3, size["image_size"], size["image_size"])
    ranked = rank_blocks(created.model.eval(), pictures, lambda one: float(one(pictures).detach().sum()))
    assert {block.name for block in ranked} == {"blocks.0", "blocks.1"}
    shallow = replay(copy.deepcopy(created.model), dropped([ranked[0].name]))
    assert shallow(pictures).shape == (2, 3)


def test_attention_whose_heads_have_a_table_elsewhere_keeps_them() -> None:
    created = models.create(
        "vit_small_patch16_rope_mixed_224", num_classes=3, pretrained=False, arguments={"depth": 2}, image_size=64
    )
    pictures = torch.randn(2, 3, 64, 64)
    assert rank_heads(created.model.eval(), lambda one: float(one(pictures).detach().sum())) == []
    with pytest.raises(ModelError, match="the model has no attention whose heads can be dropped"):
        choose_heads(created.model, [], 1)


def test_the_head_that_does_nothing_goes_first_and_the_rest_answers_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    created = models.create(
        "deit_tiny_patch16_224", num_classes=3, pretrained=False, arguments={"depth": 2}, image_size=32
    )
    model = created.model.eval()
    nn.init.normal_(model.get_submodule("head").weight)  # type: ignore[arg-type]
    idle = model.get_submodule("blocks.1.attn")
    with torch.no_grad():
        idle.proj.weight[:, 64:128] = 0.0  # the second of three heads of 64  # type: ignore[index, union-attr]
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4) % 3

    def loss_of(one: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(one(images), labels))

    ranked = rank_heads(model, loss_of)
    assert len(ranked) == 6
    idle_cost = next(cost for cost in ranked if (cost.name, cost.head) == ("blocks.1.attn", 1))
    assert idle_cost.loss == pytest.approx(loss_of(model), rel=1e-5)
    acts = [["blocks.1.attn", "heads", [1]]]
    fewer = replay(copy.deepcopy(model), acts)
    assert torch.allclose(fewer(images), model(images), atol=1e-5)
    assert models.count_macs(fewer, (3, 32, 32)) < models.count_macs(model, (3, 32, 32))

    most = choose_heads(model, ranked, 4)
    assert sorted(len(act[2]) for act in most) == [2, 2]
    with pytest.raises(ModelError, match="5 attention heads cannot be dropped: 4 can"):
        choose_heads(model, ranked, 5)
    result = prune(replay(copy.deepcopy(model), most), fraction=0.1, example=images[:1], importance="l2")
    models.save(result.model, created.architecture.pruned([*most, *result.history]), tmp_path)
    assert torch.equal(models.load(tmp_path)(images), result.model.eval()(images))


def test_a_network_without_such_attention_is_told_so() -> None:
    """It said that every attention keeps one head; XCiT's, which it does not know, have four."""
    with pytest.raises(ModelError, match="no attention whose heads can be dropped"):
        choose_heads(torch.nn.Sequential(torch.nn.Linear(2, 2)), [], 1)


def test_a_history_that_drops_what_is_not_there_is_refused() -> None:
    model = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(ModelError, match="does not have the attention heads"):
        replay(copy.deepcopy(model), [["layer1.0", "heads", [0]]])
    for acts in ([["layer9.0", "drop"]], [["layer1.0", "drop"], ["layer1.0", "drop"]]):
        with pytest.raises(ModelError, match="no block layer"):
            replay(copy.deepcopy(model), acts)
    values = {"schema": 1, "source": "timm", "name": "resnet18", "arguments": {"num_classes": 3}}
    for act in (["a", "lift"], ["../a", "drop"], [1, "drop"], ["a", "tails", [1]], ["a", "heads", [-1]]):
        with pytest.raises(ModelError):
            parse({**values, "pruning": [act]}, where="architecture.json")


def test_steps_without_a_share_to_prune_are_refused() -> None:
    with pytest.raises(ConfigError, match="prune_steps divide a prune that is not there"):
        validate(CompressConfig, {"prune_steps": 3}, where="compress options")
    with pytest.raises(ConfigError, match="drop_blocks and latency both say"):
        validate(CompressConfig, {"drop_blocks": 1, "latency": "4ms"}, where="compress options")


@pytest.mark.slow
def test_blocks_and_channels_go_in_steps_and_the_record_names_them(tmp_path: Path) -> None:
    run = api.finetune(
        DataConfig(path=str(paint_folder(tmp_path / "pictures", each=16)), image_size=64),
        ModelConfig(name="resnet18", pretrained=False),
        TrainConfig(epochs=1, batch_size=8, flip=False, precision="fp32", memory_format="contiguous"),
        run=tmp_path / "run",
    ).run
    config = CompressConfig(int8=False, prune=0.5, prune_steps=2, drop_blocks=1, recovery_epochs=2)
    (variant,) = api.compress(run, config)
    assert variant.name == "float-drop1-prune50"
    record, acts = variant.record["pruning"], variant.architecture.pruning
    gone = acts[0][0]
    assert acts[0] == [gone, "drop"]
    assert record["widths"][f"{gone}.conv1"][1] == 0
    # Two steps that each leave the same share of the MACs: each group that was cut twice is in the history twice.
    names = [act[0] for act in acts[1:]]
    assert len(names) > len(set(names))
    without = replay(run_model(run), [acts[0]])
    assert models.count_macs(variant.load(), (3, 64, 64)) / models.count_macs(without, (3, 64, 64)) == pytest.approx(
        0.5, abs=0.04
    )
    assert record["untouched"]["fc"] == "classifier"
    assert not list((run.path / "host" / variant.name).glob("step*"))
    with pytest.raises(ModelError, match=r"9 blocks cannot be dropped: resnet18 has 5 residual blocks"):
        api.compress(run, CompressConfig(int8=False, drop_blocks=9))


def run_model(run: object) -> nn.Module:
    """The original's model."""
    from edgeopt.stages.variants import open_variant

    return open_variant(run, run.original()).load()  # type: ignore[arg-type, attr-defined]
