"""What one copies to a device and uses: a folder and a zip with the engine, ``predict.py`` and the measured figures."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import edgeopt.packaging
from edgeopt import environment, records
from edgeopt.backends.capability import schemes_for
from edgeopt.config import load_target
from edgeopt.console import Console, Silent
from edgeopt.errors import BackendError, MissingStageError, RunError, did_you_mean
from edgeopt.files import make_folder, printable, sha256, write_atomically, write_json, write_text
from edgeopt.packaging.contents import FOLDER, requirements, write_code, write_cpp
from edgeopt.report import format as form
from edgeopt.run import Run, discard
from edgeopt.stages.build_plan import source_onnx
from edgeopt.stages.engines import Engine, engines, labels

_MARK = "package.json"  # by which a folder is known to be a package, and may be replaced


@dataclass(frozen=True)
class Packaged:
    """A package: its ``folder``, the zip of it, and ``manifest``, its ``package.json``."""

    folder: Path
    archive: Path
    manifest: dict[str, Any]

    def summary(self) -> str:
        """One line for a person."""
        size = form.mib(self.archive.stat().st_size)
        return f"{self.manifest['target']}/{self.manifest['variant']}: {self.folder}, {self.archive} ({size})"

    def to_json(self) -> dict[str, Any]:
        """As ``edgeopt package --json`` prints it."""
        return {"folder": str(self.folder), "archive": str(self.archive), **self.manifest}


def package(
    run: Run,
    target: str,
    *,
    variant: str | None = None,
    out: Path | None = None,
    console: Console | None = None,
) -> Packaged:
    """Write the package of an engine built for ``target`` (a name or a TOML file), and ``<folder>.zip`` beside it.

    ``variant`` names the engine's; the int8 one built last when None. ``out`` is the folder, by default
    ``packages/<target>-<variant>`` of the run; a package that is there is replaced, anything else refused. Raises
    MissingStageError when there is no such engine, BackendError for runtimes whose engines are tied to one machine.
    """
    console = console or Silent()
    engine = _choose(run, load_target(target).name, variant)
    settings = engine.backend.session_settings(engine.path, engine.target, engine.precision)
    if settings is None:
        raise BackendError(
            f"engines of {engine.record['backend']} are tied to the GPU, driver and version they were built with",
            fix=f"copy the run folder to the device, and there: {engine.target.build_command}",
        )
    folder = out or run.path / "packages" / engine.key.replace("/", "-").replace("@", "-")
    if folder.exists() and not (folder / _MARK).is_file():
        raise RunError(f"{folder} is there and is no package", fix="give another --out, or remove it")
    with run.lock() if out is None else nullcontext(), console.task(f"packaging {engine.key}"):
        make_folder(folder.parent)
        # A name that the next command sweeps away, should this one be killed.
        making = folder.with_name(f".trash-{folder.name}-{uuid4().hex[:8]}")
        try:
            manifest = _fill(make_folder(making), engine, settings)
            discard(folder)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        archive = folder.with_name(f"{folder.name}.zip")
        write_atomically(archive, lambda path: _zip(folder, path))
    return Packaged(folder, archive, manifest)


def _choose(run: Run, target: str, variant: str | None) -> Engine:
    """The engine of ``variant`` for ``target``, else the int8 one (any, failing that) built last."""
    known = {key: one for key, one in engines(run).items() if one.record["target"] == target}
    sound = {key: one for key, one in known.items() if not one.unsound()}
    if variant is not None:
        named = [one for key, one in sound.items() if variant in (one.variant, key.split("/")[1])]
        sound = {one.key: one for one in ([e for e in named if e.key.split("/")[1] == variant] or named)}
    if not sound:
        reasons = "; ".join(f"{key}: {why}" for key, one in known.items() if (why := one.unsound()))
        names = [key.split("/")[1] for key in known]
        wanted = f' of "{variant}"{did_you_mean(variant, names)}' if variant is not None else ""
        raise MissingStageError(
            f"{run.path} has no engine{wanted} for {target} to package{f' ({reasons})' if reasons else ''}",
            fix=f"edgeopt build --target {target}",
        )
    return ([one for one in sound.values() if one.precision == "int8"] or list(sound.values()))[-1]


def _fill(folder: Path, engine: Engine, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write everything into the empty ``folder``; returns the manifest."""
    run, record, target = engine.run, engine.record, engine.target
    for path in engine.files:
        shutil.copyfile(path, folder / path.name)
    onnx = source_onnx(run, engine.backend, engine.variant, engine.precision)[0]
    kept = "engine.onnx" if engine.path.suffix == ".onnx" and sha256(onnx) == sha256(engine.path) else "model.onnx"
    if kept == "model.onnx":
        shutil.copyfile(onnx, folder / kept)
    write_json(folder / "preprocess.json", engine.preprocess.to_json())
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in labels(run)))
    scheme = record.get("scheme")
    manifest = {
        "schema": 1,
        "edgeopt": environment.versions(["edgeopt"]).get("edgeopt", "unknown"),
        "run": run.info["id"],
        "target": target.name,
        "variant": engine.variant,
        "precision": engine.precision,
        "scheme": scheme,
        "backend": record["backend"],
        "backend_version": record.get("backend_version"),
        "engine": engine.path.name,
        "engine_sha256": {path.name: sha256(path) for path in engine.files},
        "onnx": kept,
        "session": dict(settings),
        "batch": target.batch,
        "embedded_preprocessing": bool(record.get("embedded_preprocessing")),
        "temperature": engine.temperature,
        "needs_int8_dot": _on_cpu(settings) and scheme not in (None, *schemes_for(str(record["backend"]), "x86")),
        "figures": _figures(engine),
    }
    write_json(folder / _MARK, manifest)
    write_code(folder)
    write_text(folder / "requirements.txt", requirements(engine.backend.extra_for(target)))
    if record["backend"] == "openvino":
        write_cpp(folder / "cpp", manifest, engine.preprocess)
    write_text(folder / "README.md", _readme(engine, manifest))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / "SHA256SUMS", "".join(sums))
    return manifest


def _on_cpu(settings: Mapping[str, Any]) -> bool:
    """Whether the engine may be computed on the CPU, by its provider or device."""
    stated = str(settings.get("provider") or settings.get("device") or "CPU")
    return stated.startswith(("CPU", "AUTO"))


def _figures(engine: Engine) -> dict[str, Any]:
    """What was measured of this very engine, as the report names it; empty where nothing was."""
    figures: dict[str, Any] = {"size_bytes": engine.record.get("size_bytes")}
    if fusion := engine.record.get("fusion"):
        figures |= {"int8_share": fusion.get("int8_share"), "int8_share_macs": fusion.get("int8_share_macs")}
    path = engine.folder / "accuracy.json"
    accuracy = records.read(records.AccuracyRecord, path) if path.is_file() else {}
    if accuracy.get("build_key") == engine.record["key"]:
        names = ("n", "top1", "top1_ci", "drop_points", "drop_ci_points")
        figures |= {name: accuracy[name] for name in names if accuracy.get(name) is not None}
    path = engine.folder / "latency.json"
    latency = records.read(records.LatencyRecord, path) if path.is_file() else {}
    times = (
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "throughput_ips",
        "peak_memory_bytes",
        "batch",
        "threads",
        "stable",
        "fits_target",
    )
    figures |= {name: latency[name] for name in times if latency.get(name) is not None}
    if latency:
        figures["measured_on"] = ((latency.get("measured_on") or {}).get("cpu") or {}).get("name")
    return figures


def _readme(engine: Engine, manifest: Mapping[str, Any]) -> str:
    source = Environment(
        loader=FileSystemLoader(str(Path(edgeopt.packaging.__file__).parent)),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    figures = manifest["figures"]
    return source.get_template("README.md.j2").render(
        **{name: value for name, value in manifest.items() if name != "figures"},
        title=printable(f"{engine.variant} for {engine.target.title}"),
        device=engine.target.title,
        labels=labels(engine.run),
        files=_files(engine, manifest),
        cpp=manifest["backend"] == "openvino",
        measured="top1" in figures or "p50_ms" in figures,
        here=figures.get("fits_target", True),
        figures=_shown(figures),
    )


def _files(engine: Engine, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Names of the package's files, and what each is."""
    both = manifest["onnx"] == manifest["engine"]
    files = {path.name: "the engine" + (", and the ONNX it is rebuilt from" if both else "") for path in engine.files}
    files |= {} if both else {str(manifest["onnx"]): "the ONNX it is rebuilt from"}
    return {
        **files,
        "predict.py": "classifies pictures",
        f"{FOLDER}/": "decoding and preparing pictures, as edgeopt does",
        "preprocess.json": "how pictures become the engine's input",
        "labels.txt": "the classes, in the order of the logits",
        "package.json": "how the engine is opened, the temperature its logits are divided by, hashes, figures",
    }


def _shown(figures: Mapping[str, Any]) -> dict[str, str]:
    """The figures as people read them."""
    disturbed = " (unstable: other work disturbed the measurement)" if figures.get("stable") is False else ""
    found = {
        "top-1": f"{form.percent(figures.get('top1'))} of {figures.get('n')} test pictures "
        f"({form.percent_range(figures.get('top1_ci'))})",
        "difference to the original": f"{form.points(figures.get('drop_points'))} points "
        f"({form.points_range(figures.get('drop_ci_points'))})",
        "latency, p50 / p90 / p99": " / ".join(form.ms(figures.get(f"p{n}_ms")) for n in (50, 90, 99))
        + f" ms{disturbed}",
        "throughput": f"{form.significant(figures.get('throughput_ips'))} pictures/s{disturbed}",
        "batch, threads": f"{figures.get('batch')}, {figures.get('threads')}",
        "peak memory": form.mib(figures.get("peak_memory_bytes")),
        "size": form.mib(figures.get("size_bytes")),
        "compute layers in int8": f"{form.percent(figures.get('int8_share'))}, "
        f"{form.percent(figures.get('int8_share_macs'))} of the MACs",
        "measured on": str(figures.get("measured_on")),
    }
    needs = ("top1", "drop_points", "p50_ms", "throughput_ips", "threads", "peak_memory_bytes", "size_bytes",
             "int8_share", "measured_on")  # fmt: skip
    shown = zip(needs, found.items(), strict=True)
    return {name: printable(text) for need, (name, text) in shown if figures.get(need) is not None}


def _zip(folder: Path, path: Path) -> None:
    """The folder as one zip, the same bytes whenever it is made of the same files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(one for one in folder.rglob("*") if one.is_file()):
            name = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}")
            name.external_attr, name.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(name, file.read_bytes())
