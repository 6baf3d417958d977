"""TensorRT's session without a GPU: the order of what it asks for, and that the packages know what it asks for.

The real runtime and device need a card (``make test-gpu``); here stand a device of host memory and an engine that adds
up its pictures. Their methods must all be methods of the real classes, and every CUDA call must be one that
cuda-python has, with as many arguments.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import tiny_onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt.backends import gpu, tensorrt, trt_common, trt_table
from edgeopt.backends.base import BuildRequest
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.bench import crosscheck
from edgeopt.config import Target
from edgeopt.errors import BackendError, MissingBackendError

trt = pytest.importorskip("tensorrt_rtx")
SHAPE, CLASSES, LIMIT = (3, 2, 2), 2, 2


class HostGpu(gpu.Gpu):
    """Queues work on the host and does it when waited for; a capture keeps what is queued and does none of it."""

    name, stream = "host", 7
    graphs = True

    def __init__(self) -> None:
        self.queued: list[tuple[str, Callable[[], None]]] = []
        self.done: list[str] = []
        self.buffers: dict[int, Any] = {}
        self.closed = False

    def queue(self, name: str, work: Callable[[], None]) -> None:
        self.queued.append((name, work))

    def allocate(self, size: int) -> int:
        buffer = (ctypes.c_char * size)()
        self.buffers[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def pinned(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def upload(self, address: int, array: np.ndarray) -> None:
        self.queue("upload", lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes) and None)

    def download(self, array: np.ndarray, address: int) -> None:
        self.queue("download", lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes) and None)

    def synchronize(self) -> None:
        for name, work in self.queued:
            work()
            self.done.append(name)
        self.queued.clear()

    def begin(self) -> None:
        self.queue("begin", lambda: None)

    def end(self) -> None:
        self.queue("end", lambda: None)

    def elapsed_ms(self) -> float:
        return 0.25

    def capture(self, queue: Callable[[], bool]) -> Callable[[], None] | None:
        if not self.graphs:
            return super().capture(queue)
        before, self.queued = self.queued, []
        captured = self.queued if queue() else None
        self.queued = before
        if captured is None:
            return None
        return lambda: self.queue("graph", lambda: [work() for _, work in captured] and None)

    def close(self) -> None:
        self.closed = True


class Context:
    refuses = False

    def __init__(self, device: HostGpu) -> None:
        self.device, self.addresses, self.shape = device, {}, ()  # type: ignore[var-annotated]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.device.done.append(f"shape {shape[0]}")

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.device.stream
        if self.refuses:
            return False
        batch = self.shape[0]

        def add() -> None:
            values = (ctypes.c_float * (batch * 12)).from_address(self.addresses["input"])
            sums = np.asarray(values).reshape(batch, 12).sum(axis=1)
            answers = (ctypes.c_float * (batch * CLASSES)).from_address(self.addresses["logits"])
            np.asarray(answers).reshape(batch, CLASSES)[:] = sums[:, None] * [1, -1]

        self.device.queue("kernels", add)
        return True


class Engine:
    num_io_tensors = 2
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"input": (-1, *SHAPE), "logits": (-1, CLASSES)}

    def __init__(self, device: HostGpu) -> None:
        self.device = device

    def create_execution_context(self) -> Context:
        return Context(self.device)

    def get_tensor_name(self, index: int) -> str:
        return list(self.shapes)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode.INPUT if name == "input" else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return trt.float32

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, *SHAPE), (LIMIT, *SHAPE), (LIMIT, *SHAPE)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]


def test_what_stands_for_the_runtime_has_only_what_the_runtime_has() -> None:
    for stand_in, real in ((Context, trt.IExecutionContext), (Engine, trt.ICudaEngine)):
        asked = {name for name in vars(stand_in) if not name.startswith("_")} - {"refuses", "shapes"}
        assert asked <= set(dir(real))
    # What the session asks of the real objects, by name, whether or not a stand-in has it.
    source = inspect.getsource(trt_common)
    real_names = set().union(*(dir(one) for one in (trt.IExecutionContext, trt.ICudaEngine, trt.Runtime)))
    asked = set(re.findall(r"self\._(?:context|engine|runtime)\.(\w+)", source))
    assert len(asked) > 10
    assert asked <= real_names


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> HostGpu:
    made = HostGpu()
    monkeypatch.setattr(trt_common, "open_gpu", lambda: made)
    return made


@pytest.fixture
def session(device: HostGpu, tmp_path: Path) -> Iterator[trt_common.TrtSession]:
    (tmp_path / "engine.plan").write_bytes(b"engine")
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: Engine(device) if data == b"engine" else None)
    names = ("ILogger", "TensorIOMode", "float32", "__version__")
    module = SimpleNamespace(Runtime=lambda logger: runtime, **{name: getattr(trt, name) for name in names})
    with trt_common.TrtSession(module, tmp_path / "engine.plan", "TensorRT") as opened:
        yield opened
    assert device.closed


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def assert_right(session: trt_common.TrtSession, batch: np.ndarray) -> None:
    np.testing.assert_allclose(session.infer(batch)[:, 0], batch.sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_batch_size_that_comes_again_runs_as_one_graph_on_the_new_pictures(
    session: trt_common.TrtSession, device: HostGpu
) -> None:
    for seed in range(3):
        assert_right(session, pictures(1, seed))
    call = ["upload", "begin", "kernels", "end", "download"]
    launch = ["upload", "begin", "graph", "end", "download"]
    assert device.done == ["shape 1", *call, *launch, *launch]
    assert session.describe()["cuda_graph"] is True
    device.done.clear()
    for seed in range(2):
        assert_right(session, pictures(2, seed))
    assert_right(session, pictures(1))
    assert device.done == ["shape 2", *call, *launch, "shape 1", *call]


def test_without_graphs_it_runs_plainly_and_says_so(session: trt_common.TrtSession, device: HostGpu) -> None:
    device.graphs = False
    for seed in range(3):
        assert_right(session, pictures(1, seed))
    assert "graph" not in device.done
    assert session.describe()["cuda_graph"] is False


def test_a_batch_larger_than_the_engines_goes_in_parts_whose_times_add_up(session: trt_common.TrtSession) -> None:
    assert_right(session, pictures(5))
    assert session.device_ms() == pytest.approx(0.75)
    assert_right(session, pictures(1))
    assert session.device_ms() == pytest.approx(0.25)


def test_an_engine_that_does_not_run_or_load_is_a_clear_error(
    session: trt_common.TrtSession, device: HostGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Context, "refuses", True)
    with pytest.raises(BackendError, match="could not run a batch of 1"):
        session.infer(pictures(1))
    monkeypatch.setattr(Context, "refuses", False)
    with pytest.raises(BackendError, match=r"expected pictures \(3, 2, 2\), got \(3, 4, 4\)"):
        session.infer(np.zeros((1, 3, 4, 4), np.float32))
    (tmp_path / "other.plan").write_bytes(b"another version's")
    with pytest.raises(BackendError, match=r"cannot load other\.plan"):
        trt_common.TrtSession(session._trt, tmp_path / "other.plan", "TensorRT")
    assert device.closed, "what was taken of the GPU is given back, since nobody has a session to close"


def test_kernel_timings_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tensorrt._timing_cache("10.3").parent == tmp_path / "edgeopt"
    assert tensorrt._timing_cache("10.3") != tensorrt._timing_cache("10.8"), "another version has other kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by the specification
    assert tensorrt._timing_cache("10.3").is_absolute()


class Config:
    """A builder's configuration as far as timings go; it refuses those of ``strange``, as of another GPU."""

    def __init__(self, strange: bytes = b"", *, damaged: bool = False) -> None:
        self.strange, self.damaged, self.attached = strange, damaged, None

    def create_timing_cache(self, serialized: bytes) -> Any:
        return None if serialized and self.damaged else SimpleNamespace(serialize=lambda: serialized + b"+measured")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if self.strange and cache.serialize().startswith(self.strange):
            return False
        self.attached = cache
        return True


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (Config(), b"old+measured"),
        (Config(strange=b"old"), b"+measured"),  # a Jetson in another power mode
        (Config(damaged=True), b"+measured"),
    ],
)
def test_timings_that_the_builder_refuses_are_left_behind_and_the_build_goes_on(
    config: Config, kept: bytes, tmp_path: Path
) -> None:
    (tmp_path / "kept.timing").write_bytes(b"old")
    cache = trt_common._load_cache(config, tmp_path / "kept.timing")
    assert cache is not None
    assert config.attached is cache
    assert bytes(cache.serialize()) == kept


def test_the_real_builder_has_what_timings_are_kept_with(tmp_path: Path) -> None:
    """TensorRT-RTX's does nothing with them, and says so, but takes the same calls."""
    asked = set(re.findall(r"config\.(\w+)", inspect.getsource(trt_common._load_cache)))
    assert asked <= set(dir(trt.IBuilderConfig))
    assert "serialize" in dir(trt.ITimingCache)


def test_the_real_builder_is_told_of_batches_from_one_up_and_to_leave_tf32_alone(tmp_path: Path) -> None:
    """The objects are TensorRT-RTX's; between them and the code stands only what keeps the profile."""
    logger = trt_common.collecting_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(tiny_onnx.write_float(tmp_path / "a.onnx").read_bytes())
    profiles: list[Any] = []

    def kept() -> Any:
        profiles.append(builder.create_optimization_profile())
        return profiles[-1]

    told = SimpleNamespace(create_builder_config=builder.create_builder_config, create_optimization_profile=kept)
    target = Target(schema=1, title="t", backend="tensorrt_rtx", batch=8)
    request = BuildRequest(tmp_path / "a.onnx", tmp_path, target, "fp32", None, tiny_onnx.SHAPE)
    config = trt_common._configure(trt, told, network, request, ("SM86",))
    [profile] = profiles
    assert [shape[0] for shape in profile.get_shape("input")] == [1, 8, 8]
    assert not config.get_flag(trt.BuilderFlag.TF32), "on by default: float32 would have 10 bits of mantissa"


def test_of_several_layer_tables_in_a_build_log_the_last_is_the_engines() -> None:
    row = "Name: {0}, LayerType: {1}, Inputs: [ {{ Name: x, Dimensions: [1,8], Datatype: {2} }}], Outputs: [ {{ Name: y, Dimensions: [1,5], Datatype: Float }}], TacticName: t"  # noqa: E501
    lines = [
        "Engine Layer Information:",
        row.format("a", "gemm", "Float"),
        "Timing Runner",
        row.format("a", "gemm", "Int8"),
    ]
    [layer] = trt_table.from_log(lines)
    assert (layer.name, layer.int8, layer.output_dims) == ("a", True, ((1, 5),))
    with pytest.raises(BackendError, match="holds no layer table"):
        trt_table.from_log(lines[:1])


@pytest.mark.parametrize(("version", "ok"), [("8.6.1", False), ("10.3.0", True), ("11.0.1.2", True)])
def test_a_tensorrt_without_strongly_typed_networks_is_named_before_anything_is_built_with_a_planted_module(
    monkeypatch: pytest.MonkeyPatch, version: str, ok: bool
) -> None:
    monkeypatch.setattr(tensorrt, "gpu_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(Builder=object, __version__=version))
    found = tensorrt.TensorRtBackend().availability()
    assert (found.ok, found.version) == (ok, version)
    if not ok:
        with pytest.raises(MissingBackendError, match=r"TensorRT 8\.6\.1 is older than 10\.0") as caught:
            tensorrt.TensorRtBackend().require(to_build=True)
        assert caught.value.fix == 'pip install "edgeopt[tensorrt]" --upgrade'


def test_trtexec_is_given_the_engines_batch_with_a_planted_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "trtexec"
    program.write_text("")
    monkeypatch.setattr(crosscheck.shutil, "which", lambda name: str(program))
    spec = SimpleNamespace(engine=tmp_path / "engine.plan")
    found = crosscheck._trtexec(spec, [8, 3, 224, 224], {"input": "pixels"}, 1.0)  # type: ignore[arg-type]
    assert found is not None
    assert "--shapes=pixels:8x3x224x224" in found[1]


def test_the_rows_of_a_matrix_product_are_counted_also_when_heads_are_split(tmp_path: Path) -> None:
    """197 tokens of 192 features to 576, as DeiT-Tiny's; the table's dimensions are the kernel's."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 197, 192])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 197, 576])
    weight = numpy_helper.from_array(np.zeros((192, 576), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="qkv")], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph), str(tmp_path / "a.onnx"))
    model = read_onnx(tmp_path / "a.onnx")
    for dims in ((-1, 197, 576), (1, 197, 3, 3, 64), (8, 3, 3, 197, 64)):
        row = trt_table.TrtLayer("qkv_myl0_1", "gemm", ("Int8",), ("Int8",), (dims,), ())
        assert trt_table._macs(model.nodes[0], row, model) == 197 * 192 * 576
    assert trt_table._macs(model.nodes[0], None, model) is None, "of how many rows nobody knows"


def test_every_cuda_call_is_one_that_cuda_python_has_with_as_many_arguments() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    calls = []
    for node in ast.walk(ast.parse(inspect.getsource(gpu.CudaPythonGpu))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "_do" and isinstance(node.args[0], ast.Constant):
            calls.append((node.args[0].value, len(node.args) - 1))
        elif node.func.attr.startswith("cuda"):
            calls.append((node.func.attr, len(node.args)))
    assert len(calls) > 15
    for name, given in calls:
        signature = getattr(runtime, name).__doc__.splitlines()[0]
        wanted = signature[signature.index("(") + 1 : signature.rindex(")")]
        assert given == len([one for one in wanted.split(",") if one.strip()]), (name, signature)
    source = inspect.getsource(gpu.CudaPythonGpu)
    for chain in re.findall(r"self\._cuda\.(\w+(?:\.\w+)*)", source):
        value: Any = runtime
        for part in chain.split("."):
            value = getattr(value, part)


@pytest.mark.gpu
@pytest.mark.skipif(gpu.gpu_count() == 0, reason="there is no NVIDIA GPU on this machine")
def test_on_a_gpu_a_graph_copies_again_what_it_captured_and_its_clock_runs() -> None:
    device = gpu.CudaPythonGpu()
    there, back = device.pinned((4,)), device.pinned((4,))
    address = device.allocate(there.nbytes)

    def queue() -> bool:
        device.upload(address, there)
        device.download(back, address)
        return True

    launch = device.capture(queue)
    assert launch is not None
    for value in (1.0, 2.0):
        there[:] = value
        device.begin()
        launch()
        device.end()
        device.synchronize()
        assert back.tolist() == [value] * 4
        assert 0 < device.elapsed_ms() < 1000
    assert device.capture(lambda: False) is None  # and the stream takes work again
    queue()
    device.close()


@pytest.mark.skipif(gpu.gpu_count() > 0, reason="there is a GPU")
def test_cuda_python_itself_says_that_there_is_no_driver() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(BackendError, match="CUDA refused cudaStreamCreateWithFlags"):
        gpu.CudaPythonGpu()


def test_pycuda_where_it_is_installed_has_what_is_asked() -> None:
    try:
        driver = import_module("pycuda.driver")
    except ImportError as error:
        pytest.skip(f"pycuda cannot be imported here: {error}")
    for name in ("Device", "Stream", "Event", "mem_alloc", "pagelocked_empty", "memcpy_htod_async"):
        assert hasattr(driver, name)
    for name in ("record", "time_till"):
        assert hasattr(driver.Event, name)
