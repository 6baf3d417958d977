"""The console of the command line, on stderr: messages, and progress of what takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

import click

from edgeopt.console import NotedProgress, duration
from edgeopt.files import printable


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
    first: list[tuple[float, int]] = []  # when work was first told of, and how much: what came before is no work done

    def announce() -> None:
        last[0] = time.monotonic()
        click.echo(f"{title}...", err=True)

    def progress(done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if not first:
            first.append((now, done))
        if now - last[0] >= every_s:
            timer.cancel()
            last[0] = now
            (since, before), left = first[0], ""
            if before < done < total:
                left = f", about {duration((now - since) * (total - done) / (done - before))} left"
            words = f"{title}: {done}/{total} ({now - started:.0f} s{left})"
            click.echo(words + (f", {note}" if note else ""), err=True)

    timer = Timer(silent_s, announce)
    timer.daemon = True
    timer.start()
    try:
        yield progress
    finally:
        timer.cancel()
