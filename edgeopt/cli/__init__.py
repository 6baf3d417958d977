"""The command line: parse, call one function, print. Verbs load only when they run, so ``--help`` is instant."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from types import FrameType
from typing import Any

import click

from edgeopt.errors import ConfigError, EdgeoptError, ProcessError, did_you_mean, disk_trouble
from edgeopt.files import printable

#: verb -> (module, one-line help), in the order a newcomer meets them.
VERBS = {
    "demo": ("demo", "All of it on handwritten digits, in about ten minutes."),
    "check": ("check", "Find what is wrong with the pictures before training on them."),
    "finetune": ("finetune", "Fine-tune a pretrained model on a folder of labelled pictures."),
    "tune": ("tune", "Search for the hyperparameters that train best."),
    "adopt": ("adopt", "Start from a model you trained elsewhere."),
    "ensemble": ("ensemble", "Let several trained models answer as one, or make a soup of them."),
    "compress": ("compress", "Prune, distil and quantize the trained model."),
    "export": ("export", "Write the ONNX files that devices build from."),
    "build": ("build", "Build engines for a target and audit what they run in int8."),
    "bench": ("bench", "Measure accuracy, latency and memory against the original model."),
    "compare": ("compare", "What became slower, less accurate or larger since an earlier report."),
    "report": ("report", "Write the report: HTML, Markdown, JSON, JUnit."),
    "eval": ("eval", "Accuracy of one engine on the test set."),
    "predict": ("predict", "Classify pictures with one engine."),
    "package": ("package", "Write what a device needs, as a folder and a zip."),
    "run": ("run", "All of it, as a recipe says."),
    "init": ("init", "Write a commented recipe, edgeopt.toml."),
    "show": ("show", "What is in a run, and what to type next."),
    "rm": ("rm", "Remove a variant and its engines."),
    "targets": ("targets", "List the devices edgeopt knows."),
    "models": ("models", "List the models edgeopt knows best."),
    "doctor": ("doctor", "What works on this machine, and how to get the rest."),
}

#: What the host half imports; a device has none of it.
_TRAINING_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "nncf",
    "onnx",
    "onnxscript",
    "safetensors",
    "torch_pruning",
    "sklearn",
    "optuna",
)
_TRAINING_FIX = 'pip install "edgeopt[train]"'


class _Verbs(click.Group):
    """Loads a verb's module only when the verb is used; suggests the right name for a misspelt one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        from importlib import import_module

        command: click.Command = import_module(f"edgeopt.cli.{VERBS[cmd_name][0]}_cmd").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, without importing any verb."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f'no such command "{args[0]}"{did_you_mean(args[0], VERBS)}')
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgeopt", prog_name="edgeopt", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def group(ctx: click.Context, debug: bool) -> None:
    """From a folder of labelled pictures to the smallest, fastest classifier that keeps its accuracy on your device.

    \b
    edgeopt finetune photos/ && edgeopt compress --int8 && edgeopt build --target openvino && edgeopt bench
    """
    if debug:
        os.environ["EDGEOPT_DEBUG"] = "1"
    _require_one_process(ctx.invoked_subcommand)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the documented codes: 0, 1, 2, 3, 4, 5 or 130."""
    from edgeopt.config import stated_by

    signal.signal(signal.SIGTERM, _terminated)
    try:
        with stated_by("command line"):
            result: Any = group.main(args=arguments, prog_name="edgeopt", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        code = _interrupted()
    except click.ClickException as error:
        error.show()
        if isinstance(error, click.NoSuchOption):
            _say_file_taken_for_option(error, sys.argv[1:] if arguments is None else arguments)
        code = error.exit_code
    except KeyboardInterrupt:
        code = _interrupted()
    except EdgeoptError as error:
        if os.environ.get("EDGEOPT_DEBUG"):
            raise
        if _speaks_of(error):
            _say(error, sys.argv[1:] if arguments is None else arguments)
        code = error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAINING_PACKAGES:
            raise
        click.echo(f"edgeopt: this needs {package}, which is not installed\n  fix: {_TRAINING_FIX}", err=True)
        code = 1
    except BrokenPipeError:
        # The reader of a pipe went away; point stdout elsewhere so that the interpreter's own flush stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:  # noqa: BLE001 - the last place that can turn it into words
        code = _unexpected(error)
    sys.exit(code)


def _say(error: EdgeoptError, typed: Sequence[str]) -> None:
    """All that went wrong, what decides the exit code last; on stderr with ``--quiet`` as well."""
    for one in (*error.others, error):
        click.echo(printable(f"edgeopt: {one}{_of_the_run(one, typed)}", keep="\n"), err=True)


def _say_file_taken_for_option(error: click.NoSuchOption, typed: list[str]) -> None:
    """How to type a file's name that begins with a dash, where the unknown option is one and the verb takes paths."""
    verb = error.ctx
    arguments = [] if verb is None else [one for one in verb.command.params if isinstance(one, click.Argument)]
    if verb is None or not any(isinstance(one.type, click.Path) for one in arguments):
        return
    for word in typed[: typed.index("--")] if "--" in typed else typed:
        # Of -x.png click names -x, or another of its letters; of --x.png, or what stands before = there, all of it.
        letters = word[:1] == "-" and word[:2] != "--" and error.option_name[1:] in word[1:]
        if (letters or word.partition("=")[0] == error.option_name) and os.path.lexists(word):
            name = shlex.quote(word)
            line = f"there is a {name} here: type ./{name}, or -- before it: {verb.command_path} -- {name}"
            click.echo(printable(f"  fix: {line}"), err=True)
            return


def _require_one_process(verb: str | None) -> None:
    """Raises ConfigError when a launcher started several processes of a verb that is not made for that."""
    from edgeopt.allotment import process_count

    if process_count() > 1 and verb != "finetune":
        raise ConfigError(
            f"{process_count()} processes were started, but only finetune runs in several",
            fix=f"start it without torchrun: edgeopt {verb}",
        )


def _speaks_of(error: EdgeoptError) -> bool:
    """Whether this process says what went wrong: the first of several does, others what befell them alone."""
    from edgeopt.allotment import process_rank

    if process_rank() == 0:
        return True
    return isinstance(error, ProcessError) and error.own


def _of_the_run(error: EdgeoptError, arguments: Sequence[str]) -> str:
    """The ``--run`` that was typed, for a command that the fix names: without, it would be for the newest run."""
    fix = error.fix or ""
    typed = [value for flag, value in pairwise(arguments) if flag == "--run"]
    typed += [argument.removeprefix("--run=") for argument in arguments if argument.startswith("--run=")]
    named = [verb for verb in re.findall(r"\bedgeopt (\w+)", fix) if verb in VERBS]
    if not typed or "--run" in fix or not any(_takes_run(verb) for verb in named):
        return ""
    return f" (with --run {shlex.quote(typed[0])})"


def _takes_run(verb: str) -> bool:
    command = group.get_command(click.Context(group), verb)
    return command is not None and any("--run" in option.opts for option in command.params)


def _unexpected(error: Exception) -> int:
    """A full or read-only disk in one line, whichever library met it; anything else is a bug, shown whole."""
    if os.environ.get("EDGEOPT_DEBUG"):
        raise error
    reason = disk_trouble(error)
    if reason:
        click.echo(f"edgeopt: {reason}\n  fix: make room, then type the same again: it goes on from here", err=True)
        return 1
    traceback.print_exception(error)
    click.echo(
        "edgeopt: this is a bug in edgeopt, not a mistake of yours\n"
        "  fix: please report it, with the lines above and what `edgeopt doctor --json` prints",
        err=True,
    )
    return 1


def _terminated(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends as Ctrl-C does: temporary files are cleaned away, child processes stopped, code 130."""
    raise KeyboardInterrupt


def _interrupted() -> int:
    from edgeopt.allotment import process_rank

    if process_rank() == 0:
        click.echo("edgeopt: interrupted; nothing is lost, the same command goes on from here", err=True)
    return 130
