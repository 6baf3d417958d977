"""The tools that are compared: one line each, its recipe beside it in ``recipes/``, and where its recipe comes from."""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).with_name("recipes")
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


@dataclass(frozen=True)
class Peer:
    """One way to int8. ``recipe`` runs in a folder with ``inputs/`` and leaves ``model.onnx`` or ``model.xml``.

    ``venv`` names an environment of its own with ``requirements`` in it; None: edgeopt's. ``torch``: that environment
    sees this one's packages behind its own, so that torch is not installed twice. ``package`` is what the version is
    read of. ``note`` is said in its row.
    """

    key: str
    title: str
    recipe: str
    package: str
    venv: str | None = None
    requirements: tuple[str, ...] = ()
    torch: bool = False
    note: str = ""

    @property
    def path(self) -> Path:
        return RECIPES / self.recipe

    @property
    def lines(self) -> int:
        """Lines of code in the recipe: what a user writes who has the float model and the pictures as arrays."""
        return code_lines(self.path)


PEERS = (
    Peer("edgeopt-int8", "edgeopt `compress --int8`", "edgeopt_int8.sh", "edgeopt"),
    Peer("edgeopt-prune", "edgeopt `compress --int8 --prune 1/3`", "edgeopt_prune.sh", "edgeopt"),
    Peer("nncf-ptq", "NNCF PTQ", "nncf_ptq.py", "nncf"),
    Peer("nncf-qat", "NNCF PTQ + QAT", "nncf_qat.py", "nncf"),
    Peer("nncf-accuracy-control", "NNCF accuracy control, ONNX", "nncf_accuracy_control.py", "nncf"),
    Peer("ort-default", "ONNX Runtime `quantize_static`, defaults", "ort_default.py", "onnxruntime"),
    Peer("ort-tuned", "ONNX Runtime `quantize_static`, tuned", "ort_tuned.py", "onnxruntime"),
    Peer(
        "modelopt",
        "NVIDIA Model Optimizer, ONNX int8",
        "modelopt_int8.py",
        "nvidia-modelopt",
        venv="modelopt",
        requirements=("nvidia-modelopt[onnx]==0.47.0",),
        torch=True,
        note="made for TensorRT on GPUs: int8 activations of zero point 0",
    ),
    Peer(
        "neural-compressor",
        "Intel neural-compressor, ONNX",
        "neural_compressor_ptq.py",
        "onnx-neural-compressor",
        venv="neural-compressor",
        note="its reduce_range, which it recommends without VNNI, reaches no weight in 1.0",
        # Its last release is of 2024 and needs what was current then; the last two it imports and does not declare.
        requirements=(
            "onnx-neural-compressor==1.0", "onnx==1.16.2", "onnxruntime==1.18.1", "numpy<2", "prettytable", "scipy",
        ),
    ),
    Peer(
        "olive",
        "Microsoft Olive, ONNX PTQ",
        "olive_ptq.py",
        "olive-ai",
        venv="olive",
        requirements=("olive-ai==0.13.0", "onnxruntime", "requests"),  # the last it imports and does not declare
        torch=True,
        note="its example's uint8 weights are not OpenVINO's int8",
    ),
)  # fmt: skip
BY_KEY = {peer.key: peer for peer in PEERS}


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {
        line
        for token in tokens
        if token.type not in _LAYOUT and token.string
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)
