"""Teachers by name: other runs and timm models, in fine-tuning and in compression, asked once where pictures repeat."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import paint_folder
from safetensors.torch import load_file
from timm.models.byobnet import ByobNet
from torch import nn

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, TrainConfig, api
from edgeopt.cli import group
from edgeopt.console import Silent
from edgeopt.data.dataset import Dataset
from edgeopt.errors import ConfigError, EdgeoptError, MissingStageError
from edgeopt.preprocess import PreprocessSpec
from edgeopt.stages import objective, teachers
from edgeopt.stages.passes import inputs_of
from edgeopt.stages.teachers import Teacher, find_teacher
from edgeopt.stages.variants import open_variant
from edgeopt.train.features import ADAPTER
from edgeopt.train.processes import ALONE

TRAIN = TrainConfig(
    epochs=3, batch_size=8, augment="none", layer_decay=1.0, precision="fp32", memory_format="contiguous"
)
STUDENT = ModelConfig(name="test_resnet", pretrained=False)


@pytest.fixture(scope="module")
def big(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run to learn from; of another architecture, so that its answers can be told from the student's."""
    model = ModelConfig(name="test_byobnet", pretrained=False)
    folder = tmp_path_factory.mktemp("runs") / "big"
    train = TRAIN.model_copy(update={"epochs": 1})
    return api.finetune(DataConfig(path=str(pictures), image_size=32), model, train, run=folder).run


@contextmanager
def asked() -> Iterator[list[int]]:
    """How many pictures each forward pass of a ByobNet answered."""
    rows: list[int] = []

    def note(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        if isinstance(module, ByobNet):
            rows.append(len(output))
            assert not module.training
            assert not output.requires_grad

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        yield rows
    finally:
        handle.remove()


def test_a_teacher_is_asked_once_a_picture_where_pictures_repeat(big: Run, pictures: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(pictures), image_size=32)
    taught = TRAIN.model_copy(update={"teacher": str(big.path), "distill": "dist"})
    with asked() as rows:
        made = api.finetune(data, STUDENT, taught, run=tmp_path / "run")
    count = len(Dataset.read(made.run.data).of("train"))
    assert sum(rows) == count
    assert made.record["teacher"] == str(big.path)
    assert made.record["inputs"]["teacher"] == big.variant("float")["outputs"]["model"]["sha256"]
    assert made.record["config"]["train"]["distill"] == "dist"
    assert "teacher" not in made.record["config"]["train"], "where it lies does not make another model"
    (answers,) = (made.run.data / "answers").glob("*.npy")
    hinton = taught.model_copy(update={"distill": "hinton", "epochs": 1})
    with asked() as rows:
        api.finetune(data, STUDENT, hinton, run=tmp_path / "run")
    assert rows == [], "what it answered is found again"
    content = answers.read_bytes()
    answers.write_bytes(content[:-4] + b"\0\0\0\0")
    with asked() as rows:
        api.finetune(data, STUDENT, hinton, run=tmp_path / "run", force=True)
    assert sum(rows) == count, "a damaged file is not believed"
    assert answers.read_bytes() == content
    light = hinton.model_copy(update={"augment": "light", "epochs": 2})
    with asked() as rows:
        api.finetune(data, STUDENT, light, run=tmp_path / "run")
    assert sum(rows) >= 2 * (count // 8) * 8, "augmented pictures are new each time"


@pytest.mark.slow
def test_mixed_batches_and_matched_features_teach_from_the_command_line(
    big: Run, pictures: Path, tmp_path: Path
) -> None:
    shared = ["--run", str(tmp_path / "run"), "--epochs", "1", "--set", "train.batch_size=8", "--quiet"]
    shared += ["--model", "test_resnet", "--no-pretrained", "--image-size", "32", "--teacher", str(big.path)]
    for distill, others in (("dkd", ["--mixup", "0.2", "--cutmix", "1"]), ("features", ["--unfreeze", "gradual"])):
        with asked() as rows:
            done = CliRunner().invoke(group, ["finetune", str(pictures), *shared, "--distill", distill, *others])
        assert done.exit_code == 0, done.output
        assert rows
    variants = Run.open(tmp_path / "run").variants()
    assert [one["config"]["train"]["distill"] for one in variants.values()] == ["dkd", "features"]
    for name in variants:
        tensors = load_file(tmp_path / "run" / "host" / name / "model.safetensors")
        assert set(tensors) == set(timm.create_model("test_resnet", num_classes=3).state_dict())


@pytest.mark.slow
def test_another_run_teaches_the_pruned_and_the_int8_model_its_features(
    big: Run, pictures: Path, tmp_path: Path
) -> None:
    run = api.finetune(DataConfig(path=str(pictures), image_size=32), STUDENT, TRAIN, run=tmp_path / "run").run
    config = CompressConfig(
        prune=0.3, epochs=1, recovery_epochs=1, schemes=("u8a7w",), calibration="fast", distill="features",
        teacher=str(big.path),
    )  # fmt: skip
    for variant in api.compress(run, config):
        assert variant.record["teacher"] == str(big.path)
        assert variant.record["config"]["distill"] == "features"
        assert variant.record["config"]["distill_weight"] == 0.5
        tensors = load_file(run.path / "host" / variant.name / "model.safetensors")
        assert not any(ADAPTER in name for name in tensors)
        variant.load()  # strictly


@pytest.mark.slow
def test_ignored_modules_keep_their_channels_and_stay_in_float(pictures: Path, tmp_path: Path) -> None:
    run = api.finetune(DataConfig(path=str(pictures), image_size=32), STUDENT, TRAIN, run=tmp_path / "run").run
    call = ["compress", "--int8", "--prune", "0.27", "--scheme", "u8a7w", "--calibration", "fast", "--quiet", "--json"]
    call += ["--run", str(run.path), "--epochs", "0", "--recovery-epochs", "0"]
    wrong = CliRunner().invoke(group, [*call, "--ignore", "layer3.1"])
    assert "no module is called layer3.1" in str(wrong.exception)
    done = CliRunner().invoke(group, [*call, "--ignore", "layer4.0", "--set", "scale_lr=5"])
    assert done.exit_code == 0, done.output
    pruned, int8 = (variant for variant in run.variants().values() if variant["parent"] is not None)
    assert int8["config"]["ignore"] == ["layer4.0"]
    assert int8["config"]["scale_lr"] == 5
    widths = pruned["pruning"]["widths"]
    assert any(before > after for before, after in widths.values())
    assert all(before == after for name, (before, after) in widths.items() if name.startswith("layer4.0"))
    hooks = [one["hooks"] for one in open_variant(run, int8["name"]).architecture.to_json()["quantizers"]["quantizers"]]
    assert hooks
    assert not any("layer4/0/conv" in name for names in hooks for name in names)


def test_teachers_that_cannot_teach_are_refused_by_name(big: Run, tmp_path: Path) -> None:
    others = paint_folder(tmp_path / "others", classes=2, each=10)
    (others / "class 1").rename(others / "a stranger")
    with pytest.raises(ConfigError, match=r'has other classes.*it has "class 1", "class 2", it lacks "a stranger"'):
        api.finetune(
            DataConfig(path=str(others), image_size=32), STUDENT, TRAIN.model_copy(update={"teacher": str(big.path)}),
            run=tmp_path / "run",
        )  # fmt: skip
    with pytest.raises(MissingStageError, match="is no run folder"):
        find_teacher(big, "runs/nowhere")
    with pytest.raises(MissingStageError, match=r'no variant "flaot".*did you mean "float"'):
        find_teacher(big, "flaot")
    with pytest.raises(ConfigError, match=r'1000 classes of its own, and "class 0".* are not among them') as caught:
        find_teacher(big, "timm:tf_efficientnet_lite0")
    assert "--teacher runs/teacher" in str(caught.value.fix)
    with pytest.raises(EdgeoptError, match='did you mean "resnet18"'):
        find_teacher(big, "timm:resnet81")
    with pytest.raises(ConfigError, match="temperature: features have no temperature"):
        compress_config({"distill": "features", "temperature": 2.0})
    with pytest.raises(ConfigError, match=r"train.distill: says how a teacher is listened to, and there is none"):
        api.finetune(str(others), STUDENT, TRAIN.model_copy(update={"distill": "dkd"}), run=tmp_path / "run")


def test_a_teacher_of_the_same_classes_in_another_order_answers_in_the_runs_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Teacher("runs/other", "a" * 64, lambda _: nn.Identity())
    orders = {"other": ("dog", "cat", "owl"), "own": ("cat", "dog", "owl"), "same": ("cat", "dog", "owl")}
    monkeypatch.setattr(teachers.Path, "is_file", lambda _: True)
    monkeypatch.setattr(teachers, "open_variant", lambda *_: None)
    monkeypatch.setattr(teachers, "_of_variant", lambda *_: plain)
    monkeypatch.setattr(teachers, "Run", SimpleNamespace(open=lambda path: _Other(path.name)))
    monkeypatch.setattr(teachers, "labels", lambda run: orders[getattr(run, "name", run)])
    taught = teachers._of_another_run("own", "runs/other", None)  # type: ignore[arg-type]
    logits = torch.tensor([[1.0, 2.0, 3.0]])  # of dog, cat, owl
    assert taught.module(PreprocessSpec(size=(8, 8)))(logits).tolist() == [[2.0, 1.0, 3.0]]
    assert taught.sha256 != plain.sha256, "what it taught is not taken for what the other order teaches"
    assert teachers._of_another_run("own", "runs/same", None) is plain  # type: ignore[arg-type]


class _Other:
    def __init__(self, name: str) -> None:
        self.name = name

    def original(self) -> str:
        return "float"


def test_other_classes_and_an_int8_model_do_not_teach() -> None:
    with pytest.raises(ConfigError, match='other classes than this run: it has "owl"'):
        teachers._require_same_classes("runs/other", ["cat", "dog", "owl"], ["dog", "cat"])
    teachers._require_same_classes("runs/other", ["cat", "dog"], ["dog", "cat"])
    int8: Any = SimpleNamespace(architecture=SimpleNamespace(scheme="u8a8w"))
    with pytest.raises(ConfigError, match="int8-u8a8w is int8, and a teacher should know more than its student"):
        teachers._of_variant("int8-u8a8w", int8)


def test_what_one_teacher_answered_is_not_taken_for_anothers_nor_is_what_it_taught(tmp_path: Path) -> None:
    items = [SimpleNamespace(sha256=str(index)) for index in range(3)]
    loader: Any = SimpleNamespace(labels=[0, 1, 0], plain=lambda rows: torch.ones(len(rows), 2))
    workspace: Any = SimpleNamespace(
        dataset=SimpleNamespace(of=lambda _: items), run=SimpleNamespace(data=tmp_path), console=Silent()
    )

    def recorded(name: str, answer: float) -> Any:
        asked = nn.Linear(2, 2)
        nn.init.constant_(asked.weight, answer)
        nn.init.zeros_(asked.bias)
        teacher = Teacher(name, name, lambda _: asked)
        spec = PreprocessSpec(size=(8, 8))
        return objective._recorded(teacher, asked, loader, workspace, spec, ALONE)

    assert (recorded("one", 1.0) == 2.0).all()
    assert (recorded("other", 3.0) == 6.0).all()
    assert (recorded("one", 5.0) == 2.0).all(), "it is not asked again"

    source: Any = SimpleNamespace(record={"outputs": {"model": {"sha256": "weights"}}})
    job: Any = SimpleNamespace(run=SimpleNamespace(info={"fingerprint": "pictures"}), teacher=Teacher("a", "b", None))  # type: ignore[arg-type]
    assert inputs_of(job, source) == {"dataset": "pictures", "source": "weights", "teacher": "b"}


def test_an_ensemble_that_will_teach_features_is_refused_before_it_is_trained() -> None:
    from edgeopt.config import Recipe, validate

    recipe = {"data": {"path": "x"}, "train": {"folds": 3}, "ensemble": {}, "compress": {"distill": "features"}}
    with pytest.raises(ConfigError, match=r"compress.distill: the ensemble teaches, and has no features"):
        validate(Recipe, recipe, where="recipe")
    validate(Recipe, {**recipe, "ensemble": {"vote": "soup"}}, where="recipe")


def compress_config(values: dict[str, Any]) -> CompressConfig:
    from edgeopt.config import validate

    return validate(CompressConfig, values, where="compress options")


def test_a_model_of_imagenet_teaches_the_classes_it_knows_and_no_others(big: Run, tmp_path: Path) -> None:
    run = shutil.copytree(big.path, tmp_path / "run")
    (run / "data" / "labels.txt").write_text("n01440764\nn03877845\nn11939491\n")  # tench, palace, daisy
    spec = open_variant(big, "float").preprocess
    teacher = find_teacher(Run.open(run), "timm:tf_efficientnet_lite0")
    from sklearn.datasets import load_sample_image

    palace, daisy = (torch.tensor(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))
    images = torch.stack([picture.permute(2, 0, 1).float() / 255 for picture in (palace, daisy)])
    images = nn.functional.interpolate(images[:, :, :, 100:527], (224, 224), mode="bilinear", antialias=True)
    given = spec.model_copy(update={"size": (224, 224)})
    normalized = (images - torch.tensor(given.mean).view(3, 1, 1)) / torch.tensor(given.std).view(3, 1, 1)
    with torch.no_grad():
        answers = teacher.module(given)(normalized)
    assert answers.shape == (2, 3)
    assert answers.argmax(dim=1).tolist() == [1, 2]
