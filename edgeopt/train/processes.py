"""The processes of one training: alone in the usual case, several when ``torchrun`` started them.

Each takes its share of every batch; gradients are averaged, so that all hold the same weights after every step. The
first one leads: it alone reads checkpoints, writes and speaks. Calls here are made by all of them in the same order.
Gradients are averaged by one call a step instead of by DistributedDataParallel, whose hooks count on the same layers
being trained from beginning to end, and whose wrapper changes the names of what checkpoints hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from edgeopt.allotment import process_count
from edgeopt.errors import ProcessError, TrainingError

Result = TypeVar("Result")
#: Others wait this long while the first reads pictures; one that ended is noticed at once.
_PATIENCE = timedelta(hours=2)


class Processes:
    """``count`` processes, this one being number ``rank`` of them from 0.

    Every method raises ProcessError when another process ended.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count = rank, count
        self._device = device or torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    def tell(self, value: Any) -> Any:
        """The leader's ``value``, which must be JSON-able; what others pass is not looked at."""
        if self.alone:
            return value
        text = json.dumps(value).encode() if self.leads else b""
        size = torch.tensor([len(text)], dtype=torch.int64, device=self._device)
        self._broadcast(size)
        content = torch.zeros(int(size), dtype=torch.uint8, device=self._device)
        if self.leads:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self._broadcast(content)
        return json.loads(bytes(content.cpu().tolist()))

    def led(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives the leader, who alone does it; JSON-able."""
        result: Result = self.tell(work() if self.leads else None)
        return result

    def tell_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The leader's ``tensors`` by name, on the CPU for others."""
        if self.alone:
            return dict(tensors)
        kinds = [
            [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()
        ]
        found = {}
        for name, dtype, shape in self.tell(kinds):
            tensor = tensors[name] if self.leads else torch.empty(shape, dtype=getattr(torch, dtype))
            flat = tensor.detach().reshape(-1).contiguous().to(self._device).view(torch.uint8)
            if flat.numel():
                self._broadcast(flat)
            found[name] = tensor if self.leads else flat.cpu().view(tensor.dtype).reshape(shape)
        return found

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes of float64 ``values``, on the CPU."""
        if self.alone:
            return values
        placed = values.to(self._device, copy=True)
        self._collective(lambda: torch.distributed.all_reduce(placed))
        return placed.cpu()

    def largest(self, values: Sequence[float]) -> list[float]:
        """Of each value the largest that a process has."""
        if self.alone:
            return list(values)
        placed = torch.tensor(values, dtype=torch.float64, device=self._device)
        self._collective(lambda: torch.distributed.all_reduce(placed, op=torch.distributed.ReduceOp.MAX))
        found: list[float] = placed.tolist()
        return found

    def average_gradients(self, model: nn.Module, loss: float) -> float:
        """Average the gradients, the statistics of BatchNorms and ``loss`` over processes of equal shares; the loss.

        A parameter that has no gradient anywhere keeps none. The mean of the shares' variances stands for the batch's.
        """
        if self.alone:
            return loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        statistics = _statistics(model)
        there = torch.tensor([float(parameter.grad is not None) for parameter in trained])
        pieces = [_gradient(parameter).reshape(-1) for parameter in trained] + [
            value.reshape(-1) for value in statistics
        ]
        flat = torch.cat(
            [*(piece.float() for piece in pieces), there.to(pieces[0].device), pieces[0].new_tensor([loss])]
        )
        self._collective(lambda: torch.distributed.all_reduce(flat))
        flat /= self.count
        sizes = [*(piece.numel() for piece in pieces), len(trained), 1]
        *averages, present, mean = torch.split(flat, sizes)
        for parameter, average, some in zip(trained, averages, present.tolist(), strict=False):
            if some:
                parameter.grad = _gradient(parameter).copy_(average.view(parameter.shape))
        for value, average in zip(statistics, averages[len(trained) :], strict=True):
            value.copy_(average.view(value.shape))
        return float(mean)

    def wait(self) -> None:
        """Until every process is here."""
        self.largest([0.0])

    def _broadcast(self, tensor: Tensor) -> None:
        self._collective(lambda: torch.distributed.broadcast(tensor, src=0))

    def _collective(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:
            raise ProcessError(
                f"process {self.rank} of {self.count} cannot reach the others: one ended",
                fix="see its own message; the same command goes on from the last checkpoint",
            ) from error


ALONE = Processes()


def join() -> Processes:
    """The processes that ``torchrun`` (or another launcher that sets its variables) started, connected; or this alone.

    accelerate picks the device of each and how they talk: NCCL between GPUs, gloo between CPUs. Raises TrainingError
    when they do not find each other.
    """
    if process_count() == 1:
        return ALONE
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    gpu = torch.cuda.is_available() or torch.xpu.is_available()
    try:
        state = PartialState(cpu=not gpu or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {process_count()} processes of this training do not find each other: {str(error).splitlines()[0]}",
            fix="start them with torchrun, on every node with the same --rdzv-endpoint or --master-addr",
        ) from error
    return Processes(state.process_index, state.num_processes, state.device)


def training_device() -> torch.device:
    """The device accelerate picks: CUDA, XPU or MPS where there is one, unless ACCELERATE_USE_CPU says no.

    Its Accelerator is not used: the precision it is given holds for the whole process, and one process trains often.
    """
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device


def leave() -> None:
    """Cut the connection, so that the others notice at once that this process does not go on."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def divided(size: int, count: int) -> int:
    """The largest batch of up to ``size`` pictures that ``count`` processes can share equally, at least one each."""
    return max(1, size // count) * count


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _statistics(model: nn.Module) -> list[Tensor]:
    """What BatchNorms learned of their process's pictures; those in eval mode hold the same everywhere."""
    return [
        value
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for value in (module.running_mean, module.running_var)
        if value is not None
    ]
