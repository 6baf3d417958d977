"""Every error edgeopt raises on purpose: the tree is documented, each has a fix, and a golden file holds every message.

The golden file is written by EDGEOPT_GOLDEN=1; a change in it is what a reviewer reads to judge new wording.
"""

from __future__ import annotations

import ast
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeopt import errors
from edgeopt.errors import EdgeoptError, did_you_mean, disk_trouble

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden" / "errors.txt"
TREE = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, EdgeoptError)}


@dataclass(frozen=True)
class Raised:
    """One place that makes an error: its class, and the texts of its message and fix with {expressions} as written."""

    where: str
    kind: str
    message: str
    fix: str | None

    def __str__(self) -> str:
        return f"{self.where} {self.kind}\n  {self.message}\n" + (f"  fix: {self.fix}\n" if self.fix else "")


def _text(node: ast.expr) -> str:
    """A string literal, f-string or sum of them as a template."""
    if isinstance(node, ast.Constant):
        return str(node.value).replace("\n", "\\n")
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return _text(node.value) if _shared(node.value) else "{" + ast.unparse(node.value) + "}"
    if text := _shared(node):
        return text
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "{" + ast.unparse(node) + "}"


def _shared(node: ast.expr) -> str:
    """The text of a constant of edgeopt.errors; empty for anything else."""
    text = getattr(errors, node.id, None) if isinstance(node, ast.Name) else None
    return text if isinstance(text, str) else ""


def _raised() -> Iterator[Raised]:
    for path in sorted((ROOT / "edgeopt").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TREE and node.args:
                fix = next((_text(item.value) for item in node.keywords if item.arg == "fix"), None)
                where = str(path.relative_to(ROOT))
                yield Raised(where, node.func.id, _text(node.args[0]), fix)


RAISED = sorted(_raised(), key=lambda item: (item.where, item.message))


def test_the_golden_file_holds_every_message() -> None:
    text = "\n".join(map(str, RAISED))
    if os.environ.get("EDGEOPT_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert GOLDEN.read_text(encoding="utf-8") == text, "EDGEOPT_GOLDEN=1 python -m pytest tests/test_errors.py"


@pytest.mark.parametrize("raised", RAISED, ids=lambda item: f"{Path(item.where).stem}-{item.message[:40]}")
def test_every_error_says_what_fixes_it(raised: Raised) -> None:
    assert raised.fix, f"{raised.where}: {raised.message}"


@pytest.mark.parametrize("raised", RAISED, ids=lambda item: f"{Path(item.where).stem}-{item.message[:40]}")
def test_every_message_is_a_line_in_edgeopts_voice(raised: Raised) -> None:
    for text in (raised.message, raised.fix or "x"):
        assert "\\n" not in text or raised.kind in ("ConfigError", "DataError"), "one line"  # those are lists
        assert not text.endswith("."), "a line, not a sentence of several"
        assert not re.search(r"\b(invalid|illegal|error occurred|failed to)\b", text, re.IGNORECASE), (
            "say what is wrong"
        )


def test_every_command_in_a_fix_exists() -> None:
    from edgeopt.cli import VERBS

    for raised in RAISED:
        # Where a command starts: elsewhere "edgeopt" may be the subject of a sentence.
        for verb in re.findall(r"(?:^|: |`)edgeopt (?!--|FILE)([a-z0-9]+)", raised.fix or ""):
            assert verb in VERBS, raised


def test_the_tree_is_drawn_in_the_docstring_with_every_class() -> None:
    drawn = re.findall(r"(\w+Error)\b", errors.__doc__ or "")
    assert sorted(drawn) == sorted(TREE)


def test_did_you_mean_suggests_only_what_is_near() -> None:
    assert did_you_mean("resnet81", ["resnet18", "vit"]) == ' (did you mean "resnet18"?)'
    assert did_you_mean("zzz", ["resnet18", "vit"]) == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "model.onnx"), "the disk is full: cannot write model.onnx"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "the disk is read-only: cannot write x"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.ENOENT, "No such file", "x"), ""),
        (ValueError("x"), ""),
    ],
)
def test_a_disk_in_trouble_is_recognized_whoever_met_it(error: Exception, said: str) -> None:
    assert disk_trouble(error) == said


def test_a_disk_in_trouble_is_recognized_through_a_chain() -> None:
    error = RuntimeError("export failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert disk_trouble(error) == "the disk is full"
