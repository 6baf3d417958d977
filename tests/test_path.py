"""The whole path on real input: pictures to engines and a report, then on a machine without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PATH_MODEL, PATH_TRAIN, paint
from test_losses import SMALL

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, api, environment
from edgeopt.backends.onnx_reader import FLOAT16, read_onnx
from edgeopt.errors import BackendError, ConfigError, MissingStageError, RunError
from edgeopt.metrics import MIN_WINDOWS, softmax
from edgeopt.models.architecture import Architecture
from edgeopt.preprocess import PreprocessSpec, load_picture, normalize
from edgeopt.registry import load_backend
from edgeopt.sets import open_set
from edgeopt.stages.build_plan import target_folder
from edgeopt.stages.engines import pick_engine
from edgeopt.stages.quantizing import wants_int8_outputs
from edgeopt.stages.variants import open_variant


def _engines(run: Run, target: str) -> dict[str, dict[str, object]]:
    return {key.split("/")[1]: record for key, record in run.engines().items() if key.startswith(f"{target}/")}


def test_finetune_learns_and_records_what_it_did(path_run: Run) -> None:
    record = path_run.variant("float")
    assert record["parent"] is None
    assert record["metrics"]["val_top1"] > 0.8  # guessing gets a third
    assert record["config"]["train"]["epochs"] == 2
    assert record["config_origin"]["train"]["epochs"] == "call"
    assert record["config_origin"]["train"]["lr"] == "default"
    assert record["config_origin"]["data"]["image_size"] == "call"
    assert {"model", "architecture", "preprocess", "metrics"} <= set(record["outputs"])
    assert (path_run.path / "host/float/log.jsonl").is_file()
    assert list((path_run.path / "host/float/tensorboard").iterdir())


def test_int8_outputs_are_for_onnx_runtime_and_on_request(path_run: Run) -> None:
    """By default the CPU's scheme has them unless all targets are other backends'; TensorRT's never."""
    variants = path_run.variants()
    assert variants[f"int8-{_cpu_scheme()}"]["config"]["int8_outputs"] is True
    assert variants["int8-s8a8w"]["config"]["int8_outputs"] is False
    found = []
    for targets, stated in ((("openvino",), None), (("openvino", "onnxruntime"), None), (("openvino",), True)):
        config = CompressConfig(schemes=("u8a8w",), int8_outputs=stated)
        found.append(wants_int8_outputs(config, "u8a8w", targets))
    assert found == [False, True, True]


def test_the_same_call_again_makes_nothing_again(path_run: Run, pictures: Path) -> None:
    before = (path_run.path / "host/float/stage.json").read_bytes()
    again = api.finetune(DataConfig(path=str(pictures), image_size=32), PATH_MODEL, PATH_TRAIN, run=path_run.path)
    assert again.skipped
    assert (path_run.path / "host/float/stage.json").read_bytes() == before


def test_compress_makes_a_tree_of_variants_that_really_shrank(path_run: Run) -> None:
    variants = path_run.variants()
    scheme = _cpu_scheme()
    assert variants["float-prune30"]["parent"] == "float"
    assert variants[f"int8-{scheme}-prune30"]["parent"] == "float-prune30"
    assert variants[f"int8-{scheme}"]["parent"] == "float"
    whole, pruned = variants["float"]["metrics"], variants["float-prune30"]["metrics"]
    assert abs(1 - pruned["macs"] / whole["macs"] - 0.3) < 0.03
    assert pruned["parameters"] < whole["parameters"]
    assert pruned["model_bytes"] < 0.9 * whole["model_bytes"]
    latency = variants["float-prune30"]["pruning"]["latency"]
    assert (latency["target"], latency["scheme"]) == ("onnxruntime", scheme)
    assert latency["share_of_unpruned"] > 0


@pytest.mark.parametrize("name", ["float", "float-prune30", "int8-{}-prune30"])
def test_a_variant_reloaded_is_what_was_judged(path_run: Run, name: str) -> None:
    """On val it has the loss that training recorded of the model in memory, up to the rounding of another layout."""
    from edgeopt.train.evaluate_torch import evaluator

    variant = open_variant(path_run, name.format(_cpu_scheme()))
    assert bool(variant.architecture.pruning) == ("prune" in name)
    assert bool(variant.architecture.quantizers) == ("int8" in name)
    val = open_set(path_run.data / "sets" / variant.preprocess.key, "val")
    found, recorded = evaluator(val, variant.preprocess)(variant.load()), variant.record["metrics"]
    assert found["top1"] == recorded["val_top1"]
    assert found["loss"] == pytest.approx(recorded["val_loss"], rel=1e-5)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_every_compute_layer_runs_in_int8_and_answers_as_trained(path_run: Run, target: str) -> None:
    engines = _engines(path_run, target)
    int8 = {name: record for name, record in engines.items() if record["precision"] == "int8"}
    assert len(int8) == 2
    assert "float" in engines
    for name in int8:
        fusion = json.loads((path_run.path / "device" / target / name / "fusion.json").read_text())
        assert fusion["int8_share"] == 1.0
        assert fusion["int8_share_macs"] == 1.0
        assert fusion["compute_layers"] == 21  # 20 convolutions and the classifier
    assert all(record["parity"]["ok"] for record in engines.values())  # type: ignore[index]


def test_without_a_gpu_the_tensorrt_onnx_is_checked_and_the_command_for_the_device_recorded(path_run: Run) -> None:
    from edgeopt import environment

    if environment.gpus():
        pytest.skip("this machine has a GPU and builds the engine itself")
    built = api.build(path_run, "tensorrt")
    for item in built:
        assert item.record["engine"] is None
        assert "no NVIDIA GPU" in item.record["reason"]
        assert "edgeopt build --target tensorrt" in item.record["device_command"]
    int8 = next(item.record for item in built if item.record["precision"] == "int8")
    assert "checked_with" in int8["details"]
    onnx = read_onnx(path_run.output(int8, "model.onnx"))
    kinds = {one.dtype for name, one in onnx.initializers.items() if name.endswith(".scale")}
    assert kinds == {FLOAT16}, "TensorRT runs the rest in half precision"


def test_the_original_and_every_engine_are_measured_on_the_same_pictures(path_run: Run) -> None:
    keys = [key for key, record in path_run.engines().items() if record.get("engine") and record["runs_here"]]
    truth = set()
    for key in keys:
        accuracy = json.loads((path_run.path / "device" / key / "accuracy.json").read_text())
        truth.add(json.dumps(accuracy["truth"]))
        assert accuracy["n"] == 24
    assert len(truth) == 1
    original = json.loads((path_run.path / "device/pytorch/float/accuracy.json").read_text())
    same = json.loads((path_run.path / "device/onnxruntime/float/accuracy.json").read_text())
    assert same["predictions"] == original["predictions"]


def test_the_report_says_what_was_measured(path_run: Run) -> None:
    report = json.loads((path_run.path / "report/report.json").read_text())
    assert report["schema"] == 1
    rows = {f"{row['target']}/{row['variant']}": row for row in report["engines"] if row["precision"] == "int8"}
    row = rows[f"onnxruntime/int8-{_cpu_scheme()}"]
    assert row["p50_ms"] > 0
    # A machine that is busy enough gets through fewer windows in three seconds than an interval needs.
    windows = len(json.loads((path_run.path / "device" / row["key"] / "latency.json").read_text())["window_medians_ms"])
    assert (row["speedup_ci"] is None) == (windows < MIN_WINDOWS)
    if row["speedup_ci"]:
        assert row["speedup_ci"][0] <= row["speedup"] <= row["speedup_ci"][1]
    assert row["int8_share"] == 1.0
    assert 0 <= row["top1"] <= 1
    html = (path_run.path / "report/report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html


def test_predict_answers_and_lists_what_it_could_not_read(path_run: Run, tmp_path: Path) -> None:
    for label in range(3):
        paint(label, 991).save(tmp_path / f"-new {label}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    predictions, failures = api.predict(path_run, [str(tmp_path)])
    assert [item.label for item in predictions] == ["class 0", "class 1", "class 2"]
    assert len(failures) == 1
    assert "broken.png" in failures[0]
    row = predictions[0].to_json()
    assert set(row) == {"path", "label", "probability", "top"}


def test_evaluate_is_the_recorded_accuracy(path_run: Run) -> None:
    key = f"openvino/int8-{_cpu_scheme()}"
    record = json.loads((path_run.path / "device" / key / "accuracy.json").read_text())
    assert api.evaluate(path_run, key)["top1"] == record["top1"]
    with pytest.raises(MissingStageError, match="did you mean"):
        api.evaluate(path_run, key[:-1])


def test_test_pictures_are_read_by_bench_and_eval_alone(path_run: Run) -> None:
    """Calibration is drawn from train, and no picture is in two splits."""
    split = json.loads((path_run.data / "split.json").read_text())
    by_split: dict[str, set[str]] = {}
    for path, _, digest, name in split["items"]:
        by_split.setdefault(name, set()).add(digest)
        assert not Path(path).is_absolute()
    assert not by_split["train"] & by_split["test"]
    assert not by_split["train"] & by_split["val"]
    spec = PreprocessSpec.read(path_run.path / "host/float/preprocess.json")
    calibration = json.loads((path_run.data / "sets" / spec.key / "calib.json").read_text())
    train = {path for path, _, _, name in split["items"] if name == "train"}
    assert set(calibration["paths"]) <= train


def test_an_edited_engine_is_refused(path_run: Run, tmp_path: Path) -> None:
    shutil.copytree(path_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("host", "tensorboard"))
    run = Run.open(tmp_path / "run")
    engine = run.path / "device/onnxruntime/float/engine.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    shutil.copytree(path_run.path / "host", run.path / "host")
    with pytest.raises(RunError, match="was changed since"):
        api.predict(run, [str(tmp_path)], engine="onnxruntime/float")


def test_a_run_from_another_machine_needs_data_pointed_at(path_run: Run, tmp_path: Path) -> None:
    shutil.copytree(path_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("device", "tensorboard"))
    info = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**info, "host": "0" * 12}))
    with pytest.raises(RunError, match="made on another machine"):
        api.compress(Run.open(tmp_path / "run"), CompressConfig(epochs=0))


def test_what_makes_no_sense_is_refused_before_any_work(path_run: Run) -> None:
    with pytest.raises(ConfigError, match="nothing to compress"):
        api.compress(path_run, CompressConfig(int8=False))
    with pytest.raises(ConfigError, match="is int8 already"):
        api.compress(path_run, CompressConfig(), variant=f"int8-{_cpu_scheme()}")
    with pytest.raises(BackendError, match=r"cannot run here|has no engine here"):
        api.predict(path_run, ["x.png"], engine="tensorrt/int8-s8a8w")


def test_a_target_that_names_8_bit_weights_takes_7_bit_ones_as_well(path_run: Run, tmp_path: Path) -> None:
    """Compressed on a host without int8 dot products, the run must still build on a Raspberry Pi."""
    from edgeopt.config import load_target
    from edgeopt.stages.build_plan import plan

    planned = plan(path_run, load_target("raspberry-pi-5"), load_backend("onnxruntime"))
    assert [item.scheme for item in planned if item.precision == "int8"] == [_cpu_scheme()] * 2


def test_bench_of_a_target_without_engines_says_so(path_run: Run) -> None:
    with pytest.raises(MissingStageError, match="no engine of raspberry-pi-5"):
        api.bench(path_run, targets=["raspberry-pi-5"])
    with pytest.raises(ConfigError, match="unknown name"):
        api.bench(path_run, targets=["nosuch"])


def test_an_engine_that_failed_its_parity_check_is_not_used(path_run: Run, tmp_path: Path) -> None:
    shutil.copytree(path_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    record = tmp_path / "run/device/onnxruntime/float/build.json"
    values = json.loads(record.read_text())
    values["parity"] = {**values["parity"], "ok": False, "message": "planted"}
    record.write_text(json.dumps(values))
    with pytest.raises(BackendError, match="does not answer as trained: planted"):
        api.predict(Run.open(tmp_path / "run"), ["x.png"], engine="onnxruntime/float")


def test_nothing_is_left_of_checkpoints_once_a_variant_is_committed(path_run: Run) -> None:
    assert not list(path_run.path.glob("host/*/checkpoints/*.safetensors"))


def test_random_weights_come_of_the_seed_and_not_of_what_was_drawn_before(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    data, model = DataConfig(path=str(pictures), image_size=32), ModelConfig(name="small:Net", pretrained=False)
    found = []
    for number, seed in enumerate((3, 3, 4)):
        torch.manual_seed(number)  # as if a program had drawn something else each time
        state = torch.get_rng_state()
        one_way = {"precision": "fp32", "memory_format": "contiguous"}  # which is fastest may differ, and so the bits
        train = PATH_TRAIN.model_copy(update={"seed": seed, "epochs": 1, **one_way})
        made = api.finetune(data, model, train, run=tmp_path / str(number))
        assert torch.equal(torch.get_rng_state(), state), "the program's own draws go on as without edgeopt"
        found.append(made.load().state_dict())
    first, same, other = found
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_adopt_takes_a_tutorials_checkpoint(pictures: Path, tmp_path: Path) -> None:
    import torch
    from torchvision.models import resnet18

    model = resnet18(num_classes=3)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    said: list[str] = []

    class Console:
        def say(self, text: str) -> None:
            said.append(text)

        def task(self, title: str):  # type: ignore[no-untyped-def]
            from edgeopt.console import Silent

            return Silent().task(title)

    adopted = api.adopt(
        DataConfig(path=str(pictures), image_size=32),
        ModelConfig(name="torchvision:resnet18", weights=str(tmp_path / "model.pth")),
        run=tmp_path / "run",
        console=Console(),
    )
    with torch.inference_mode():
        pixels = torch.randn(2, 3, 32, 32)
        assert torch.equal(adopted.load()(pixels), model.eval()(pixels))
    assert adopted.record["stage"] == "adopt"
    assert Architecture.read(tmp_path / "run/host/float/architecture.json").source == "torchvision"


def test_predict_applies_the_temperature_fitted_on_val(path_run: Run, pictures: Path) -> None:
    key = f"onnxruntime/int8-{_cpu_scheme()}"
    engine = pick_engine(path_run, key)
    assert engine.temperature == path_run.variant(f"int8-{_cpu_scheme()}")["metrics"]["temperature"] != 1.0
    picture = sorted((pictures / "class 1").iterdir())[0]
    ((answer,), _) = api.predict(path_run, [str(picture)], engine=key)
    with engine.open() as session:
        logits = session.infer(normalize(load_picture(picture, engine.preprocess)[None], engine.preprocess))
    assert answer.probability == pytest.approx(softmax(logits / engine.temperature).max(), abs=1e-6)
    assert answer.probability != pytest.approx(softmax(logits).max(), abs=1e-9)


def test_copies_of_a_run_on_several_boards_never_write_the_same_folder(path_run: Run, tmp_path: Path) -> None:
    """A board's engines go under its own name, whether or not the host built for that target before the copying."""
    for built_before in (True, False):
        copy = tmp_path / str(built_before)
        shutil.copytree(path_run.path, copy, ignore=None if built_before else shutil.ignore_patterns("device"))
        info = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps({**info, "host": "another"}))
        for path in copy.glob("device/*/*/build.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "another"}))
        folder = target_folder(Run.open(copy), "onnxruntime")
        assert folder == f"device/onnxruntime@{environment.machine_id()}"
    assert target_folder(path_run, "onnxruntime") == "device/onnxruntime"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with edgeopt's base dependencies and ONNX Runtime: a device, without torch."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    root = Path(__file__).resolve().parent.parent
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{root}[onnxruntime]"], check=True)
    return folder / "bin"


def test_a_copied_run_builds_benches_evaluates_and_predicts_the_same_without_torch(
    path_run: Run, pictures: Path, device: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "copied"
    shutil.copytree(path_run.path, run, ignore=shutil.ignore_patterns("onnxruntime", "openvino", "tensorboard"))
    key = f"onnxruntime/int8-{_cpu_scheme()}-prune30"

    def edgeopt(*arguments: str) -> str:
        done = subprocess.run(
            [str(device / "edgeopt"), *arguments, "--run", str(run)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    no_torch = subprocess.run([str(device / "python"), "-c", "import torch"], capture_output=True, check=False)
    assert no_torch.returncode != 0
    edgeopt("build", "--target", "onnxruntime")
    edgeopt("bench", "--seconds", "2", "--starts", "1", "--quiet")
    there = json.loads((run / "device" / key / "accuracy.json").read_text())
    here = json.loads((path_run.path / "device" / key / "accuracy.json").read_text())
    assert there["predictions"] == here["predictions"]
    assert there["drop_points"] == here["drop_points"]  # against the original's answers, which came along
    assert json.loads(edgeopt("eval", "--engine", key, "--json"))["top1"] == here["top1"]
    samples = [str(path) for path in sorted((pictures / "class 1").iterdir())[:5]]
    answers = json.loads(edgeopt("predict", *samples, "--engine", key, "--json"))
    mine, _ = api.predict(path_run, samples, engine=key)
    assert [row["label"] for row in answers] == [item.label for item in mine]
    assert np.allclose([row["probability"] for row in answers], [item.probability for item in mine], atol=1e-5)


def _cpu_scheme() -> str:
    return str(load_backend("onnxruntime").schemes()[0])
