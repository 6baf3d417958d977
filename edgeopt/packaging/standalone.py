"""Classify pictures with the engine in this folder; needs what requirements.txt lists, and nothing else.

    python predict.py PICTURE FOLDER '*.jpg' [--top 3] [--json] [--threads 2]

From Python: ``Classifier().predict(["picture.jpg"])``. It answers as ``edgeopt predict`` does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeopt.classify import Prediction, classify, expand, rate, with_list
from edgeopt.errors import BackendError, EdgeoptError
from edgeopt.files import printable
from edgeopt.pixels import Float32, UInt8, load_picture, normalize
from edgeopt.telemetry import switch_off

Infer = Callable[[Any], Float32]
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Spec:
    """``preprocess.json``."""

    size: tuple[int, int]
    resize: str
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    background: tuple[int, int, int]

    @classmethod
    def read(cls, path: Path) -> Spec:
        """From the file's JSON; lists become tuples, so that specs can be keys."""
        stated = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {name: stated[name] for name in cls.__dataclass_fields__}
        plain: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
        return cls(**plain)


class Classifier:
    """The engine in ``folder``, opened: by ``threads``, or as many as its target states (0: every core)."""

    def __init__(self, folder: Path = _HERE, *, threads: int | None = None) -> None:
        self.package: dict[str, Any] = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        self.spec = Spec.read(folder / "preprocess.json")
        self.labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        self.batch = int(self.package["batch"])
        _check(folder, self.package)
        settings = self.package["session"]
        threads = settings["threads"] if threads is None else threads
        open_engine = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}[self.package["backend"]]
        self._infer = open_engine(folder / self.package["engine"], settings, threads, self.batch)

    def logits(self, pictures: UInt8) -> Float32:
        """float32 (N, classes) for prepared pictures uint8 (N, height, width, 3), N at most the engine's batch."""
        missing = self.batch - len(pictures)
        whole = np.concatenate([pictures, np.repeat(pictures[-1:], missing, axis=0)]) if missing else pictures
        embedded = self.package["embedded_preprocessing"]
        return self._infer(whole if embedded else normalize(whole, self.spec))[: len(pictures)]

    def predict(self, names: Sequence[str], *, top: int = 5) -> tuple[list[Prediction], list[str]]:
        """Answers for files, folders and patterns, best first, and a line for each that could not be read."""

        def answer(pictures: Mapping[Spec, UInt8]) -> Float32:
            return self.logits(pictures[self.spec])

        temperature = float(self.package["temperature"])
        return classify(answer, names, [self.spec], self.labels, top=top, batch=self.batch, temperature=temperature)


def _check(folder: Path, package: Mapping[str, Any]) -> None:
    """That the engine's files are those packaged, and that this CPU computes them exactly."""
    for name, stated in package["engine_sha256"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != stated:
            raise BackendError(f"{name} is not the file that was packaged", fix="copy the package again")
    flags = Path("/proc/cpuinfo")
    if not package["needs_int8_dot"] or platform.machine() != "x86_64" or not flags.is_file():
        return
    if not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags.read_text(encoding="utf-8").split()):
        raise BackendError(
            "this CPU has no VNNI, and would saturate the sums of 8-bit weights: the answers would be wrong",
            fix="package a u8a7w engine: edgeopt compress --int8 --scheme u8a7w, then build and package again",
        )


def _open_onnxruntime(engine: Path, settings: Mapping[str, Any], threads: int, batch: int) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in settings["entries"].items():
        options.add_session_config_entry(name, value)
    if settings["provider"] != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # CUDA as pip installed it; what it misses it prints
            onnxruntime.preload_dlls(msvc=False)
    providers = [(name, stated) for name, stated in settings["providers"]]
    disabled = settings["disabled_optimizers"]
    session = onnxruntime.InferenceSession(str(engine), options, providers=providers, disabled_optimizers=disabled)
    if session.get_providers()[0] != settings["provider"]:
        raise BackendError(
            f"asked for {settings['provider']}, ONNX Runtime took {session.get_providers()[0]}",
            fix="install the driver and libraries it needs",
        )
    name = session.get_inputs()[0].name
    return lambda pictures: session.run(None, {name: pictures})[0]


def _open_openvino(engine: Path, settings: Mapping[str, Any], threads: int, batch: int) -> Infer:
    switch_off()
    import openvino

    core = openvino.Core()
    model = core.read_model(str(engine))
    shape = model.input().get_partial_shape()
    shape[0] = batch  # a fixed shape is fastest
    model.reshape(shape)
    device = str(settings["device"])
    counted = threads and device.startswith(("CPU", "AUTO"))  # others have none, and refuse to be told
    properties = {**settings["properties"], **({"INFERENCE_NUM_THREADS": str(threads)} if counted else {})}
    request = core.compile_model(model, device, properties).create_infer_request()

    def infer(pictures: Any) -> Float32:
        request.infer({0: pictures})
        return np.array(request.get_output_tensor().data)

    return infer


def prepare(names: Sequence[str], folder: Path) -> int:
    """Write each picture as the engine gets it, before it is normalized, to ``folder`` as binary PPM, numbered."""
    spec = Spec.read(_HERE / "preprocess.json")
    files, failures = expand(names)
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(files):
        Image.fromarray(load_picture(Path(name), spec)).save(folder / f"{index:05d}.ppm")
    print("\n".join(map(printable, failures)), end="\n" if failures else "", file=sys.stderr)
    return 1 if failures else 0


def main(typed: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="predict.py", description="Classify pictures with the engine in this folder.")
    parser.add_argument("images", nargs="+", help="files, folders, patterns; - reads names from standard input")
    parser.add_argument("--top", type=int, help="labels listed for each picture [1; with --json 5]")
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout")
    parser.add_argument("--threads", type=int, help="[what the target states]")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write prepared pictures there instead")
    options = parser.parse_args(typed)
    try:
        if options.prepare:
            return prepare(with_list(options.images, sys.stdin), options.prepare)
        classifier = Classifier(threads=options.threads)
        started = time.perf_counter()
        names = with_list(options.images, sys.stdin)
        found, failures = classifier.predict(names, top=options.top or (5 if options.json else 1))
    except EdgeoptError as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - started
    if options.json:
        print(json.dumps([one.to_json() for one in found], indent=1, ensure_ascii=False))
    else:
        print("\n".join(printable(one.to_text()) for one in found))
    print("\n".join([*map(printable, failures), rate(len(found), seconds)]), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
