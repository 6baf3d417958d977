"""Several processes train one model: the same result, every picture once, one writer, none waits for one that ended.

Real processes started by torchrun, talking over gloo on this machine's CPU; GPUs and several nodes are not here to try.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pytest
import torch
from conftest import paint_folder
from safetensors.torch import load_file
from test_train_parts import tiny

from edgeopt import AugmentConfig, DataConfig
from edgeopt.cli.common import settings
from edgeopt.cli.finetune_cmd import _KEYS
from edgeopt.cli.finetune_cmd import command as finetune_command
from edgeopt.config import Recipe
from edgeopt.data.ingest import ingest
from edgeopt.data.loader import TrainLoader
from edgeopt.errors import DataError
from edgeopt.preprocess import PreprocessSpec
from edgeopt.recipe_text import recipe_text
from edgeopt.sets import PictureSet
from edgeopt.train.evaluate_torch import evaluator
from edgeopt.train.processes import Processes, divided

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "--"]
ALONE = [sys.executable, "-m"]
#: A transformer: without BatchNorm, what several processes compute is what one does, but for the order of sums.
FINETUNE = [
    "edgeopt", "finetune", "photos", "--model", "test_vit", "--no-pretrained", "--image-size", "160", "--no-flip",
    "--batch-size", "8", "--set", "train.precision=fp32", "--set", "train.memory_format=contiguous",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds ``photos``, 3 x 20 pictures; and weights to start from, since random ones differ."""
    folder = tmp_path_factory.mktemp("processes")
    paint_folder(folder / "photos", each=20)
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), folder / "start.safetensors")
    return folder


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()  # which torchrun passes on
            process.communicate()


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    STARTED.append(
        subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
    return STARTED[-1]


def finished(command: list[str], cwd: Path, *, code: int | None = 0) -> tuple[str, str]:
    process = start(command, cwd)
    out, err = process.communicate(timeout=300)
    assert code is None or process.returncode == code, out + err
    return out, err


def nodes_command(rank: int) -> list[str]:
    where = ["--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={PORT}"]
    return [*TORCHRUN[:3], *where, "--nproc_per_node=1", *TORCHRUN[-2:]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()


def finetune(run: str, *options: str) -> list[str]:
    return [*FINETUNE[:5], *FINETUNE[6:], "--weights", "start.safetensors", "--run", run, *options]


def recipe_of(command: list[str], file: Path) -> str:
    """The name of a recipe that states what ``command`` has as options."""
    with click.Context(finetune_command) as context:
        typed, _, _ = finetune_command.make_parser(context).parse_args(command[2:])
    stated = {_KEYS[name]: typed[name] for name in ("path", "name", "weights", "image_size", "epochs", "batch_size")}
    stated["train.flip"] = "--no-flip" not in command
    for key in ("data.path", "model.weights"):  # made absolute by what writes recipes, as if it stood here
        stated[key] = str(file.parent / stated[key])
    file.write_text(recipe_text(Recipe.model_validate(settings(stated, typed["others"])), []))
    return file.name


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "host/float/log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "epoch" in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "host/float/model.safetensors")


# --- what each process takes --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker:UserWarning")  # on one core
@pytest.mark.parametrize("workers", [0, 2])
def test_the_shares_of_a_batch_are_the_batch(pictures: Path, workers: int) -> None:
    dataset = ingest(DataConfig(path=str(pictures)))

    def loader(share: tuple[int, int], **values: Any) -> TrainLoader:
        made = TrainLoader(
            dataset, dataset.of("train"), PreprocessSpec(size=(16, 16)), batch_size=13, workers=workers, **values
        )
        made.share = share
        return made

    shares = [list(loader((rank, 3))(1)) for rank in range(3)]
    whole = loader((0, 1))
    whole.batch_size = 12  # what three can share of 13
    for step, (images, labels) in enumerate(whole(1)):
        assert [len(share[step][0]) for share in shares] == [4, 4, 4]
        assert torch.equal(torch.cat([share[step][0] for share in shares]), images)
        assert torch.equal(torch.cat([share[step][1] for share in shares]), labels)
    mixed = [next(iter(loader((rank, 2), changes=AugmentConfig(mixup=0.5, unmixed=0.0))(0))) for rank in range(2)]
    strengths = [float(targets.max(dim=1).values.min()) for _, targets in mixed]
    assert strengths[0] == pytest.approx(strengths[1])  # one strength for the batch
    with pytest.raises(DataError, match="cannot be divided over 100 processes"):
        loader((0, 100))


def test_every_picture_of_val_is_judged_once_and_the_figures_are_those_of_one_process() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(21, dtype=np.int64) % 4
    names = tuple(map(str, range(21)))
    made = PictureSet("val", rng.integers(0, 255, (21, 16, 16, 3), dtype=np.uint8), labels, names)
    assert sorted(name for rank in range(4) for name in made.part(rank, 4).paths) == sorted(names)
    spec, model = PreprocessSpec(size=(16, 16)), tiny()

    class Recording(Processes):
        """Keeps what it would send, and answers with what it was told."""

        def total(self, values: torch.Tensor) -> torch.Tensor:
            sent.append(values)
            return sum(sent) if len(sent) == self.count else torch.ones_like(values)

    for count in (4, 30):  # 30: some have no picture
        sent: list[torch.Tensor] = []
        found = [evaluator(made, spec, processes=Recording(rank, count))(model) for rank in range(count)]
        assert found[-1] == pytest.approx(evaluator(made, spec)(model), rel=1e-6)
        assert float(sum(values[:4].sum() for values in sent)) == 21


def test_what_processes_cannot_share_or_do_is_refused_and_said_once(tmp_path: Path) -> None:
    assert [divided(size, 3) for size in (1, 3, 8, 32)] == [3, 3, 6, 30]
    for arguments, said in (
        (["finetune", "photos", "--batch-size", "30"], "30 pictures cannot be divided equally over 4 processes"),
        (["compress"], "4 processes were started, but only finetune runs in several"),
    ):
        for rank in ("0", "1"):
            done = subprocess.run(
                [sys.executable, "-m", "edgeopt", *arguments], capture_output=True, text=True, check=False,
                cwd=tmp_path, env={**os.environ, "WORLD_SIZE": "4", "RANK": rank},
            )  # fmt: skip
            assert done.returncode == 1
            assert (said in done.stderr) == (rank == "0"), done.stderr
    assert "--batch-size 28 or 32" in subprocess.run(
        [sys.executable, "-m", "edgeopt", "finetune", "photos", "--batch-size", "30"],
        capture_output=True, text=True, check=False, env={**os.environ, "WORLD_SIZE": "4", "RANK": "0"},
    ).stderr  # fmt: skip


# --- what they say to each other ----------------------------------------------------------------------------------

TALK = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from torch import nn
from edgeopt.train.loop import LoopConfig, train
from edgeopt.train.objectives import CrossEntropy
from edgeopt.train.processes import join

p = join()
assert p.count == 2 and p.leads == (p.rank == 0)
assert p.tell({"a": [1, "ü"]} if p.leads else None) == {"a": [1, "ü"]}
assert p.led(lambda: p.rank + 7) == 7
kinds = {"b": torch.tensor(True), "i": torch.arange(3), "h": torch.ones(2).bfloat16(), "e": torch.empty(0)}
torch.manual_seed(p.rank)
kinds["f"] = torch.randn(2, 3)
found = p.tell_tensors(kinds if p.leads else {})
torch.manual_seed(0)
assert torch.equal(found["f"], torch.randn(2, 3)) and found["b"].item() is True and found["h"].dtype == torch.bfloat16
assert found["e"].shape == (0,) and found["i"].tolist() == [0, 1, 2]
assert p.total(torch.tensor([1.0, p.rank], dtype=torch.float64)).tolist() == [2.0, 1.0]
assert p.largest([p.rank, -p.rank]) == [1.0, 0.0]

pair = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(3)])
pair[0].weight.grad = torch.full((1, 2), float(p.rank))
if p.leads:
    pair[1].weight.grad = torch.ones(1, 2)
assert p.average_gradients(pair, 1.0 + 2 * p.rank) == 2.0
assert pair[0].weight.grad.tolist() == [[0.5, 0.5]] and pair[1].weight.grad.tolist() == [[0.5, 0.5]]
assert pair[2].weight.grad is None  # nowhere any: none

torch.manual_seed(p.rank)  # the processes start from different weights, and see different pictures
model = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4, 3)
)

def batches(epoch, first):
    for step in range(first, 4):
        generator = torch.Generator().manual_seed(100 * epoch + 10 * step + p.rank)
        yield torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 3

train(
    model, batches=batches, steps_per_epoch=4, evaluate=lambda m: {"top1": 0.5, "loss": 1.0}, objective=CrossEntropy(),
    config=LoopConfig(epochs=2, precision="fp32", head_epochs=0.5), folder=Path(f"of-{p.rank}"), processes=p,
)
save_file(model.state_dict(), f"rank{p.rank}.safetensors")
"""


@pytest.mark.slow
def test_processes_agree_on_everything_and_one_writes(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    finished([*TORCHRUN[:-1], "talk"], tmp_path)  # without the dashes that only --run needs
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["1.running_mean"], torch.zeros(4))
    assert (tmp_path / "of-0/log.jsonl").is_file()
    assert not (tmp_path / "of-1").exists()


# --- fine-tuning --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_what_one_does(photos: Path) -> None:
    """Losses, figures and weights agree to rounding; one record, one log, one event file, one JSON object.

    One is told by options, two by a recipe.
    """
    options = ["--epochs", "3", "--json"]
    alone, _ = finished([*ALONE, *finetune("one", *options)], photos)
    recipe = recipe_of(finetune("two", *options), photos / "two.toml")
    both, err = finished([*TORCHRUN, "edgeopt", "finetune", recipe, "--run", "two", "--json"], photos)
    one, two = json.loads(alone), json.loads(both)
    assert (one["metrics"]["training"]["processes"], two["metrics"]["training"]["processes"]) == (1, 2)
    assert one["metrics"]["training"]["batch_size"] == two["metrics"]["training"]["batch_size"] == 8
    assert err.count("epoch 3/3") == 1
    for mine, other in zip(rows(photos / "one"), rows(photos / "two"), strict=True):
        for name in ("train_loss", "val_loss", "val_top1", "lr"):
            assert other[name] == pytest.approx(mine[name], rel=1e-4), name
    for name, value in weights(photos / "one").items():
        assert torch.allclose(value, weights(photos / "two")[name], atol=2e-4), name
    assert not torch.equal(
        weights(photos / "one")["head.weight"], load_file(photos / "start.safetensors")["head.weight"]
    )
    assert len(list((photos / "two/host/float/tensorboard").iterdir())) == 1

    nodes = [  # two launchers of one process, as on two machines that share a folder
        start([*nodes_command(rank), *finetune("nodes", *options)], photos) for rank in range(2)
    ]
    for node in nodes:
        _, err = node.communicate(timeout=300)
        assert node.returncode == 0, err
    assert all(torch.equal(value, weights(photos / "two")[name]) for name, value in weights(photos / "nodes").items())
    again, _ = finished([*TORCHRUN, *finetune("two", *options)], photos)
    assert json.loads(again)["skipped"] is True


def going_on(run: Path, epochs: int) -> Callable[[], bool]:
    """Whether the training started now, which first forgets what of the log is after its checkpoint, did ``epochs``."""
    path = run / "host/float/log.jsonl"
    before = path.stat().st_ino if path.is_file() else None
    return lambda: path.is_file() and path.stat().st_ino != before and len(rows(run)) >= epochs


def when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> list[psutil.Process]:
    """The workers, once ``ready``; the launcher must still run then."""
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return sorted(psutil.Process(process.pid).children(), key=lambda child: int(child.environ()["RANK"]))


@pytest.mark.slow
def test_stopped_or_killed_no_process_is_left_and_the_same_command_goes_on(photos: Path) -> None:
    options = ["--epochs", "14", "--set", "train.patience=14"]
    finished([*TORCHRUN, *finetune("whole", *options)], photos)
    run = photos / "cut"

    ready = going_on(run, 2)
    stopped = start([*TORCHRUN, *finetune("cut", *options)], photos)
    workers = when(stopped, ready)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode != 0
    assert "epochs are done and saved" in err
    assert err.count("edgeopt: interrupted; nothing is lost") == 1
    assert (run / "host/float/checkpoints/last.safetensors").is_file()
    assert not any(worker.is_running() for worker in workers)

    kept = len(rows(run))
    assert kept < 10
    for victim in (1, 0):
        ready = going_on(run, kept + 2)
        killed = start([*TORCHRUN, *finetune("cut", *options)], photos)
        workers = when(killed, ready)
        workers[victim].kill()
        _, err = killed.communicate(timeout=60)
        assert killed.returncode != 0
        assert not any(worker.is_running() for worker in workers)
        assert "training goes on" in err
        assert "this is a bug in edgeopt" not in err
        assert not (run / "host/float/stage.json").exists()

    _, err = finished([*TORCHRUN, *finetune("cut", *options)], photos)
    assert "training goes on" in err
    assert [row["epoch"] for row in rows(run)] == list(range(1, 15))
    assert all(torch.equal(value, weights(photos / "whole")[name]) for name, value in weights(run).items())


POISON = """
import torch
from torch import nn

class Loss(nn.Module):
    def forward(self, logits, targets):
        return logits.sum(dim=1) * (float("nan") if torch.distributed.get_rank() == 1 else 1.0)
"""


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_and_is_said_once(photos: Path) -> None:
    (photos / "poison.py").write_text(POISON)
    _, err = finished([*TORCHRUN, *finetune("poisoned", "--loss", "poison:Loss")], photos, code=1)
    assert err.count("edgeopt: the loss became nan in epoch 1, step 1") == 1

    paint_folder(photos / "others", each=12)
    command = finetune("poisoned")
    command[2] = "others"
    _, err = finished([*TORCHRUN, *command], photos, code=1)  # the first fails before it told the other anything
    assert err.count("edgeopt: poisoned holds another dataset") == 1
    assert "this is a bug in edgeopt" not in err
