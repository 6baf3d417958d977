"""Losses and sampling: formulas, one's own, contradictions; on 50:1 imbalance the minority is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import edgeopt
from torch import Tensor, nn

from edgeopt import AugmentConfig, DataConfig, ModelConfig, Recipe, TrainConfig, api
from edgeopt.config import validate
from edgeopt.console import Silent
from edgeopt.data.dataset import Item
from edgeopt.data.ingest import ingest
from edgeopt.data.loader import TrainLoader, by_weight
from edgeopt.errors import ConfigError
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import LOSSES
from edgeopt.stages.objective import class_counts
from edgeopt.stages.variants import Variant
from edgeopt.stages.workspace import open_workspace
from edgeopt.train.evaluate_torch import logits
from edgeopt.train.losses import make_loss, takes_soft_targets
from edgeopt.training_tables import contradictions, selection

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.2, 0.1, -0.3], [-1.0, 0.4, 3.0], [1.0, 1.0, 1.0]])
TARGETS = torch.tensor([0, 2, 2, 1])
COUNTS = (30, 10, 20)


def value(name: str, targets: Tensor = TARGETS, **given: Any) -> float:
    return float(make_loss(name, class_counts=COUNTS, **given)(LOGITS, targets).mean())


def likelihoods() -> Tensor:
    return torch.softmax(LOGITS.double(), 1)[torch.arange(4), TARGETS]


def test_the_losses_are_their_formulas() -> None:
    p, weights = likelihoods(), torch.tensor([2 / 3, 1.0, 1.0, 2.0]).double()  # 60 / (3 * count) of each one's class
    assert value("cross_entropy") == pytest.approx(float(-p.log().mean()), rel=1e-5)
    assert value("weighted") == pytest.approx(float((-weights * p.log()).mean()), rel=1e-5)
    smooth = nn.functional.cross_entropy(LOGITS.double(), TARGETS, label_smoothing=0.2, reduction="none")
    assert value("weighted", label_smoothing=0.2) == pytest.approx(float((weights * smooth).mean()), rel=1e-5)
    assert value("weighted", arguments={"power": 0.0}) == pytest.approx(value("cross_entropy"))
    assert value("focal") == pytest.approx(float((-weights * (1 - p) ** 2 * p.log()).mean()), rel=1e-5)
    plain = {"gamma": 3.0, "balanced": False}
    assert value("focal", arguments=plain) == pytest.approx(float((-((1 - p) ** 3) * p.log()).mean()), rel=1e-5)
    assert value("focal", arguments={**plain, "gamma": 0.0}) == pytest.approx(value("cross_entropy"))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_when_descended_and_says_what_targets_it_takes(name: str) -> None:
    loss, logits = make_loss(name, class_counts=COUNTS, label_smoothing=0.0), LOGITS.clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.5)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        loss(logits, TARGETS).mean().backward()
        optimizer.step()
        values.append(float(loss(logits.detach(), TARGETS).mean()))
    assert values[-1] < 0.5 * values[0]
    if takes_soft_targets(name):
        hot = nn.functional.one_hot(TARGETS, 3).float()
        assert value(name, hot) == pytest.approx(value(name), rel=1e-5)
        assert value(name, 0.5 * hot + 0.5 * hot.roll(1, 1)) != pytest.approx(value(name), rel=1e-2)


def test_a_class_without_pictures_has_no_weight_and_arguments_are_checked() -> None:
    assert np.isfinite(float(make_loss("weighted", class_counts=(3, 0, 2))(LOGITS, TARGETS).mean()))
    with pytest.raises(ConfigError, match='takes no "gama"') as caught:
        make_loss("focal", class_counts=COUNTS, arguments={"gama": 1})
    assert 'did you mean "gamma"' in str(caught.value)
    with pytest.raises(ConfigError, match="gamma must be between"):
        make_loss("focal", class_counts=COUNTS, arguments={"gamma": -1})


# --- one's own ----------------------------------------------------------------------------------------------------

OWN = """
import torch

def upside_down(logits, targets, strength=1.0):
    "Teaches the class after the right one."
    return strength * torch.nn.functional.cross_entropy(logits, (targets + 1) % logits.shape[1])

class Counted:
    def __init__(self, class_counts):
        assert sum(class_counts) == 84, class_counts
    def __call__(self, logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
"""
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "layer_decay": 1.0, "augment": "none"}
RESNET = ModelConfig(name="resnet18", pretrained=False)


def test_a_loss_of_ones_own_trains(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    data = DataConfig(path=str(pictures), image_size=32)
    wrong = TrainConfig(**QUICK, loss="own_losses:upside_down", loss_arguments={"strength": 2.0})
    assert api.finetune(data, RESNET, wrong, run=tmp_path / "wrong").record["metrics"]["val_top1"] < 0.34
    counted = TrainConfig(**QUICK, loss="own_losses:Counted")
    assert api.finetune(data, RESNET, counted, run=tmp_path / "right").record["metrics"]["val_top1"] > 0.6
    with pytest.raises(ConfigError, match="own_losses:upside_down takes hard labels"):
        api.finetune(data, RESNET, wrong, augment=AugmentConfig(mixup=0.2), run=tmp_path / "mixed")
    for name, said in (("own_losses:Absent", "not a callable"), ("no_such_module:f", "cannot import no_such_module")):
        with pytest.raises(ConfigError, match=said):
            api.finetune(data, RESNET, TrainConfig(loss=name), run=tmp_path / "none")


def test_a_loss_of_an_installed_package_is_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "their_loss-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: their-loss\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[edgeopt.losses]\ntheirs = own_losses:upside_down\n")
    (tmp_path / "site" / "own_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert TrainConfig(loss="theirs").loss == "theirs"
    shifted = float(nn.functional.cross_entropy(LOGITS, (TARGETS + 1) % 3))
    assert value("theirs") == pytest.approx(shifted)


# --- contradictions -----------------------------------------------------------------------------------------------


def test_what_contradicts_itself_is_refused_with_the_reason_all_at_once() -> None:
    values: dict[str, Any] = {
        "data": {"path": "x"},
        "train": {"loss": "focal", "label_smoothing": 0.1},
        "augment": {"mixup": 0.2, "cutmix": 1.0},
    }
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, values, where="recipe")
    for part in (
        "3 problems",
        "augment.mixup: MixUp makes labels that are shares of two classes, and the loss focal takes hard labels",
        "augment.cutmix: CutMix",
        "train.label_smoothing",
    ):
        assert part in str(caught.value)
    assert contradictions(TrainConfig(loss="focal"), AugmentConfig()) == []
    (heavy,) = contradictions(TrainConfig(loss="focal", augment="heavy"), AugmentConfig(cutmix=0.0))
    assert heavy.startswith("train.augment heavy: MixUp")
    (twice,) = contradictions(TrainConfig(loss="weighted", sampling="balanced"), AugmentConfig())
    assert "each undo the whole imbalance" in twice
    with pytest.raises(ConfigError, match='did you mean "focal"'):
        validate(TrainConfig, {"loss": "vocal"}, where="train")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--loss", "focall"], 'did you mean "focal"'),
        (["--loss", "focal", "--mixup", "0.2"], "takes hard labels"),
        (["--dropout", "1.5"], "train.dropout"),
    ],
)
def test_mistakes_of_the_flags_are_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = edgeopt("finetune", "photos", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "fix: " in done.stderr


# --- imbalance ----------------------------------------------------------------------------------------------------


def paint_imbalanced(root: Path) -> Path:
    """Ready-made splits of grey pictures: train has 400 dark ones and 8 brighter ones, val 100 and 10, test 40 of each.

    The brightness of both overlaps, so that a network that minimizes mistakes on train never says "bright".
    """
    rng = np.random.default_rng(0)
    counts = {"train": (400, 8), "val": (100, 10), "test": (40, 40)}
    for split, (dark, bright) in counts.items():
        for name, count, level in (("0 dark", dark, 100), ("1 bright", bright, 150)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.normal(rng.normal(level, 20), 15, (32, 32, 1)) + rng.normal(0, 3, (32, 32, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
    return root


def finetuned(data: DataConfig, run: Path, **values: Any) -> Variant:
    """A small network trained on what is painted here."""
    fixed = {"epochs": 12, "batch_size": 17, "lr": 0.01, "layer_decay": 1.0, "augment": "none"}
    train = TrainConfig.model_validate({**fixed, "precision": "fp32", "memory_format": "contiguous", **values})
    return api.finetune(data, ModelConfig(name="small:Net", pretrained=False), train, run=run)


def recalls(data: DataConfig, run: Path, **values: Any) -> tuple[float, float]:
    """Recall of the majority and of the minority on test after training."""
    made = finetuned(data, run, **values)
    workspace = open_workspace(made.run, data=data.path, console=Silent())
    held = workspace.prepared("test", made.preprocess)
    right = logits(made.load(), held, made.preprocess).argmax(1) == held.labels
    return float(right[held.labels == 0].mean()), float(right[held.labels == 1].mean())


SMALL = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), *pooled, nn.Linear(8, num_classes))
"""


def test_on_50_to_1_imbalance_weighted_focal_and_balanced_sampling_raise_the_minoritys_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    data = DataConfig(path=str(paint_imbalanced(tmp_path / "pictures")), image_size=32)
    _, plain = recalls(data, tmp_path / "plain")
    for name, values in {
        "weighted": {"loss": "weighted"},
        "focal": {"loss": "focal"},
        "balanced": {"sampling": "balanced"},
    }.items():
        majority, minority = recalls(data, tmp_path / name, **values)
        assert minority > plain + 0.2, name
        assert majority > 0.5, name


def write_weights(root: Path, **weights: float) -> DataConfig:
    """A manifest of the painted pictures in which train's have the weight of their class."""
    lines = ["path,label,split,weight"]
    for path in sorted(root.glob("*/*/*.png")):
        split, name = path.parts[-3:-1]
        weight = weights[name.split()[1]] if split == "train" else 1
        lines.append(f"{path.relative_to(root).as_posix()},{name},{split},{weight}")
    (root / "pictures.csv").write_text("\n".join(lines) + "\n")
    return DataConfig(path=str(root / "pictures.csv"), image_size=32)


def test_weights_of_a_manifest_raise_the_minoritys_recall_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    root = paint_imbalanced(tmp_path / "pictures")
    _, even = recalls(write_weights(root, dark=1, bright=1), tmp_path / "even")
    majority, minority = recalls(write_weights(root, dark=1, bright=50), tmp_path / "weighted", select="recall")
    assert minority > even + 0.2
    assert majority > 0.5


def test_classes_that_a_manifest_shows_equally_often_are_not_weighted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    data = write_weights(paint_imbalanced(tmp_path / "pictures"), dark=0.02, bright=1)  # 8 of each in weights
    states = {}
    for loss, arguments in (("cross_entropy", {}), ("weighted", {}), ("focal", {"gamma": 0.0})):
        values = {"loss": loss, "loss_arguments": arguments, "label_smoothing": 0.0, "select": "recall", "epochs": 2}
        made = finetuned(data, tmp_path / loss, **values)
        states[loss] = made.load().state_dict()
    for loss in ("weighted", "focal"):
        for name, expected in states["cross_entropy"].items():
            torch.testing.assert_close(states[loss][name], expected, rtol=1e-3, atol=1e-4)


def test_the_counts_of_classes_are_of_what_an_epoch_shows() -> None:
    def counts(*weights: float) -> list[int] | list[float]:
        items = [Item(str(place), min(place, 1), "", "train", weight) for place, weight in enumerate(weights)]
        return class_counts(items, 3)

    assert counts(1, 1, 1, 1) == counts(7, 7, 7, 7) == [1, 3, 0]
    assert all(isinstance(count, int) for count in counts(7, 7, 7, 7)), "a loss of one's own may index with them"
    assert counts(6, 1, 1, 2) == pytest.approx([2.4, 1.6, 0])
    # Smaller than one they are shares like any: only their ratios count.
    few, many = ([factor * count for count in (3.0, 1.0, 2.0)] for factor in (1e-3, 10))
    losses = [make_loss("weighted", class_counts=each)(LOGITS, TARGETS) for each in (few, many)]
    torch.testing.assert_close(*losses)


def test_an_epoch_shows_each_picture_as_often_as_its_weight_says(tmp_path: Path) -> None:
    weights = np.asarray([1.0, 1.0, 0.25, 3.0, 0.001, 2.0, 0.749])  # 8 in all
    shown = np.stack(
        [np.bincount(by_weight(np.random.default_rng(seed), weights, 16), minlength=7) for seed in range(400)]
    )
    assert (shown.sum(axis=1) == 16).all()
    assert (np.abs(shown - 2 * weights) < 1).all()
    np.testing.assert_allclose(shown.mean(axis=0), 2 * weights, atol=0.1)
    # One weight for all is the plain order, to the bit; balanced, weights choose within a class.
    root = paint_imbalanced(tmp_path / "pictures")
    spec = PreprocessSpec(size=(16, 16))
    orders = {}
    for name, dark in (("plain", 1.0), ("all", 7.0), ("odd", 0.5)):
        dataset = ingest(write_weights(root, dark=dark, bright=7.0 if name == "all" else 1.0))
        for sampling in ("shuffled", "balanced"):
            loader = TrainLoader(dataset, dataset.of("train"), spec, batch_size=17, augment="none", sampling=sampling)
            orders[name, sampling] = loader._order(np.random.default_rng(0))
    assert (orders["plain", "shuffled"] == orders["all", "shuffled"]).all()
    assert (orders["plain", "balanced"] == orders["all", "balanced"]).all()
    labels = np.asarray([item.label for item in dataset.of("train")])
    assert 10 <= (labels[orders["odd", "shuffled"]] == 1).sum() <= 16  # 8 pictures, 1.96 times each in the mean
    assert (labels[orders["odd", "balanced"]] == 1).sum() == 204


def test_balanced_batches_have_every_class_equally_often_and_all_its_pictures_in_time(tmp_path: Path) -> None:
    dataset = ingest(DataConfig(path=str(paint_imbalanced(tmp_path / "pictures"))))
    spec = PreprocessSpec(size=(16, 16))
    arguments: dict[str, Any] = {"batch_size": 17, "augment": "none", "sampling": "balanced"}
    balanced = TrainLoader(dataset, dataset.of("train"), spec, **arguments)
    epochs = [list(balanced(epoch)) for epoch in range(6)]
    labels = torch.cat([targets for _, targets in epochs[0]])
    assert len(labels) == 408
    assert int((labels == 1).sum()) == 204
    seen = {image.numpy().tobytes() for epoch in epochs for images, _ in epoch for image in images}
    assert len(seen) > 380
    again = TrainLoader(dataset, dataset.of("train"), spec, **arguments)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(again(4, 5), epochs[4][5:], strict=True))


def test_the_epoch_is_picked_by_recall_where_imbalance_is_worked_against() -> None:
    assert selection(TrainConfig()) == "top1"
    assert selection(TrainConfig(loss="focal")) == selection(TrainConfig(sampling="balanced")) == "recall"
    assert selection(TrainConfig(loss="focal", select="top1")) == "top1"
