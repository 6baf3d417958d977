"""``edgeopt ensemble``: let several trained variants answer as one."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, data_option, emit, force_option, output_options, pick_run, run_option


@click.command("ensemble")
@click.argument("members", nargs=-1)
@click.option(
    "--vote",
    type=click.Choice(["soft", "hard", "weighted", "stacking", "soup"]),
    default="soft",
    show_default=True,
    help="soft: mean probability; hard: majority; weighted: weights fitted on val; stacking: learned from out-of-fold "
    "answers; soup: one model, the mean of the members' weights.",
)
@run_option
@data_option
@force_option
@output_options
def command(
    members: tuple[str, ...],
    vote: str,
    run_path: Path | None,
    data: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Let MEMBERS, variants of one run, answer as one.

    MEMBERS are names or patterns such as 'float-fold*'; without any, the models of the folds of `finetune --folds`.
    """
    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    from edgeopt.stages.ensemble import ensemble

    made = ensemble(run, members, vote=vote, data=data, force=force, console=console)
    emit(made.to_json(), as_json=as_json, text=made.summary())
