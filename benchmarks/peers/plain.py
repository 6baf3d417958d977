"""Backend ``onnxruntime-plain``: a file as whoever follows its tool's guide opens it, nothing of edgeopt's added.

edgeopt's own backend asks ONNX Runtime for exact sums on x86 CPUs without VNNI, where 8-bit weights saturate otherwise.
A peer's user does not know that, so that peers are measured without; ``plugin/`` says the name to the processes that
``edgeopt.bench`` starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeopt import allotment
from edgeopt.backends.base import FusionReport, Session
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from edgeopt.backends.onnxruntime_audit import audit
from edgeopt.config import Target
from edgeopt.errors import BackendError

PLUGIN = Path(__file__).with_name("plugin")
NAME = "onnxruntime-plain"
PROVIDER = "CPUExecutionProvider"


class PlainOnnxRuntimeBackend(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU with its defaults, but for the number of threads."""

    name: ClassVar[str] = NAME

    def audit(self, model: Path, input_shape: tuple[int, int, int]) -> FusionReport:
        """What the runtime executes of ``model``."""
        return audit(model, PROVIDER, np.zeros((1, *input_shape), np.float32), {})

    def _open(self, engine: Path, target: Target, precision: str, threads: int) -> Session:
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = min(threads or allotment.usable_cores(), allotment.usable_cores())
        try:
            session = onnxruntime.InferenceSession(str(engine), options, providers=[PROVIDER])
        except Exception as error:
            said = str(error).splitlines()[0]
            raise BackendError(f"ONNX Runtime does not load it: {said}", fix="see the tool's own issues") from error
        return OnnxRuntimeSession(session, options.intra_op_num_threads, options={})
