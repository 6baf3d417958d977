"""The Jinja2 environment of the report: autoescaping, our own templates, numbers formatted in one place."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from edgeopt.report import format as form

_FOLDER = Path(__file__).parent / "templates"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "percent_range", "points", "points_range", "ms", "span", "times", "times_range", "mib"):
        environment.filters[name] = getattr(form, name)
    environment.filters.update(count_of=form.count, whole=form.whole, significant=form.significant)
    return environment


def fragment(template: str, **values: Any) -> str:
    """The HTML of ``templates/<template>.html.j2``, every value escaped."""
    return _environment().get_template(f"{template}.html.j2").render(**values)


def asset(name: str) -> str:
    """A file of ours that goes into the page as it is: its style or script."""
    return (_FOLDER / name).read_text(encoding="utf-8")
