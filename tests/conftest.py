"""Fixtures shared by all tests: tiny real datasets and models, made once a session; and slow tests in shards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, TrainConfig, api

# Two threads at most: the machines of CI have two cores, and pools that fight make tests flaky.
os.environ.setdefault("OMP_NUM_THREADS", "2")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shards", type=int, default=1, help="Divide the selected tests into this many shards.")
    parser.addoption("--shard", type=int, default=0, help="Run this shard only, from 0.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of one shard; which one a test is in depends on its name alone."""
    shards, shard = config.getoption("--shards"), config.getoption("--shard")
    if shards <= 1:
        return
    expression = config.getoption("markexpr")
    assert "slow" in expression, "shards are for the slow tests"
    # Dealt out in turn by name, so that no shard is empty while another has them all. Collection is not filtered yet.
    slow = sorted(item.nodeid for item in items if item.get_closest_marker("slow"))
    mine = set(slow[shard::shards])
    kept = [item for item in items if item.nodeid in mine]
    dropped = [item for item in items if item.nodeid not in mine]
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def paint(label: int, seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture a tiny network can learn: colour and stripes depend on the label, noise on the seed."""
    rng = np.random.default_rng(1000 * label + seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin((x if label % 2 else y) * (0.4 + 0.3 * label) + rng.uniform(0, 6))
    base = np.array([[220, 60, 60], [60, 200, 80], [70, 90, 220], [210, 200, 60]])[label % 4]
    pixels = base[None, None] * (0.7 + 0.3 * waves[..., None]) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def paint_folder(root: Path, *, classes: int = 3, each: int = 40) -> Path:
    """``root/<class>/<index>.png``."""
    for label in range(classes):
        folder = root / f"class {label}"
        folder.mkdir(parents=True)
        for index in range(each):
            paint(label, index).save(folder / f"{index:03d}.png")
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder of 3 x 40 small PNG pictures. Read only."""
    return paint_folder(tmp_path_factory.mktemp("pictures") / "shapes")


PATH_MODEL = ModelConfig(name="resnet18", pretrained=False)
PATH_TRAIN = TrainConfig(epochs=2, batch_size=8, layer_decay=1.0, augment="light", flip=False)


@pytest.fixture(scope="session")
def path_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run taken all the way: trained, compressed twice, built for every backend, measured, reported. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "path"
    data = DataConfig(path=str(pictures), image_size=32)
    run = api.finetune(data, PATH_MODEL, PATH_TRAIN, run=folder).run
    api.compress(run, CompressConfig(epochs=1))
    api.compress(run, CompressConfig(epochs=1, prune=0.3, recovery_epochs=2))
    for target in ("onnxruntime", "openvino", "tensorrt", "rtx-desktop"):
        api.build(run, target)
    api.bench(run, seconds=3, starts=1)
    api.report(run)
    return run
