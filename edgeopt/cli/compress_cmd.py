"""``edgeopt compress``: prune, distil and quantize the trained model."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import (
    Terminal,
    data_option,
    emit,
    force_option,
    given,
    one_table,
    output_options,
    pick_run,
    run_option,
)
from edgeopt.config import CompressConfig, validate
from edgeopt.errors import BudgetMissedError
from edgeopt.tables import DISTILL


@click.command("compress")
@click.option(
    "--int8", is_flag=True, help="Quantize: post-training ranges, then quantization-aware training with distillation."
)
@click.option("--fp16", is_flag=True, help="In place of --int8: what float16 engines are built of; no training for it.")
@click.option(
    "--bf16", is_flag=True, help="In place of --int8: what bfloat16 engines are built of; no training for it."
)
@click.option("--int4", is_flag=True, default=None, hidden=True)  # to say why not
@click.option("--sparsity", hidden=True)  # to say why not
@click.option("--prune", type=float, metavar="F", help="Remove this fraction of the MACs first, 0 to 1.")
@click.option("--prune-steps", type=int, metavar="N", help="Remove them in N steps, each recovered. [default: 1]")
@click.option("--drop-blocks", type=int, metavar="N", help="Drop the N residual blocks that are missed least, first.")
@click.option("--drop-heads", type=int, metavar="N", help="Drop the N attention heads that are missed least, first.")
@click.option(
    "--latency",
    metavar="L",
    help="Prune until the measured int8 engine of the one --target takes 4ms, or 0.6x of the unpruned one's. "
    "Exit code 3 when the end misses it.",
)
@click.option(
    "--rival/--no-rival",
    default=None,
    help="With --latency: also the unpruned model at a smaller input of equal latency. [default: on]",
)
@click.option(
    "--latency-candidates",
    is_flag=True,
    help="Only export networks for the one --target, another device, to time; edgeopt bench --latency-candidates there "
    "does, and --latency here then goes by it.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Make what this target runs; may be repeated. [default: CPUs and TensorRT]",
)
@click.option("--scheme", "schemes", multiple=True, help="Make this int8 scheme; may be repeated.")
@click.option("--calibration", help="Calibration recipe: fast, default, thorough, or a TOML file. [default: default]")
@click.option(
    "--importance",
    type=click.Choice(["taylor", "l2", "l1", "bn_scale"]),
    help="Which channels go first. [default: taylor]",
)
@click.option("--epochs", type=int, help="Epochs of quantization-aware training. [default: 5]")
@click.option(
    "--recovery-epochs",
    type=int,
    help="Epochs of distilled training after pruning, a round; val decides on others. [default: 20]",
)
@click.option(
    "--recovery-lr",
    type=float,
    help="Its learning rate; 3e-4 suits what loses little. [default: 0.001]",
)
@click.option(
    "--int8-outputs/--float-outputs",
    "int8_outputs",
    default=None,
    help="Of convolutions before swish, GELU and the like. [default: int8 where ONNX Runtime is a target]",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Do as little as keeps val top-1 within this many points: ranges, better ranges, training, longer training, "
    "layers left in float. Exit code 3 when nothing does.",
)
@click.option("--time", help="With --max-drop: end about when so much, such as 30m or 2h, is over.")
@click.option("--trials", type=int, help="With --max-drop: try this many at most.")
@click.option(
    "--teacher",
    help="Learn from this variant or ensemble of the run, or from the run in this folder. "
    "[default: what is compressed]",
)
@click.option("--distill", type=click.Choice(DISTILL), help="How to learn from the teacher. [default: hinton]")
@click.option("--variant", help="The float variant to start from. [default: the trained model]")
@click.option(
    "--ignore", multiple=True, metavar="MODULE", help="Leave this module unpruned and in float; may be repeated."
)
@click.option("--set", "others", multiple=True, metavar="KEY=VALUE", help="Any key of [compress], as in lr=0.0002.")
@run_option
@data_option
@force_option
@output_options
def command(
    int8: bool,
    fp16: bool,
    bf16: bool,
    int4: bool | None,
    sparsity: str | None,
    prune: float | None,
    prune_steps: int | None,
    drop_blocks: int | None,
    drop_heads: int | None,
    latency: str | None,
    rival: bool | None,
    latency_candidates: bool,
    targets: tuple[str, ...],
    schemes: tuple[str, ...],
    calibration: str | None,
    importance: str | None,
    epochs: int | None,
    recovery_epochs: int | None,
    recovery_lr: float | None,
    int8_outputs: bool | None,
    max_drop: float | None,
    time: str | None,
    trials: int | None,
    teacher: str | None,
    distill: str | None,
    ignore: tuple[str, ...],
    others: tuple[str, ...],
    variant: str | None,
    run_path: Path | None,
    data: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int | None:
    """Make a smaller, faster variant of the trained model, with that model as the teacher."""
    wanted = (int8, fp16, bf16, int4, sparsity, latency_candidates, drop_blocks, drop_heads)
    if not any(wanted) and prune is None and latency is None:
        raise click.UsageError("nothing to do: say --int8, --prune F, or both")
    console = Terminal(quiet=quiet)
    config = validate(
        CompressConfig,
        {
            "int8": int8 or latency_candidates,
            "fp16": fp16,
            "bf16": bf16,
            "latency_candidates": latency_candidates,
            **given(
                int4=int4,
                sparsity=sparsity,
                prune=prune,
                prune_steps=prune_steps,
                drop_blocks=drop_blocks,
                drop_heads=drop_heads,
                latency=latency,
                rival=rival,
                schemes=schemes,
                calibration=calibration,
                importance=importance,
                epochs=epochs,
                recovery_epochs=recovery_epochs,
                recovery_lr=recovery_lr,
                int8_outputs=int8_outputs,
                max_drop=max_drop,
                time=time,
                trials=trials,
                teacher=teacher,
                distill=distill,
                ignore=ignore,
            ),
            **one_table("compress", others),
        },
        where="compress options",
    )
    from edgeopt.stages.compress import compress

    run = pick_run(run_path, console)
    made = compress(run, config, targets=targets, variant=variant, data=data, force=force, console=console)
    if latency_candidates:
        there = run.candidates()
        text = "\n".join(f"{run.path}/host/{name}: {len(one['candidates'])} networks" for name, one in there.items())
        emit(list(there.values()), as_json=as_json, text=text)
        return None
    emit([item.to_json() for item in made], as_json=as_json, text="\n".join(item.summary() for item in made))
    return BudgetMissedError.exit_code if any(item.missed for item in made) else None
