"""Where in a model something went wrong, said by the name of the module."""

from __future__ import annotations

from torch import nn


def failing_module(error: BaseException, model: nn.Module) -> str:
    """Name in ``model``, or in a copy of it, of the innermost module that was running when ``error`` was raised.

    Read off the traceback of the error and of what caused it; empty when no module was running, or only the outermost.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    name = ""
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        name = _innermost(found, type(model)) or name
        found = found.__cause__ or found.__context__
    return name


def _innermost(error: BaseException, kind: type[nn.Module]) -> str:
    running: list[nn.Module] = []
    step = error.__traceback__
    while step is not None:
        own = step.tb_frame.f_locals.get("self")
        if isinstance(own, nn.Module):
            running.append(own)
        step = step.tb_next
    root = next((module for module in running if type(module) is kind), None)
    if root is None:
        return ""
    names: dict[int, str] = {id(module): name for name, module in root.named_modules()}
    known = [names[id(module)] for module in running if id(module) in names]
    return known[-1]
