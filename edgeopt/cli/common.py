"""What the verbs share: options, the console on stderr, the one JSON object on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, TypeVar

import click

from edgeopt.console import NotedProgress, duration
from edgeopt.errors import ConfigError
from edgeopt.files import printable
from edgeopt.run import Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Function = TypeVar("Function", bound=Callable[..., Any])


class Terminal:
    """Messages and progress on stderr: bars on a terminal, a plain line now and then elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line, unless ``--quiet``."""
        if not self.quiet:
            click.echo(printable(text, keep="\n"), err=True)

    @contextmanager
    def task(self, title: str) -> Iterator[NotedProgress]:
        """Progress for work of over two seconds; shorter work leaves no trace."""
        if self.quiet:
            yield lambda done, total, note="": None
        elif sys.stderr.isatty():
            with _bar(title) as progress:
                yield progress
        else:
            with _lines(title) as progress:
                yield progress


@contextmanager
def _bar(title: str) -> Iterator[NotedProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


@contextmanager
def _lines(title: str, *, every_s: float = 10.0, silent_s: float = 2.0) -> Iterator[NotedProgress]:
    """A line when work passes two seconds, then one in ten seconds for work that counts."""
    started = time.monotonic()
    last = [started + silent_s - every_s]

    def announce() -> None:
        last[0] = time.monotonic()
        click.echo(f"{title}...", err=True)

    def progress(done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - last[0] >= every_s:
            timer.cancel()
            last[0] = now
            left = f", about {duration((now - started) * (total - done) / done)} left" if 0 < done < total else ""
            words = f"{title}: {done}/{total} ({now - started:.0f} s{left})"
            click.echo(words + (f", {note}" if note else ""), err=True)

    timer = Timer(silent_s, announce)
    timer.daemon = True
    timer.start()
    try:
        yield progress
    finally:
        timer.cancel()


def output_options(function: Function) -> Function:
    """``--json`` and ``--quiet``, passed on as ``as_json`` and ``quiet``."""
    function = click.option("--quiet", "-q", is_flag=True, help="No messages, no progress.")(function)
    return click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, nothing else there.")(
        function
    )


#: The type of an argument that is a path, a pattern of them, or a name such as torchvision:CIFAR10, kept as it is.
path_or_name = click.Path(readable=False)

run_option = click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    help="The run folder. [default: the newest under ./runs]",
)


allow_undecided_option = click.option(
    "--allow-undecided",
    is_flag=True,
    help="Exit with 0, not 5, when too few pictures or too little time leave a line undecided.",
)


def budget_options(function: Function) -> Function:
    """``--budget`` and ``--allow-undecided``."""
    function = allow_undecided_option(function)
    return click.option(
        "--budget",
        "budget",
        multiple=True,
        metavar="FILE|KEY=VALUE",
        help="A budget line, such as max_drop_points=1.0, or a TOML file of them; may be repeated. "
        "[default: the recipe's]",
    )(function)


def allowance_options(function: Function) -> Function:
    """``--slower``, ``--drop-points`` and ``--larger``: what may be lost against an earlier report."""
    for name, text in (
        ("larger", "The fraction by which an engine may be larger than in the earlier report. [default: 0.05]"),
        ("drop-points", "The points of top-1 it may have lost since. [default: 1.0]"),
        ("slower", "The fraction by which it may be slower. [default: 0.05]"),
    ):
        function = click.option(f"--{name}", type=float, help=text)(function)
    return function


baseline_option = click.option(
    "--baseline", metavar="REPORT", help="An earlier report.json, or a run folder, not to fall behind; exit 3 if so."
)

force_option = click.option("--force", is_flag=True, help="Make it again although nothing changed.")
trust_option = click.option(
    "--trust-engine",
    is_flag=True,
    help="Open engines built on another machine too: TensorRT's are native code, so only of someone you trust.",
)
on_option = click.option(
    "--on",
    metavar="URL",
    help="Do it on another machine, ssh://[user@]host[:port][/folder], with the edgeopt that is there.",
)
max_pixels_option = click.option(
    "--max-pixels",
    type=int,
    help="Set larger pictures aside, but for JPEGs that can be read at a smaller scale. [default: 100000000]",
)


def picture_options(function: Function) -> Function:
    """Which pictures are used: ``--max-pixels``, ``--exclude``, ``--group-near``."""
    function = click.option(
        "--group-near",
        is_flag=True,
        help="Keep near duplicates in one split: a picture, its resized or recoded copies.",
    )(function)
    function = click.option("--exclude", help="Leave out the pictures this file lists, as `edgeopt check` writes it.")(
        function
    )
    return max_pixels_option(function)


new_run_option = click.option(
    "--run", "run_path", type=click.Path(path_type=Path), help="The run folder. [default: runs/NAME OF DATA]"
)

no_pretrained_option = click.option(
    "--no-pretrained", "pretrained", is_flag=True, flag_value=False, default=None, help="Start from random weights."
)

model_argument_option = click.option(
    "--model-arg",
    "model_arguments",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument of the model's constructor, as in depths=[1,1,3,1]; may be repeated.",
)


def as_settings(model_arguments: Sequence[str]) -> list[str]:
    """The texts of ``--model-arg`` as :func:`settings` takes them; raises ConfigError for those without =."""
    for text in model_arguments:
        key, equals, _ = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(
                f'--model-arg {text} is not "key=value"', fix="write it so: --model-arg drop_path_rate=0.1"
            )
    return [f"model.arguments.{text}" for text in model_arguments]


def input_options(function: Function) -> Function:
    """How pictures become the model's input: ``--image-size``, ``--resize``, ``--interpolation``, ``--normalize``."""
    for option in (
        click.option(
            "--normalize",
            type=click.Choice(["model", "data", "unit"]),
            help="By whose mean and deviation: the model's, the train pictures', or none. [default: model]",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]),
            help="How pictures are scaled. [default: the model's own]",
        ),
        click.option(
            "--resize",
            type=click.Choice(["crop", "squash", "letterbox"]),
            help="How a picture is brought to the input's shape. [default: crop]",
        ),
        click.option(
            "--image-size",
            metavar="N|HxW",
            help="Pixels of both sides, or HEIGHTxWIDTH as in 160x224. [default: the model's own]",
        ),
    ):
        function = option(function)
    return function


data_option = click.option(
    "--data", type=str, help="Where the pictures are now, when they moved since the run was made."
)


def pick_run(path: Path | None, console: Terminal) -> Run:
    """The run named, else the newest under ./runs, said aloud."""
    if path is not None:
        return Run.open(path)
    run = Run.latest()
    console.say(f"run: {run.path}")
    return run


def emit(value: Any, *, as_json: bool, text: str) -> None:
    """``value`` as JSON or ``text``, on stdout."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False) if as_json else printable(text, keep="\n\t"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned plain text columns."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [columns, *rows]
    ]
    return "\n".join(lines)


def given(**options: Any) -> Mapping[str, Any]:
    """The options that were typed: those that are not None and not an empty tuple."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def options_of(**stated: Any) -> list[str]:
    """Options as they are typed: ``target=("a", "b")``, ``seconds=3.0``, ``force=True``; not None and False."""
    typed: list[str] = []
    for name, value in stated.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            typed.append(flag)
        elif isinstance(value, (list, tuple)):
            typed += [word for one in value for word in (flag, str(one))]
        elif value is not None and value is not False:
            typed += [flag, str(value)]
    return typed


class OrAuto(click.ParamType["int | float | str"]):
    """A number, or the word auto."""

    def __init__(self, number: type[int] | type[float]) -> None:
        self._number = number
        self.name = "integer|auto" if number is int else "float|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click asks for it."""
        try:
            return value if value == "auto" else self._number(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


def settings(keys: Mapping[str, Any], others: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Tables of a recipe from ``table.key`` -> value, None for what was not typed, and from texts ``table.key=value``.

    A value of ``others`` is read as in TOML, and as a word when it is none. Raises ConfigError for texts without =.
    """
    found = {name: value for name, value in keys.items() if value is not None}
    for text in others:
        name, equals, value = text.partition("=")
        if not equals or name.strip().count(".") < 1:
            raise ConfigError(f'--set {text} is not "table.key=value"', fix="write it so: --set augment.rotation=15")
        found[name.strip()] = _value(value.strip())
    tables: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        *path, key = name.split(".")
        table = tables
        for part in path:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"--set {name} is inside a value, not a table", fix="write it so: --set train.lr=0.01"
                )
            table = inner
        table[key] = value
    return tables


def one_table(table: str, others: Sequence[str]) -> dict[str, Any]:
    """The values of texts ``key=value`` of one table, which may be written before the key: ``table.key=value``."""
    return settings({}, [text if text.startswith(f"{table}.") else f"{table}.{text}" for text in others]).get(table, {})


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
