"""The child process of a benchmark: opens one engine, then times windows of inferences as the parent asks.

One JSON object a line. In, first the engine's spec, then ``{"window": seconds, "iterations": least}``, with ``"batch"``
for another than the target's, ``{"pictures": folder}``, or ``{"first": picture, "count": pictures}``. Out, one answer
each: ``{"load_s", "memory_bytes", "session"}`` for the spec, ``{"samples_ms", "device_ms", "cpu_ms", "memory_bytes"}``
for a window (``device_ms``: empty unless the device has a clock), ``{"decode_ms", "preprocess_ms", "infer_ms",
"pictures"}`` for encoded pictures taken one by one, ``{"logits", "classes"}`` (float32, base64) for pictures of the
test set, or ``{"error", "fix"}``. End of input ends the process.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import resource
import signal
import sys
from functools import cache
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time
from typing import Any

import numpy as np

from edgeopt.backends.base import Float32, Session, UInt8
from edgeopt.bench.spec import EngineSpec
from edgeopt.errors import REPORT, BackendError, EdgeoptError
from edgeopt.evaluate import checked_logits
from edgeopt.picture_files import DEFAULT_MAX_PIXELS, decoded
from edgeopt.preprocess import PreprocessSpec, prepare
from edgeopt.registry import load_backend
from edgeopt.sets import open_set

Batches = list[Float32 | UInt8]

#: Prepared pictures held in memory; enough to rotate through, few enough not to be what peak memory shows.
PICTURE_BYTES = 8 * 2**20
#: A window's first iterations find cold caches and sleeping threads: at least this many and this long are thrown away.
DISCARD_ITERATIONS = 2
DISCARD_SECONDS = 0.01


def main() -> None:
    """Serve the parent until it closes our input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it ends us
    _die_with_parent()
    # Runtimes print to file descriptor 1 as they please; keep the pipe for answers and send the rest to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    try:
        spec = EngineSpec.from_json(json.loads(sys.stdin.readline()))
        started = perf_counter()
        session = load_backend(spec.backend).open(
            spec.engine, spec.target, precision=spec.precision, threads=spec.threads
        )
        load_s = perf_counter() - started
        with session:
            batches = _batches(session, spec, spec.target.batch)
            checked_logits(session.infer(batches[0]), spec.target.batch)
            embedded = {"embedded_preprocessing": True} if session.embedded_preprocessing else {}
            answer(
                {"load_s": load_s, "memory_bytes": peak_memory_bytes(), "session": {**session.describe(), **embedded}}
            )
            gc.collect()
            gc.freeze()
            gc.disable()
            for line in sys.stdin:
                answer(_task(session, spec, batches, json.loads(line)))
    except EdgeoptError as error:
        answer({"error": error.message, "fix": error.fix})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}", "fix": REPORT})
        raise


def _task(session: Session, spec: EngineSpec, batches: Batches, request: dict[str, Any]) -> dict[str, Any]:
    """One request after the engine was opened."""
    if "first" in request:
        return _logits(session, spec, int(request["first"]), int(request["count"]))
    if "pictures" in request:
        return end_to_end(session, spec, Path(request["pictures"]))
    size = int(request.get("batch", spec.target.batch))
    if size != len(batches[0]):
        batches[:] = _batches(session, spec, size)
        checked_logits(session.infer(batches[0]), size)
    started = process_time()
    samples, device, calls = window(session, batches, float(request["window"]), int(request["iterations"]))
    cpu_ms = (process_time() - started) * 1000 / calls
    checked_logits(session.infer(batches[0]), size)  # an engine may go wrong after a while
    return {
        "samples_ms": samples,
        "device_ms": device,
        "cpu_ms": round(cpu_ms, 5),
        "memory_bytes": peak_memory_bytes(),
    }


def _logits(session: Session, spec: EngineSpec, first: int, count: int) -> dict[str, Any]:
    """The answers to pictures of the test set."""
    pictures, preprocess = _test_set(spec.pictures, spec.preprocess)
    logits = checked_logits(session.infer(session.prepared(pictures[first : first + count], preprocess)), count)
    return {"logits": base64.b64encode(logits.astype("<f4").tobytes()).decode(), "classes": logits.shape[1]}


def end_to_end(session: Session, spec: EngineSpec, folder: Path) -> dict[str, Any]:
    """Medians over the encoded pictures in ``folder``, ms a picture: decoding, preprocessing, inference."""
    assert spec.preprocess is not None
    preprocess = PreprocessSpec.read(spec.preprocess)
    files = sorted(path for path in folder.iterdir() if path.suffix != ".json" and path.is_file())
    side = 2 * int(max(preprocess.size) / preprocess.crop_pct)
    rows = []
    for path in [*files[:2], *files]:  # the first two warm up
        begin = perf_counter()
        with decoded(path, max_pixels=DEFAULT_MAX_PIXELS, draft=(side, side)) as image:
            was_decoded = perf_counter()
            batch = session.prepared(prepare(image, preprocess)[None].repeat(spec.target.batch, axis=0), preprocess)
        prepared = perf_counter()
        session.infer(batch)
        rows.append((was_decoded - begin, prepared - was_decoded, (perf_counter() - prepared) / spec.target.batch))
    if not files:
        raise BackendError(f"{folder} has no pictures", fix="make them where the pictures are: edgeopt export --force")
    medians = np.median(np.asarray(rows[2:]), axis=0) * 1000
    names = ("decode_ms", "preprocess_ms", "infer_ms")
    return {**{name: round(float(one), 5) for name, one in zip(names, medians, strict=True)}, "pictures": len(files)}


@cache
def _test_set(folder: Path | None, preprocess: Path | None) -> tuple[UInt8, PreprocessSpec]:
    """The test pictures, mapped, and how they were prepared; read once, since records of many pictures are long."""
    assert folder is not None
    assert preprocess is not None
    return open_set(folder, "test", checked=True).pictures, PreprocessSpec.read(preprocess)


def _batches(session: Session, spec: EngineSpec, batch: int) -> Batches:
    """Batches of real test pictures as the session takes them, to rotate through."""
    pictures, preprocess = _test_set(spec.pictures, spec.preprocess)
    fitting = PICTURE_BYTES // (int(np.prod(preprocess.input_shape)) * 4 * batch)
    count = min(max(int(fitting), 4), max(1, len(pictures) // batch))
    # np.take wraps around, so that a test set smaller than one batch still fills it.
    indices = np.linspace(0, max(len(pictures) - batch, 0), count, dtype=np.int64)
    return [
        session.prepared(pictures.take(range(first, first + batch), axis=0, mode="wrap"), preprocess)
        for first in indices
    ]


def window(session: Session, batches: Batches, seconds: float, iterations: int) -> tuple[list[float], list[float], int]:
    """Milliseconds of each inference, host to host, for ``seconds`` and at least ``iterations``.

    Also those by the device's own clock (empty where it has none), and all calls made.
    """
    samples: list[int] = []
    device: list[float] = []
    count, picture = len(batches), 0
    infer, clock = session.infer, perf_counter_ns
    begin = clock()
    discarded = 0
    while discarded < DISCARD_ITERATIONS or clock() - begin < DISCARD_SECONDS * 1e9:
        infer(batches[discarded % count])
        discarded += 1
    begin = now = clock()
    while now - begin < seconds * 1e9 or len(samples) < iterations:
        batch = batches[picture % count]
        picture += 1
        before = clock()
        infer(batch)
        now = clock()
        samples.append(now - before)
        on_device = session.device_ms()
        if on_device is not None:
            device.append(round(on_device, 5))
    return [round(sample / 1e6, 5) for sample in samples], device, len(samples) + discarded


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    # ru_maxrss survives exec on Linux, so a child would report its parent's size: VmHWM does not.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _die_with_parent() -> None:
    """A stopped child would outlive a killed parent for ever; Linux can be told to end it."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
