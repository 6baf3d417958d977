"""What the loop is made of: optimizer groups, schedule, objectives, speed probe, allocator, validation."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from edgeopt import allotment
from edgeopt.errors import TrainingError
from edgeopt.preprocess import PreprocessSpec, normalize
from edgeopt.sets import PictureSet
from edgeopt.train.allocator import huge_pages_on_request
from edgeopt.train.config import LoopConfig
from edgeopt.train.distillation import memory_format_of
from edgeopt.train.evaluate_torch import evaluator, logits
from edgeopt.train.objectives import CrossEntropy
from edgeopt.train.optimizer import make_optimizer, schedule
from edgeopt.train.probe import Choice, candidates, probe


def tiny() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(6, 4),
        )  # fmt: skip


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 4


# --- optimizer ----------------------------------------------------------------------------------------------------


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Parameter name -> (initial learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["initial_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_layers_near_the_head_learn_faster_and_norms_are_not_decayed() -> None:
    model = timm.create_model("test_efficientnet", num_classes=4)
    found = settings(model, make_optimizer(model, LoopConfig(epochs=1, lr=1.0, layer_decay=0.5)))
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert found["classifier.weight"] == (1.0, 0.05)
    assert found["classifier.bias"] == (1.0, 0.0)
    by_depth = [found[name][0] for name in ("conv_stem.weight", "blocks.0.0.conv.weight", "classifier.weight")]
    assert by_depth == sorted(set(by_depth))
    assert all(found[name][1] == (0.05 if parameter.ndim > 1 else 0.0) for name, parameter in model.named_parameters())


def test_models_that_do_not_know_their_layers_are_layered_by_order() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    found = settings(model, make_optimizer(model, LoopConfig(epochs=1, lr=1.0, weight_decay=0.0, layer_decay=0.5)))
    assert found["19.weight"][0] == 1.0
    assert found["18.weight"][0] == 0.5
    assert found["0.weight"][0] == 0.5**4


def test_extra_groups_keep_their_own_rate_and_are_not_decayed() -> None:
    model = tiny()
    scales = [model[0].weight]
    extra = [{"params": scales, "lr": 0.3}]
    config = LoopConfig(epochs=1, lr=0.1, layer_decay=1.0)
    found = settings(model, make_optimizer(model, config, extra_groups=extra))
    assert found["0.weight"] == (0.3, 0.0)
    assert found["6.weight"] == (0.1, 0.05)
    assert len(found) == 5


def test_the_schedule_warms_up_then_follows_half_a_cosine() -> None:
    values = [schedule(step, steps=100, warmup_steps=9, min_ratio=0.01) for step in range(100)]
    assert values[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert values[9:] == sorted(values[9:], reverse=True)
    assert values[9 + 91 // 2] == pytest.approx(0.505, abs=0.02)
    assert values[-1] == pytest.approx(0.01, abs=0.001)
    assert schedule(0, steps=4, warmup_steps=100, min_ratio=0.0) < schedule(2, steps=4, warmup_steps=100, min_ratio=0.0)


# --- objectives ---------------------------------------------------------------------------------------------------


def test_cross_entropy_smooths_labels() -> None:
    images, targets = batch()
    model = tiny().eval()
    plain, smooth = CrossEntropy()(model, images, targets), CrossEntropy(0.2)(model, images, targets)
    uniform = -torch.log_softmax(model(images), dim=1).mean()
    assert smooth.item() == pytest.approx((0.8 * plain + 0.2 * uniform).item(), rel=1e-5)


# --- probe --------------------------------------------------------------------------------------------------------


class PlannedSteps:
    """An objective whose steps take what a planted clock says, by memory format; the last figure goes on for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: list[float]) -> None:
        from edgeopt.train import probe as module

        self.now, self.left = 0.0, {name: list(steps) for name, steps in seconds.items()}
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        steps = self.left["last" if memory_format_of(images) is torch.channels_last else "contiguous"]
        self.now += steps.pop(0) if len(steps) > 1 else steps[0]
        return CrossEntropy()(model, images, targets)


BOTH = [Choice("fp32", "channels_last"), Choice("fp32", "contiguous")]


def test_the_probe_finds_the_faster_way_and_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    found = probe(model, *batch(), PlannedSteps(monkeypatch, last=[0.1], contiguous=[0.2]), BOTH)
    assert found.best == Choice("fp32", "channels_last")
    assert found.step_seconds == pytest.approx(0.1)
    assert [row["memory_format"] for row in found.to_json()] == ["channels_last", "contiguous"]
    assert [row["steps"] for row in found.to_json()] == [3, 2]  # what is clearly behind is measured no further
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("last", "contiguous"),
    # As measured: on a new machine, and where the kernel gave huge pages for the first time.
    [([3.0, 0.67, 0.66, 0.47], [1.0, 0.62]), ([2.6, 1.03, 0.84, 0.39, 0.84, 0.39], [0.7, 0.62])],
)
def test_a_slow_start_does_not_decide_the_probe(
    monkeypatch: pytest.MonkeyPatch, last: list[float], contiguous: list[float]
) -> None:
    """The faster way was the one that touched memory first."""
    found = probe(tiny(), *batch(), PlannedSteps(monkeypatch, last=last, contiguous=contiguous), BOTH)
    assert found.best == Choice("fp32", "channels_last")


def test_a_way_many_times_slower_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe(tiny(), *batch(), PlannedSteps(monkeypatch, last=[0.1], contiguous=[0.5]), BOTH)
    assert [row["steps"] for row in found.to_json()] == [3, 1]


def test_the_probe_stops_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = PlannedSteps(monkeypatch, last=[1.0], contiguous=[1.0])
    assert [row["steps"] for row in probe(tiny(), *batch(), slow, BOTH[:1], budget_seconds=2.5).to_json()] == [2]
    assert [row["steps"] for row in probe(tiny(), *batch(), slow, BOTH, budget_seconds=2.5).to_json()] == [3, 3]
    assert [row["steps"] for row in probe(tiny(), *batch(), slow, BOTH, budget_seconds=13.0).to_json()] == [4, 4]


def test_bf16_is_tried_only_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.train import probe as module

    cpu = torch.device("cpu")
    for present in (False, True):
        monkeypatch.setattr(module, "has_bf16", lambda present=present: present)
        found = {choice.precision for choice in candidates("auto", cpu, model=tiny())}
        assert found == ({"fp32", "bf16"} if present else {"fp32"})
        assert {choice.precision for choice in candidates("bf16", cpu, model=tiny())} == {"bf16"}


@pytest.mark.parametrize(("channels", "kernel", "stride", "safe"), [(3, 1, 2, False), (8, 1, 2, True), (3, 3, 2, True)])
def test_channels_last_is_not_tried_where_its_gradients_are_wrong(
    channels: int, kernel: int, stride: int, safe: bool
) -> None:
    """RepVGG's stem: the process dies in the backward pass; it is trained here in the format that is left."""
    cpu, model = torch.device("cpu"), nn.Sequential(nn.Conv2d(channels, 4, kernel, stride), nn.ReLU())
    layouts = {choice.memory_format for choice in candidates("fp32", cpu, model=model)}
    assert layouts == ({"channels_last", "contiguous"} if safe else {"contiguous"})
    if safe:
        assert len(candidates("fp32", cpu, "channels_last", model=model)) == 1
    else:
        with pytest.raises(TrainingError, match="wrong gradients of 0 on a CPU"):
            candidates("fp32", cpu, "channels_last", model=model)


def test_a_bf16_step_runs() -> None:
    found = probe(tiny(), *batch(), CrossEntropy(), [Choice("bf16", "channels_last")])
    assert found.best.precision == "bf16"


# --- allocator ----------------------------------------------------------------------------------------------------

FAULTS = """
import ctypes, resource, sys
from edgeopt.train.allocator import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def faults():
    # Blocks of a network's activations in size, written and freed, which torch does the same way at every step.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        blocks = [libc.malloc(40_000_000) for _ in range(3)]
        for block in blocks:
            ctypes.memset(block, 1, 40_000_000)
        for block in reversed(blocks):
            libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_freed_memory_is_not_faulted_in_again() -> None:
    counts = {
        mode: int(
            subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True).stdout
        )
        for mode in ("leave", "keep")
    }
    assert counts["leave"] > 1000
    assert counts["keep"] < counts["leave"] / 20


HUGE = """
import ctypes, sys
from pathlib import Path
from edgeopt.train import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def huge():
    block = libc.malloc(80_000_000)
    ctypes.memset(block, 1, 80_000_000)
    rows = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    libc.free(block)
    return int(rows["AnonHugePages"].split()[0])
before = huge()
assert allocator.keep_memory()
first = huge()
grown = Path("/proc/self/statm").read_text().split()[0]
assert allocator.keep_memory()
assert Path("/proc/self/statm").read_text().split()[0] == grown, "asked again, it needs no more addresses"
allocator.give_back_memory()
assert allocator.keep_memory()
print(before, first, huge())
"""


@pytest.mark.skipif(not huge_pages_on_request(), reason="huge pages are not on request here")
def test_the_kept_heap_is_of_huge_pages_where_the_system_gives_them_on_request() -> None:
    done = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True).stdout
    before, first, again = map(int, done.split())
    assert before < 20_000 < 60_000 < min(first, again), "KiB of a block of 78,125"


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_a_limit_on_addresses_leaves_the_heap_in_small_pages() -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
    code += "from edgeopt.train.allocator import keep_memory; assert keep_memory(); bytearray(2**26)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- validation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_logits_are_the_models_own_on_every_picture_in_order(layout: torch.memory_format) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (21, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(21, dtype=np.int64) % 4
    made = PictureSet("val", pictures, labels, tuple(map(str, range(21))))
    spec = PreprocessSpec(size=(16, 16))
    model = tiny().to(memory_format=layout).train()
    model[1].eval()
    answers = logits(model, made, spec, batch=8)
    assert [module.training for module in model] == [True, False, True, True, True, True, True]
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(normalize(pictures, spec))).numpy()
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-5)
    found = evaluator(made, spec)(model)
    assert found["top1"] == pytest.approx((expected.argmax(1) == labels).mean())
    likelihood = torch.log_softmax(torch.from_numpy(expected), dim=1)[torch.arange(21), torch.from_numpy(labels)]
    assert found["loss"] == pytest.approx(-likelihood.mean().item(), rel=1e-4)
    assert math.isfinite(found["loss"])
    assert found["loss_error"] == pytest.approx(likelihood.std(correction=0).item() / 21**0.5, rel=1e-3)


def test_importing_the_loop_starts_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, edgeopt.train.loop; from accelerate.state import PartialState; "
        "assert not PartialState._shared_state; "
        "print(sorted(name for name in ('nncf', 'tensorboard', 'timm') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert allotment.usable_cores() >= 1
