"""How pictures become the model's input: sizes that are not square, interpolation, and whose mean and deviation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from conftest import paint_folder
from PIL import Image
from torch import nn

from edgeopt import CompressConfig, DataConfig, ModelConfig, Recipe, Run, TrainConfig, api, load_recipe, models
from edgeopt.cli import group
from edgeopt.config import validate
from edgeopt.data.augment import cached_picture, make_augment
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.pixel_statistics import pixel_statistics
from edgeopt.errors import ConfigError, ModelError
from edgeopt.preprocess import PreprocessSpec, load_picture, normalize
from edgeopt.stages.variants import open_variant
from edgeopt.train.gradcam import gradcam
from edgeopt.training_tables import AugmentConfig
from tests.listening import Listening

TINY = ModelConfig(name="test_resnet", pretrained=False)
QUICK = TrainConfig(epochs=1, batch_size=16, augment="light", precision="fp32", memory_format="contiguous")
SIZE = (32, 48)


@pytest.fixture(scope="module")
def wide(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on 32x48 pixels normalized by the train pictures, scaled by Lanczos."""
    data = DataConfig(path=str(pictures), image_size=SIZE, interpolation="lanczos", normalize="data")
    return api.finetune(data, TINY, QUICK, run=tmp_path_factory.mktemp("wide") / "run").run


@pytest.fixture(scope="module")
def wide_engines(wide: Run) -> Run:
    """The same, compressed and built."""
    api.compress(wide, CompressConfig(epochs=0))
    api.build(wide, "onnxruntime")
    return wide


def numpys_statistics(run: Run, spec: PreprocessSpec, *splits: str) -> tuple[list[float], list[float]]:
    dataset = Dataset.read(run.data)
    paths = [Path(dataset.root) / item.path for item in dataset.items if item.split in splits]
    pixels = np.stack([load_picture(path, spec) for path in paths]).reshape(-1, 3) / 255.0
    return pixels.mean(axis=0).tolist(), pixels.std(axis=0).tolist()


# --- what can be stated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "size"),
    [(224, 224), ("224", 224), ("160x224", (160, 224)), ([160, 224], (160, 224)), ([96, 96], 96), (None, None)],
)
def test_sizes_are_one_number_or_height_and_width(stated: Any, size: Any) -> None:
    assert DataConfig(path="x", image_size=stated).image_size == size


@pytest.mark.parametrize("stated", [8, "8x200", [160], [160, 224, 3], "224x", "wide", [160, 5000], True, [160.5, 20]])
def test_what_is_no_size_is_one_problem(stated: Any) -> None:
    with pytest.raises(ConfigError, match=r"1 problem\n  - data.image_size: must be pixels from 16 to 2048"):
        validate(Recipe, {"data": {"path": "x", "image_size": stated}}, where="recipe")


def test_a_recipe_states_all_three(tmp_path: Path) -> None:
    file = tmp_path / "edgeopt.toml"
    file.write_text('[data]\npath = "x"\nimage_size = [160, 224]\ninterpolation = "nearest"\nnormalize = "unit"\n')
    data = load_recipe(file).data
    assert (data.image_size, data.interpolation, data.normalize) == ((160, 224), "nearest", "unit")
    file.write_text('[data]\npath = "x"\ninterpolation = "cubic"\nnormalize = "imagenet"\n')
    with pytest.raises(ConfigError, match="2 problems"):
        load_recipe(file)


def test_flags_of_finetune_and_adopt_reach_the_spec(pictures: Path, tmp_path: Path) -> None:
    options = ("--image-size", "32x40", "--interpolation", "nearest", "--normalize", "unit", "--resize", "squash")
    few = ("--epochs", "1", "--batch-size", "16", "--set", "train.memory_format=contiguous")
    calls = (
        ("finetune", str(pictures), "--no-pretrained", *few, "--run", str(tmp_path / "a")),
        ("adopt", "--data", str(pictures), "--weights", str(tmp_path / "a/host/float/model.safetensors"),
         "--run", str(tmp_path / "b")),
    )  # fmt: skip
    for call in calls:
        done = CliRunner().invoke(group, [*call, "--model", "test_resnet", *options])
        assert done.exit_code == 0, done.output
    specs = [PreprocessSpec.read(tmp_path / run / "host" / "float" / "preprocess.json") for run in "ab"]
    assert specs[0] == specs[1]
    stated = specs[0]
    assert (stated.size, stated.interpolation, stated.resize) == ((32, 40), "nearest", "squash")
    assert (stated.mean, stated.std) == ((0, 0, 0), (1, 1, 1))


# --- the train pictures' mean and deviation -----------------------------------------------------------------------


def test_the_mean_and_deviation_are_numpys_of_the_train_pictures_alone(wide: Run) -> None:
    spec = open_variant(wide, "float").preprocess
    mean, std = numpys_statistics(wide, spec, "train")
    assert spec.mean == pytest.approx(mean, rel=1e-12)
    assert spec.std == pytest.approx(std, rel=1e-12)
    assert spec.mean != pytest.approx(numpys_statistics(wide, spec, "train", "val", "test")[0], rel=1e-6)
    assert (spec.size, spec.interpolation) == (SIZE, "lanczos")


def test_a_channel_that_never_changes_is_divided_by_one_grey_level(tmp_path: Path) -> None:
    root = paint_folder(tmp_path / "photos", classes=2, each=10)
    for path in root.rglob("*.png"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[..., 2] = 51
        Image.fromarray(pixels).save(path)
    dataset = ingest(DataConfig(path=str(root)))
    mean, std = pixel_statistics(dataset, dataset.of("train"), PreprocessSpec(size=(16, 24)))
    assert mean[2] == 0.2
    assert std[2] == 1 / 255
    assert min(std[:2]) > 0.05


def test_weights_trained_on_other_normalization_are_used_and_it_is_said(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = models.create("test_resnet", num_classes=9, pretrained=False)
    models.save(source.model, source.architecture, tmp_path / "weights")
    weights = ModelConfig(name="test_resnet", weights=str(tmp_path / "weights" / "model.safetensors"))
    for way, expected in (("unit", 1), ("model", 0)):
        console = Listening()
        data = DataConfig.model_validate({"path": str(pictures), "image_size": 32, "normalize": way})
        api.finetune(data, weights, QUICK, run=tmp_path / way, console=console)
        assert sum("normalized otherwise" in line for line in console.said) == expected


# --- all the way --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_engines_take_that_shape_and_answer_as_torch_does(wide_engines: Run, pictures: Path, int8: bool) -> None:
    [key] = [name for name in wide_engines.engines() if ("int8" in name) == int8]
    variant = open_variant(wide_engines, key.split("/")[1])
    file = wide_engines.path / "host" / variant.name / "export" / "model.onnx"
    shape = onnx.load(file).graph.input[0].type.tensor_type.shape
    assert [side.dim_value for side in shape.dim][1:] == [3, *SIZE]
    some = [str(path) for path in sorted(pictures.rglob("00*.png"))]
    found, failures = api.predict(wide_engines, some, engine=key)
    assert not failures
    mean, std = numpys_statistics(wide_engines, variant.preprocess, "train")
    pixels = np.stack([load_picture(Path(path), variant.preprocess) for path in some]) / 255.0
    images = torch.from_numpy(((pixels - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))
    with torch.inference_mode():
        logits = variant.load()(images)
    temperature = variant.record["metrics"]["temperature"]
    probabilities = torch.softmax(logits / temperature, dim=1).numpy()
    classes = Dataset.read(wide_engines.data).classes
    for one, row in zip(found, probabilities, strict=True):
        stated = dict(one.top)
        assert [stated[name] for name in classes] == pytest.approx(row.tolist(), abs=0.02 if int8 else 1e-4)


def test_the_preview_has_the_inputs_shape(pictures: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(pictures), image_size=(24, 40), normalize="data")
    made = api.augment_preview(data, tmp_path / "grid.png", TINY, TrainConfig(epochs=3, augment="none"))
    grid = np.asarray(Image.open(made))
    assert grid.shape == (6 * 26 - 2, 4 * 42 - 2, 3)
    first = next(item for item in ingest(data).of("train") if item.label == 0)
    own = models.preprocess_of(models.create("test_resnet", num_classes=3, pretrained=False).architecture)
    seen = load_picture(pictures / first.path, PreprocessSpec.model_validate({**own, "size": (24, 40)}))
    assert np.abs(grid[:24, :40].astype(int) - seen).max() <= 1


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_random_crops_distort_no_more_than_a_fifth_beyond_what_evaluation_does(resize: str) -> None:
    spec = PreprocessSpec.model_validate({"size": (32, 96), "resize": resize, "crop_pct": 1.0})
    augment = make_augment("none", spec, flip=False, changes=AugmentConfig(crop=0.3))
    assert augment is not None
    y, x = np.mgrid[0:200, 0:600]
    ramp = Image.fromarray(np.stack([x * 255 / 599, y * 255 / 199, 0 * x], axis=2).astype(np.uint8))
    cached = Image.fromarray(cached_picture(ramp, spec, "none", AugmentConfig(crop=0.3)))
    torch.manual_seed(0)
    for _ in range(20):
        picture = augment(cached).astype(float)
        across = (
            np.polyfit(np.arange(96), picture[..., 0].mean(axis=0), 1)[0] * 599
        )  # pixels of the ramp a pixel, × 255
        down = np.polyfit(np.arange(32), picture[..., 1].mean(axis=1), 1)[0] * 199
        assert 0.75 < across / down < 1.33


# --- models that cannot, or must be told --------------------------------------------------------------------------


def test_a_vision_transformer_is_made_for_the_shape_and_rebuilt_so(tmp_path: Path) -> None:
    created = models.create("test_vit", num_classes=3, pretrained=False, image_size=(64, 96))
    assert created.architecture.arguments["img_size"] == (64, 96)
    models.save(created.model, created.architecture, tmp_path)
    assert json.loads((tmp_path / "architecture.json").read_text())["arguments"]["img_size"] == [64, 96]
    picture = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(models.load(tmp_path)(picture), created.model(picture))
    with pytest.raises(ModelError, match="cannot take 32x32 pixels"):
        created.architecture.resized(32)
    plain = models.create("test_resnet", num_classes=3, pretrained=False).architecture
    assert plain.resized((64, 96)).input_size == (3, 64, 96)


def test_models_that_cannot_take_a_shape_say_so_in_a_line() -> None:
    with pytest.raises(ModelError, match=r"vit_b_16 takes square pictures alone, not 64x96"):
        models.create("torchvision:vit_b_16", num_classes=3, pretrained=False, image_size=(64, 96))
    with pytest.raises(ModelError, match=r"test_input:Fixed cannot take pictures of 64x96 pixels, 3 channels: mat1"):
        models.create("test_input:Fixed", num_classes=3, image_size=(64, 96))
    with pytest.raises(ModelError, match=r"inception_v3 cannot take pictures of 16x16 pixels"):
        models.create("inception_v3", num_classes=3, pretrained=False, image_size=16)


def test_gradcam_finds_places_in_a_wide_transformer() -> None:
    model = models.create("test_vit", num_classes=3, pretrained=False, image_size=(64, 96)).model
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    pictures = normalize(np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3)).astype(np.uint8), PreprocessSpec())
    maps = [gradcam(model, picture, answer) for picture in pictures for answer in range(3)]
    shapes = {found.shape for found in maps if found is not None}
    assert shapes == {(4, 6)}


class Fixed(nn.Module):
    """A network whose last layer counts on 32x32 pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, num_classes))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits."""
        answer: torch.Tensor = self.layers(pictures)
        return answer
