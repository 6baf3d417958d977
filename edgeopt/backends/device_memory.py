"""GPU memory behind one small interface, by cuda-python or by pycuda; complete, but not run here for want of a GPU."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from edgeopt.backends.base import Float32
from edgeopt.errors import BackendError, MissingBackendError


class DeviceMemory(ABC):
    """Buffers on the first GPU and one stream; sizes in bytes, device addresses and the stream handle as integers."""

    name: str
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


def open_device_memory() -> DeviceMemory:
    """Memory by whichever of cuda-python and pycuda is installed; raises MissingBackendError when neither is."""
    if not gpu_count():
        raise BackendError("there is no NVIDIA GPU on this machine", fix="run this on the device")
    reasons = []
    for kind in (CudaPythonMemory, PyCudaMemory):
        try:
            return kind()
        except ImportError as error:
            reasons.append(str(error))
    raise MissingBackendError(
        f"neither cuda-python nor pycuda can be imported ({'; '.join(reasons)})",
        fix='pip install "edgeopt[tensorrt]" (or, where CUDA\'s headers are installed: pip install "edgeopt[pycuda]")',
    )


class CudaPythonMemory(DeviceMemory):
    """By cuda-python's runtime bindings: ``cuda.bindings.runtime``, or ``cuda.cudart`` before 12.6."""

    name = "cuda-python"

    def __init__(self) -> None:
        try:
            self._cuda: Any = import_module("cuda.bindings.runtime")
        except ImportError:
            self._cuda = import_module("cuda.cudart")
        self._buffers: list[int] = []
        self._host: list[int] = []
        self.stream = int(self._do("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

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

    def close(self) -> None:
        for address in self._buffers:
            self._do("cudaFree", address)
        for address in self._host:
            self._do("cudaFreeHost", address)
        self._buffers, self._host = [], []
        if self.stream:
            self._do("cudaStreamDestroy", self.stream)
            self.stream = 0


class PyCudaMemory(DeviceMemory):
    """By pycuda, in the GPU's primary context, which TensorRT uses as well."""

    name = "pycuda"

    def __init__(self) -> None:
        self._cuda: Any = import_module("pycuda.driver")
        self._cuda.init()
        self._context = self._cuda.Device(0).retain_primary_context()
        self._context.push()
        self._stream = self._cuda.Stream()
        self.stream = int(self._stream.handle)
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

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.free()
        self._buffers = []
        if self._context is not None:
            self._context.pop()
            self._context = None
