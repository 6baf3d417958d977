"""The README: its commands exist with the options it shows, its Python runs, its links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from edgeopt.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "targets" / "README.md", ROOT / "calibration" / "README.md"]


def _blocks(language: str) -> list[str]:
    return [
        block
        for document in DOCUMENTS
        for block in re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    ]


def _commands() -> list[str]:
    """Every ``edgeopt ...`` a reader could type."""
    found = []
    for block in _blocks("console"):
        for line in block.replace("\\\n", " ").splitlines():
            typed = line.removeprefix("$ ").split("  #")[0]
            found += [part.strip() for part in re.split(r"&&|;", typed) if part.strip().startswith("edgeopt ")]
    return sorted(set(found))


def test_there_are_commands_to_check() -> None:
    assert len(_commands()) >= 8


@pytest.mark.parametrize("typed", _commands())
def test_every_command_parses(typed: str) -> None:
    _, verb, *arguments = shlex.split(typed)
    assert verb in VERBS, typed
    command: click.Command = importlib.import_module(f"edgeopt.cli.{VERBS[verb][0]}_cmd").command
    command.make_context(verb, arguments, resilient_parsing=False)


def test_make_targets_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"\$ make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_every_python_block_runs_up_to_its_data() -> None:
    """Names are imported and called with parameters they have; nothing is trained here."""
    import ast
    import inspect

    import edgeopt

    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "edgeopt":
                    signature = inspect.signature(getattr(edgeopt, node.func.attr))
                    for keyword in node.keywords:
                        assert keyword.arg is None or keyword.arg in signature.parameters or signature.parameters == {}
