"""What a session needs of a GPU, by cuda-python or by pycuda: memory, one stream, its clock, CUDA graphs.

Complete, but not run here for want of a GPU: the names and arguments used are checked against cuda-python's own.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from edgeopt.backends.base import Float32
from edgeopt.errors import BackendError, MissingBackendError


class Gpu(ABC):
    """The first GPU and one stream on it; sizes in bytes, device addresses and the stream handle as integers."""

    name: str  # of the package
    stream: int

    @abstractmethod
    def allocate(self, size: int) -> int:
        """The address of ``size`` new bytes on the GPU."""

    @abstractmethod
    def pinned(self, shape: tuple[int, ...]) -> Float32:
        """A float32 array in page-locked host memory, from which copies do not wait."""

    @abstractmethod
    def upload(self, address: int, array: Float32) -> None:
        """Queue a copy of a C-contiguous array to the GPU."""

    @abstractmethod
    def download(self, array: Float32, address: int) -> None:
        """Queue a copy from the GPU into a C-contiguous array."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything queued is done."""

    @abstractmethod
    def begin(self) -> None:
        """Queue the start of what is timed."""

    @abstractmethod
    def end(self) -> None:
        """Queue its end."""

    @abstractmethod
    def elapsed_ms(self) -> float:
        """Milliseconds between the last :meth:`begin` and :meth:`end`, by the GPU's clock, once both are over."""

    def capture(self, queue: Callable[[], bool]) -> Callable[[], None] | None:
        """What ``queue`` queues, as one CUDA graph: a call of what is returned launches it again.

        None where it cannot be had: the package knows no graphs, ``queue`` says no, or does what no graph can hold.
        The graph before, if any, is gone.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Free everything."""


@lru_cache(maxsize=1)
def gpu_count() -> int:
    """NVIDIA GPUs the driver sees; 0 without a driver. Needs no Python package."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def compute_capability() -> str:
    """Of the first GPU, as TensorRT-RTX names it (``SM86``); empty without one."""
    if not gpu_count():
        return ""
    driver = ctypes.CDLL("libcuda.so.1")
    found = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        value = ctypes.c_int(0)
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0) != 0:
            return ""
        found.append(str(value.value))
    return "SM" + "".join(found)


def open_gpu() -> Gpu:
    """The GPU by whichever of cuda-python and pycuda is installed; raises MissingBackendError when neither is."""
    if not gpu_count():
        raise BackendError("there is no NVIDIA GPU on this machine", fix="run this on the device")
    reasons = []
    for kind in (CudaPythonGpu, PyCudaGpu):
        try:
            return kind()
        except ImportError as error:
            reasons.append(str(error))
    raise MissingBackendError(
        f"neither cuda-python nor pycuda can be imported ({'; '.join(reasons)})",
        fix='pip install "edgeopt[tensorrt]" (or, where CUDA\'s headers are installed: pip install "edgeopt[pycuda]")',
    )


class CudaPythonGpu(Gpu):
    """By cuda-python's runtime bindings: ``cuda.bindings.runtime``, or ``cuda.cudart`` before 12.6."""

    name = "cuda-python"

    def __init__(self) -> None:
        try:
            self._cuda: Any = import_module("cuda.bindings.runtime")
        except ImportError:
            self._cuda = import_module("cuda.cudart")
        self._buffers: list[int] = []
        self._host: list[int] = []
        self._graph: Any = None
        self.stream = int(self._do("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))
        self._begin, self._end = self._do("cudaEventCreate"), self._do("cudaEventCreate")

    def _do(self, function: str, *arguments: Any) -> Any:
        """Call the runtime; its first result is the error."""
        error, *results = getattr(self._cuda, function)(*arguments)
        if int(error) != 0:
            raise BackendError(
                f"CUDA refused {function}: {error}",
                fix="see in nvidia-smi whether the driver answers and memory is free; a smaller batch takes less",
            )
        return results[0] if results else None

    def allocate(self, size: int) -> int:
        address = int(self._do("cudaMalloc", size))
        self._buffers.append(address)
        return address

    def pinned(self, shape: tuple[int, ...]) -> Float32:
        size = int(np.prod(shape)) * 4
        address = int(self._do("cudaHostAlloc", size, self._cuda.cudaHostAllocDefault))
        self._host.append(address)
        block = (ctypes.c_float * (size // 4)).from_address(address)
        return np.ctypeslib.as_array(block).reshape(shape)

    def upload(self, address: int, array: Float32) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: Float32, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def synchronize(self) -> None:
        self._do("cudaStreamSynchronize", self.stream)

    def begin(self) -> None:
        self._do("cudaEventRecord", self._begin, self.stream)

    def end(self) -> None:
        self._do("cudaEventRecord", self._end, self.stream)

    def elapsed_ms(self) -> float:
        return float(self._do("cudaEventElapsedTime", self._begin, self._end))

    def capture(self, queue: Callable[[], bool]) -> Callable[[], None] | None:
        self._drop_graph()
        # Thread-local: what other threads do meanwhile, such as a garbage collector's cudaFree, does not spoil it.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("cudaStreamBeginCapture", self.stream, mode)
        try:
            queued = queue()
        finally:  # a stream left capturing takes no other work
            error, graph = self._cuda.cudaStreamEndCapture(self.stream)
        if int(error) != 0 or not int(graph):  # what cannot be captured spoils the capture, and nothing else
            self._cuda.cudaGetLastError()
            return None
        try:
            if not queued:
                return None
            self._graph = self._do("cudaGraphInstantiate", graph, 0)
        finally:
            self._do("cudaGraphDestroy", graph)
        launched = self._graph
        return lambda: self._do("cudaGraphLaunch", launched, self.stream)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._do("cudaGraphExecDestroy", self._graph)
            self._graph = None

    def close(self) -> None:
        self._drop_graph()
        for address in self._buffers:
            self._do("cudaFree", address)
        for address in self._host:
            self._do("cudaFreeHost", address)
        self._buffers, self._host = [], []
        if self.stream:
            for event in (self._begin, self._end):
                self._do("cudaEventDestroy", event)
            self._do("cudaStreamDestroy", self.stream)
            self.stream = 0


class PyCudaGpu(Gpu):
    """By pycuda, in the GPU's primary context, which TensorRT uses as well. It has no CUDA graphs."""

    name = "pycuda"

    def __init__(self) -> None:
        self._cuda: Any = import_module("pycuda.driver")
        self._cuda.init()
        self._context = self._cuda.Device(0).retain_primary_context()
        self._context.push()
        self._stream = self._cuda.Stream()
        self.stream = int(self._stream.handle)
        self._begin, self._end = self._cuda.Event(), self._cuda.Event()
        self._buffers: list[Any] = []

    def allocate(self, size: int) -> int:
        buffer = self._cuda.mem_alloc(size)
        self._buffers.append(buffer)
        return int(buffer)

    def pinned(self, shape: tuple[int, ...]) -> Float32:
        array: Float32 = self._cuda.pagelocked_empty(shape, np.float32)
        return array

    def upload(self, address: int, array: Float32) -> None:
        self._cuda.memcpy_htod_async(address, array, self._stream)

    def download(self, array: Float32, address: int) -> None:
        self._cuda.memcpy_dtoh_async(array, address, self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def begin(self) -> None:
        self._begin.record(self._stream)

    def end(self) -> None:
        self._end.record(self._stream)

    def elapsed_ms(self) -> float:
        return float(self._begin.time_till(self._end))

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []
        if self._context is not None:
            self._context.pop()
            self._context = None
