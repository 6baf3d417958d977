"""Recovery of a pruned network in rounds: another while val shows that the last one helped."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, TrainConfig, api
from edgeopt.report.trainings import trainings
from edgeopt.stages.recovery import still_gaining
from tests.conftest import paint_folder
from tests.listening import Listening

#: Cut so far, by weights alone and not fitted anew, that one epoch cannot bring back what is lost.
CUT = CompressConfig(
    int8=False, prune=0.7, importance="bn_scale", reconstruct=False, recovery_epochs=1, recovery_rounds=2
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A little network that answers eight classes well."""
    folder = tmp_path_factory.mktemp("recovery")
    return api.finetune(
        DataConfig(path=str(paint_folder(folder / "pictures", classes=8, each=24)), image_size=32, val=0.25),
        ModelConfig(name="tests.tiny_torch:PlainNet", pretrained=False),
        TrainConfig(epochs=12, batch_size=8, lr=3e-3, layer_decay=1.0, augment="light", flip=False, precision="fp32"),
        run=folder / "run",
    ).run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy, to compress in."""
    return Run.open(Path(shutil.copytree(trained.path, tmp_path / "run")))


def test_recovery_goes_on_while_val_shows_that_it_helps_and_its_record_counts_all_rounds(run: Run) -> None:
    console = Listening()
    (variant,) = api.compress(run, CUT, console=console)
    (told,) = (line for line in console.said if line.startswith("recovery goes on"))
    assert told.startswith("recovery goes on, round 2 of at most 2: val loss fell by ")
    training = variant.record["metrics"]["training"]
    assert (training["rounds"], training["epochs"], training["best_epoch"]) == (2, 2, 2)
    assert variant.record["config"]["recovery_rounds"] == 2
    curve = next(one for one in trainings(run) if one.variant == variant.name)
    assert [epoch for epoch, *_ in curve.epochs] == [1, 2], "the report's curve goes through both rounds"
    assert not list((run.path / "host" / variant.name).rglob("*/checkpoints/*")), "nothing is left to resume"
    once = api.compress(run, CUT.model_copy(update={"recovery_rounds": 1}), force=True)[0]
    assert once.record["metrics"]["training"]["epochs"] == 1
    assert once.record["metrics"]["val_loss"] > variant.record["metrics"]["val_loss"]


def test_recovery_that_was_interrupted_between_rounds_goes_on_to_the_same_weights(run: Run, tmp_path: Path) -> None:
    class Interrupted(Listening):
        def say(self, text: str) -> None:
            super().say(text)
            if text.startswith("recovery goes on"):
                raise KeyboardInterrupt

    other = Run.open(Path(shutil.copytree(run.path, tmp_path / "other")))
    with pytest.raises(KeyboardInterrupt):
        api.compress(run, CUT, console=Interrupted())
    console = Listening()
    resumed, whole = api.compress(run, CUT, console=console)[0], api.compress(other, CUT)[0]
    assert "training goes on: 1 of 1 epochs are done" in console.said
    weights = [load_file(one.run.path / "host" / one.name / "model.safetensors") for one in (resumed, whole)]
    for name, wanted in weights[1].items():
        np.testing.assert_array_equal(weights[0][name], wanted, err_msg=name)


def test_another_round_is_due_only_where_answers_are_missing_and_the_last_one_clearly_helped() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    sure = 4.0 * np.eye(4, dtype=np.float32)[labels]

    def worse(by: float) -> np.ndarray:
        return (sure + rng.normal(0, by, sure.shape)).astype(np.float32)

    whole, bad, better = worse(1.0), worse(4.0), worse(2.0)
    gained, missing = still_gaining(whole, bad, better, labels) or (0.0, 0.0)
    assert gained > 0.2
    assert missing > 0.02
    assert still_gaining(whole, bad, whole, labels) is None, "no answer is missing"
    assert still_gaining(whole, bad, 0.3 * whole, labels) is None, "nor where it is less sure alone"
    assert still_gaining(whole, better, better + 1e-3, labels) is None, "the last round changed nothing"
    assert still_gaining(whole, better, bad, labels) is None, "it did harm"
