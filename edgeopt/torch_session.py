"""Backend ``pytorch``: the original model in plain eager PyTorch, measured like any engine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt import records
from edgeopt.allotment import usable_cores
from edgeopt.backends.base import Availability, Backend, BuildRequest, BuildResult, Float32, Session
from edgeopt.config import Target
from edgeopt.errors import BackendError
from edgeopt.schemes import SCHEMES

if TYPE_CHECKING:
    from torch import nn

_WEIGHTS = "model.safetensors"
_NEEDED = ("torch", "torchvision", "timm", "safetensors")


class PyTorchBackend(Backend):
    """Opens ``host/<variant>/``; there is nothing to build. Quantized variants run simulated, in fp32."""

    name: ClassVar[str] = "pytorch"
    extra: ClassVar[str] = "train"
    native_code: ClassVar[bool] = False  # safetensors, and a model of timm's or torchvision's
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")

    def availability(self) -> Availability:
        """Whether torch and what rebuilds models are installed here; devices do without."""
        missing = [package for package in _NEEDED if find_spec(package) is None]
        if missing:
            return Availability(
                False, reason=f"{', '.join(missing)} not installed", install=f"pip install 'edgeopt[{self.extra}]'"
            )
        import torch

        return Availability(True, version=str(torch.__version__))

    def schemes(self) -> tuple[str, ...]:
        """All: the arithmetic is simulated."""
        return tuple(SCHEMES)

    def open(self, engine: Path, target: Target, *, precision: str, threads: int = 0) -> Session:
        """As every backend's; ``engine`` is a variant's ``model.safetensors`` or the variant's folder."""
        return super().open(
            engine / _WEIGHTS if engine.is_dir() else engine, target, precision=precision, threads=threads
        )

    def _build(self, request: BuildRequest) -> BuildResult:
        raise BackendError("the pytorch target runs the trained model itself", fix="bench it: edgeopt bench")

    def _open(self, engine: Path, target: Target, precision: str, threads: int) -> Session:
        from edgeopt.models import load
        from edgeopt.models.branches import is_merged, merged_again

        model = load(engine.parent)
        # As anyone would deploy it: branches that are for training would slow the baseline down.
        if not is_merged(model) and _exported_merged(engine.parent):
            model = merged_again(model)
        return TorchSession(model, threads or usable_cores(), compiled=target.session.compile)


def _exported_merged(variant: Path) -> bool:
    """Whether the variant's float ONNX was written with its branches merged, which was checked there."""
    record = variant / "export" / "parity.json"
    return record.is_file() and bool(records.read(records.ExportRecord, record).get("merged"))


class TorchSession(Session):
    """A model on the CPU in eval mode, on request compiled. The thread count is torch's and so of the whole process."""

    def __init__(self, model: nn.Module, threads: int, *, compiled: bool = False) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = model.eval()
        self._run: Any = torch.compile(self._model) if compiled else self._model
        self._threads, self._compiled = threads, compiled

    def _infer(self, batch: Float32) -> Float32:
        import torch

        try:
            with torch.inference_mode():
                answers: Float32 = self._run(torch.from_numpy(batch)).numpy()
        except RuntimeError as error:  # torch._dynamo's and inductor's are such, a missing C++ compiler among them
            if not self._compiled:
                raise
            said = " ".join(str(error).split())[:300]
            raise BackendError(
                f"torch.compile does not work with this model here: {said}",
                fix="install a C++ compiler, or leave --compiled out",
            ) from error
        return answers

    def describe(self) -> dict[str, Any]:
        """Device, threads, version."""
        import torch

        facts = {"device": "CPU", "threads": self._threads, "precision": "fp32", "version": str(torch.__version__)}
        return {**facts, "compiled": self._compiled}
