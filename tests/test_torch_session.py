"""The backend ``pytorch``: the trained model itself, opened like any engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt import models
from edgeopt.backends.base import BuildRequest
from edgeopt.config import Target
from edgeopt.errors import BackendError
from edgeopt.registry import load_backend
from edgeopt.schemes import SCHEMES

TARGET = Target(schema=1, name="pytorch", title="PyTorch", backend="pytorch", precision="fp32")


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host") / "float"
    created = models.create("test_efficientnet", num_classes=5, pretrained=False, image_size=64)
    models.save(created.model, created.architecture, folder)
    return folder


@pytest.mark.parametrize("given", ["file", "folder"])
def test_it_answers_as_the_saved_model(variant: Path, given: str) -> None:
    engine = variant / "model.safetensors" if given == "file" else variant
    images = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    before = torch.get_num_threads()
    try:
        with load_backend("pytorch").open(engine, TARGET, precision="fp32", threads=1) as session:
            assert torch.get_num_threads() == 1
            answers = session.infer(images)
            assert session.describe()["threads"] == 1
        with torch.no_grad():
            expected = models.load(variant)(torch.from_numpy(images)).numpy()
    finally:
        torch.set_num_threads(before)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_it_answers_the_same_or_says_why_it_cannot(variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = TARGET.session.model_copy(update={"compile": True})
    target = TARGET.model_copy(update={"session": session})
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    before = torch.get_num_threads()
    try:
        with load_backend("pytorch").open(variant, target, precision="fp32", threads=1) as opened:
            answers = opened.infer(images)
            assert opened.describe()["compiled"] is True
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1  # it was
        expected = models.load(variant)(torch.from_numpy(images)).detach().numpy()
        np.testing.assert_allclose(answers, expected, rtol=1e-3, atol=1e-4)
        torch._dynamo.reset()
        monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
        monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
        opened = load_backend("pytorch").open(variant, target, precision="fp32", threads=1)
        with pytest.raises(BackendError, match=r"torch\.compile does not work with this model here"):
            opened.infer(images)
    finally:
        torch._dynamo.reset()
        torch.set_num_threads(before)


def test_there_is_nothing_to_build(variant: Path, tmp_path: Path) -> None:
    request = BuildRequest(variant / "model.onnx", tmp_path, TARGET, "fp32", None, (3, 64, 64))
    with pytest.raises(BackendError, match="trained model itself"):
        load_backend("pytorch").build(request)
    with pytest.raises(BackendError, match="does not exist"):
        load_backend("pytorch").open(tmp_path / "model.safetensors", TARGET, precision="fp32")
    assert load_backend("pytorch").schemes() == tuple(SCHEMES)


def test_without_torch_it_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'torch' else find(name, package)\n"
    )
    code = (
        "from edgeopt.registry import load_backend; import sys; a = load_backend('pytorch').availability(); "
        "print(a.ok, a.reason, a.install, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}", "PATH": ""},
    )
    assert done.stdout.strip() == "False torch not installed pip install 'edgeopt[train]' False"
