"""ONNX Runtime: builds keep the ONNX and audit the graph the runtime really executes; sessions answer through it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from edgeopt import environment
from edgeopt.backends.audit import TIMED_RUNS, ComputeLayer, conv_macs, fusion_report, layer_times, matmul_macs
from edgeopt.backends.base import (
    Availability,
    Backend,
    BuildRequest,
    BuildResult,
    Float32,
    FusionReport,
    LayerTimes,
    Session,
    UInt8,
)
from edgeopt.backends.capability import precisions_of, processor, schemes_for
from edgeopt.backends.onnx_reader import FLOAT16, read_onnx
from edgeopt.backends.onnxruntime_gates import quantize_gates
from edgeopt.config import Target
from edgeopt.errors import REPORT, BackendError

_INSTALL = 'pip install "edgeopt[onnxruntime]"'
_INSTALL_GPU = 'pip uninstall -y onnxruntime && pip install "edgeopt[gpu]"'
_UPGRADE = f"use the newest onnxruntime (pip install --upgrade) and build again; if that does not help, {REPORT}"
_CPU = "CPUExecutionProvider"

#: Executed operators that are compute layers; the runtime's own fused ones included.
_INT8_CONVS = frozenset({"QLinearConv", "ConvInteger", "QLinearConvTranspose"})
_INT8_MATMULS = frozenset(
    {"QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention"}
)
_FLOAT_CONVS = frozenset({"Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvTranspose"})
_FLOAT_MATMULS = frozenset(
    {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "TransposeMatMul", "Attention", "MultiHeadAttention", "Einsum"}
)
#: It rounds float weights between int8 activations to int8, a scale a tensor: of layers that were asked to be float.
UNASKED = ("WeightBiasQuantization",)


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on CPUs, and on NVIDIA GPUs through ``session.provider``."""

    name: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnxruntime"
    native_code: ClassVar[bool] = False  # an ONNX file; external data is refused, custom operators are not loaded
    precisions: ClassVar[tuple[str, ...]] = precisions_of("onnxruntime")
    embeds_preprocessing: ClassVar[bool] = True

    def availability(self) -> Availability:
        """Not ok when the module is missing, broken, or both of its packages are installed over each other."""
        both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
        if len(both) == 2:
            return Availability(
                False,
                "onnxruntime and onnxruntime-gpu are both installed; they unpack into one folder and break each other",
                "pip uninstall -y onnxruntime onnxruntime-gpu && " + _INSTALL,
            )
        try:
            import onnxruntime
        except ImportError as error:
            return Availability(False, f"onnxruntime cannot be imported ({error})", _INSTALL)
        if not hasattr(onnxruntime, "InferenceSession"):
            return Availability(
                False, "the onnxruntime folder is incomplete (half uninstalled?)", f"{_INSTALL} --force-reinstall"
            )
        return Availability(True, version=str(onnxruntime.__version__))

    def schemes(self) -> tuple[str, ...]:
        """From the capability table, for this CPU."""
        return schemes_for(self.name, processor())

    def missing(self, target: Target) -> str:
        """The execution provider, when this ONNX Runtime was built without it."""
        import onnxruntime

        wanted, present = target.session.provider, onnxruntime.get_available_providers()
        return "" if wanted in present else f"this ONNX Runtime has no {wanted}, only {', '.join(present)}"

    def session_settings(self, engine: Path, target: Target, precision: str) -> dict[str, Any]:
        """Provider, threads, and the entries of a session's configuration, for any machine of the target's kind."""
        options = target.session
        entries = {**_exact_anywhere(engine), **_spinning(target)}
        stated = {"provider": options.provider, "threads": options.threads, "entries": entries}
        return {**stated, "disabled_optimizers": [*UNASKED]}

    def tap(
        self, exposed: Path, onnx: Path, tensor: str, target: Target, precision: str, pictures: Float32
    ) -> npt.NDArray[Any]:
        """From the graph, fused as the engine's is."""
        return run_one(exposed, target.session.provider, tensor, pictures, _exact(onnx))

    def _build(self, request: BuildRequest) -> BuildResult:
        model = read_onnx(request.onnx)  # refuses external data
        if request.precision == "fp16" and not any(one.dtype == FLOAT16 for one in model.initializers.values()):
            raise BackendError(
                f"{request.onnx.name} has no float16 weights",
                fix="edgeopt export --force writes such a file",
            )
        # The ONNX stays the engine: ONNX Runtime's optimized file is tied to this CPU and version, and loading is not
        # what is timed.
        engine = request.folder / "engine.onnx"
        provider, source = request.target.session.provider, request.onnx
        with tempfile.TemporaryDirectory(dir=request.folder) as folder:
            if request.precision == "int8" and provider == _CPU:
                source = Path(folder) / "gated.onnx"
                quantize_gates(request.onnx, source)
            if request.target.session.optimized:
                _optimize(source, engine, provider)
            else:
                shutil.copyfile(source, engine)
        fusion = audit(engine, provider, request.blank(1))
        return BuildResult(
            engine=engine.name,
            fusion=fusion,
            layer_times=_times(engine, provider, 1, request.blank(request.target.batch)),
            files=(engine.name,),
            details={"provider": provider},
        )

    def layer_times(
        self, engine: Path, target: Target, *, precision: str, threads: int, batch: Float32
    ) -> dict[str, float]:
        """By the kernel times in ONNX Runtime's profile."""
        cores = environment.usable_cores()
        threads = min(threads or target.session.threads or cores, cores)
        times = _times(engine, target.session.provider, threads, batch)
        return {layer.name: 1000 * layer.ms for layer in times.layers}

    def _open(self, engine: Path, target: Target, precision: str, threads: int) -> Session:
        cores = environment.usable_cores()
        threads = min(threads or cores, cores)  # more than the cores only wait for each other
        entries = {**_exact(engine), **_spinning(target)}
        return OnnxRuntimeSession(_load(engine, target.session.provider, threads, entries), threads, options=entries)


class OnnxRuntimeSession(Session):
    """One InferenceSession with one input of float32, or of uint8 pictures, and one float32 output."""

    def __init__(self, session: Any, threads: int, *, options: Mapping[str, str]) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        kinds = ("tensor(float)", "tensor(uint8)")
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type not in kinds or outputs[0].type != kinds[0]:
            raise BackendError(
                "the model must have one float32 input, or one of uint8 pictures, and one float32 output",
                fix="give a file that edgeopt export wrote, or one of that form",
            )
        self.embedded_preprocessing = inputs[0].type == kinds[1]
        self._session = session
        self._input = inputs[0].name
        self._shape = inputs[0].shape
        self._outputs = [outputs[0].name]
        self._threads, self._options = threads, dict(options)

    def _infer(self, batch: Float32 | UInt8) -> Float32:
        try:
            logits: Float32 = self._session.run(self._outputs, {self._input: batch})[0]
        except Exception as error:
            fix = f"pass pictures of the model's shape ({', '.join(map(str, self._shape))}); if they are, {REPORT}"
            raise _refused(f"running a batch {batch.shape}", error, fix) from error
        return logits

    def close(self) -> None:
        """Ends the runtime's threads."""
        self._session = None

    def describe(self) -> dict[str, Any]:
        """Provider, threads, version."""
        import onnxruntime

        return {
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "device": self._session.get_providers()[0],
            "threads": self._threads,
            **({"options": self._options} if self._options else {}),
        }


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _exact(engine: Path) -> dict[str, str]:
    """The option, if any, that makes this CPU's int8 arithmetic exact for the weights in ``engine``.

    x86 without VNNI adds pairs of u8*s8 products in int16. With weights beyond 7 bits they saturate, and ONNX Runtime
    has a slower way that does not (``kOrtSessionOptionsAvx2PrecisionMode``).
    """
    found = _exact_anywhere(engine)
    return found if processor() == "x86" else {}


def _exact_anywhere(engine: Path) -> dict[str, str]:
    """As :func:`_exact`, for whatever CPU: those with VNNI, and ARM's, take no notice of it."""
    model = read_onnx(engine)  # refuses external data
    return {"session.x64quantprecision": "1"} if model.weights_need_8_bits() else {}


def _spinning(target: Target) -> dict[str, str]:
    """Spinning is the runtime's default; without it, idle threads leave their cores to others."""
    return {} if target.session.spinning else {"session.intra_op.allow_spinning": "0"}


def _optimize(source: Path, engine: Path, provider: str) -> None:
    """Write the graph as ONNX Runtime fuses it; what depends on the very CPU it still does when loading."""
    import onnxruntime

    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    _load(source, provider, 1, {"optimized_model_filepath": str(engine), "graph_optimization_level": level})


def _refused(doing: str, error: Exception, fix: str) -> BackendError:
    return BackendError(
        f"ONNX Runtime failed at {doing}: {str(error).splitlines()[0] if str(error) else error!r}", fix=fix
    )


def _load(engine: Path, provider: str, threads: int, configure: Mapping[str, Any] | None = None) -> Any:
    """An InferenceSession on exactly ``provider``; the runtime's own fallback to the CPU is an error."""
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if provider not in present:
        raise BackendError(
            f"this ONNX Runtime has no {provider}, only {', '.join(present)}",
            fix=_INSTALL_GPU if provider.startswith(("CUDA", "Tensorrt")) else "choose another session.provider",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors; its warnings are about its own clean-ups
    for name, value in (configure or {}).items():
        if "." in name:
            options.add_session_config_entry(name, value)
        else:
            setattr(options, name, value)
    try:
        session = onnxruntime.InferenceSession(
            str(engine), options, providers=[provider], disabled_optimizers=[*UNASKED]
        )
    except Exception as error:
        raise _refused(f"loading {engine.name}", error, _UPGRADE) from error
    got = session.get_providers()
    if not got or got[0] != provider:
        raise BackendError(
            f"asked for {provider}, ONNX Runtime took {', '.join(got)}",
            fix="install the driver and libraries this provider needs, or choose session.provider = " + repr(_CPU),
        )
    return session


def run_one(
    onnx: Path, provider: str, tensor: str, pictures: Float32, configure: Mapping[str, Any]
) -> npt.NDArray[Any]:
    """The output ``tensor`` of ``onnx`` for ``pictures``, on one thread."""
    session = _load(onnx, provider, 1, configure)
    try:
        found: npt.NDArray[Any] = session.run([tensor], {session.get_inputs()[0].name: pictures})[0]
    except Exception as error:
        raise _refused(f"asking for {tensor}", error, _UPGRADE) from error
    return found


def audit(
    engine: Path, provider: str, picture: Float32 | UInt8, options: Mapping[str, str] | None = None
) -> FusionReport:
    """The operators that ``picture``, a batch of one as the engine takes it, runs through.

    ``options`` are entries of the session's configuration; None: those that :class:`OnnxRuntimeBackend` opens it with.
    """
    entries = _exact(engine) if options is None else options
    # Packed weights vanish from a node's listed inputs, and their shapes are needed to count MACs.
    entries = {"session.disable_prepacking": "1", **entries}
    events = _profile(engine, provider, 1, picture, 1, entries)
    return fusion_report("onnxruntime", _executed_layers(events), "operators in ONNX Runtime's own profile of one run")


def _times(engine: Path, provider: str, threads: int, batch: Float32 | UInt8) -> LayerTimes:
    """The time of every operator, as the engine will run; the first run, which allocates, left out."""
    events = _profile(engine, provider, threads, batch, 1 + TIMED_RUNS, _exact(engine))
    nodes = [event for event in events if _is_kernel(event)]
    each = len(nodes) // (1 + TIMED_RUNS)
    return layer_times(
        ((_name(event), str(event["args"].get("op_name", "")), event["dur"] / 1000) for event in nodes[each:]),
        runs=TIMED_RUNS,
        batch=len(batch),
        source="ONNX Runtime's own profile",
    )


def _profile(
    engine: Path, provider: str, threads: int, batch: Float32 | UInt8, calls: int, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The events of ONNX Runtime's profile of ``calls`` runs."""
    with tempfile.TemporaryDirectory(dir=engine.parent, prefix="profile-") as folder:
        switched_on = {"enable_profiling": True, "profile_file_prefix": str(Path(folder) / "run")}
        session = _load(engine, provider, threads, {**switched_on, **options})
        try:
            for _ in range(calls):
                session.run(None, {session.get_inputs()[0].name: batch})
        except Exception as error:
            raise _refused(f"running pictures {batch.shape}", error, _UPGRADE) from error
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")


def _name(event: Mapping[str, Any]) -> str:
    return str(event["name"]).removesuffix("_kernel_time") or str(event["args"].get("op_name", ""))


def _executed_layers(events: list[dict[str, Any]]) -> list[ComputeLayer]:
    layers = []
    for event in events:
        if not _is_kernel(event):
            continue
        arguments = event["args"]
        operator = arguments.get("op_name", "")
        int8 = operator in _INT8_CONVS or operator in _INT8_MATMULS
        if int8 or operator in _FLOAT_CONVS or operator in _FLOAT_MATMULS:
            layers.append(ComputeLayer(_name(event), int8, _macs(operator, arguments)))
    return layers


def _macs(operator: str, arguments: Mapping[str, Any]) -> int | None:
    """MACs from the shapes the profiler lists; attention and einsum hide theirs."""
    try:
        inputs = [next(iter(item.values())) for item in arguments["input_type_shape"]]
        output = next(iter(arguments["output_type_shape"][0].values()))
    except (KeyError, IndexError, StopIteration):
        return None
    if operator in _INT8_CONVS or operator in _FLOAT_CONVS:
        weights = [dims for dims in inputs[1:] if len(dims) == len(output)]
        if "Transpose" in operator:  # its weight is (in, out / groups, *kernel), applied once for each input element
            return conv_macs(inputs[0], weights[0]) if weights else None
        return conv_macs(output, weights[0]) if weights else None
    if operator in ("QAttention", "Attention", "MultiHeadAttention", "Einsum") or not inputs:
        return None
    return matmul_macs(output, inputs[0])
