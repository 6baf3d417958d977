"""Recipes, targets, calibration recipes and budgets: read from TOML, every problem said at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from edgeopt import resources
from edgeopt.compress_table import CompressConfig as CompressConfig
from edgeopt.compress_table import known_scheme
from edgeopt.data_table import DataConfig as DataConfig
from edgeopt.errors import ConfigError, did_you_mean
from edgeopt.files import printable
from edgeopt.training_tables import AugmentConfig as AugmentConfig
from edgeopt.training_tables import Seed, Taught, Whole, contradictions
from edgeopt.training_tables import Strict as Strict
from edgeopt.training_tables import TrainConfig as TrainConfig
from edgeopt.tune_space import Space, read_space
from edgeopt.tune_table import TuneConfig as TuneConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Model = TypeVar("Model", bound=BaseModel)
#: What speed is compared with.
Baseline = Literal["original", "compiled", "float"]

_MAX_TOML_BYTES = 2**20
_MOST_PROBLEMS = 20  # said at once


#: Who states the values of the configs made now: "call", "command line", or the recipe's file.
_stated_by: ContextVar[str] = ContextVar("stated_by", default="call")


@contextmanager
def stated_by(origin: str) -> Iterator[None]:
    """Values of configs recorded inside are noted as coming from ``origin``."""
    token = _stated_by.set(origin)
    try:
        yield
    finally:
        _stated_by.reset(token)


def origins(config: BaseModel, names: Mapping[str, Any]) -> dict[str, str]:
    """For each of ``names``, a field of ``config``: who stated it, or "default" when nobody did."""
    return {name: _stated_by.get() if name in config.model_fields_set else "default" for name in names}


class Budget(Strict):
    """What the result must satisfy. Points are percentage points, times milliseconds, sizes MiB.

    ``min_speedup`` is by baseline: ``original``, the PyTorch model as it is, ``compiled``, the same through
    torch.compile, or ``float``, the fastest other precision of the same target; a number alone is against the original.
    ``allow_undecided`` lets pass what too few pictures or too little time cannot tell; it is still said.
    """

    max_drop_points: float | None = Field(None, ge=0)
    max_class_drop_points: float | None = Field(None, ge=0)
    min_class_recall: float | None = Field(None, gt=0, le=1)
    min_top1: float | None = Field(None, gt=0, le=1)
    min_speedup: dict[Baseline, Annotated[float, Field(gt=0)]] | None = None
    max_p50_ms: float | None = Field(None, gt=0)
    max_p99_ms: float | None = Field(None, gt=0)
    min_throughput_ips: float | None = Field(None, gt=0)
    max_size_mib: float | None = Field(None, gt=0)
    max_memory_mib: float | None = Field(None, gt=0)
    min_int8_share: float | None = Field(None, ge=0, le=1)
    allow_undecided: bool = False

    @field_validator("min_speedup", mode="before")
    @classmethod
    def _against_the_original(cls, value: Any) -> Any:
        return {"original": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    def lines(self) -> dict[str, float]:
        """Limit by line, those that are stated: ``min_speedup`` against the original, ``min_speedup.float``."""
        found: dict[str, float] = {}
        for name, limit in self.model_dump(exclude_none=True, exclude={"allow_undecided"}).items():
            for baseline, one in (limit if isinstance(limit, dict) else {"original": limit}).items():
                found[name if baseline == "original" else f"{name}.{baseline}"] = float(one)
        return found

    def merged(self, other: Budget) -> Budget:
        """This budget with every line that ``other`` states taken from ``other``."""
        mine, theirs = (one.model_dump(exclude_none=True, exclude_defaults=True) for one in (self, other))
        speedups = {**mine.get("min_speedup", {}), **theirs.get("min_speedup", {})}
        return Budget.model_validate({**mine, **theirs, **({"min_speedup": speedups} if speedups else {})})


class BaselineConfig(Strict):
    """An earlier report that this one must not fall behind: an engine may be ``slower`` and ``larger`` by these
    fractions, and lose ``drop_points`` of top-1."""

    report: str | None = None  # report.json, or a run folder
    slower: float = Field(0.05, ge=0, lt=1)
    drop_points: float = Field(1.0, ge=0, le=100)
    larger: float = Field(0.05, ge=0, le=100)


class Match(Strict):
    """How a target recognizes its device. Every stated field must fit; an empty match fits every machine."""

    machine: str | None = None  # platform.machine(): x86_64, aarch64
    board: str | None = None  # substring of the device-tree model
    cpu: str | None = None  # substring of the CPU's model name
    gpu: str | None = None  # substring of a GPU's name, or "nvidia" for any


class SessionOptions(Strict):
    """How an engine is opened. ``threads`` 0 means every core this process may use."""

    threads: int = Field(0, ge=0, le=1024)
    device: str = "CPU"  # OpenVINO: CPU, GPU, NPU, AUTO
    hint: Literal["latency", "throughput"] = "latency"  # OpenVINO; throughput: several requests at once
    streams: int = Field(0, ge=0, le=1024)  # OpenVINO: requests computed at once; 0: what the hint makes of it
    pinning: bool | None = None  # OpenVINO: threads stay on their cores; None: its own choice
    cache: bool = False  # OpenVINO: compiled models are kept in the user's cache folder, for a faster start
    provider: str = "CPUExecutionProvider"  # ONNX Runtime
    spinning: bool = True  # ONNX Runtime: idle threads wait actively, which is faster and takes a core each
    optimized: bool = False  # ONNX Runtime: the graph is optimized when built and not when loaded
    compile: bool = False  # PyTorch: torch.compile
    compute_capabilities: tuple[str, ...] = ()  # TensorRT-RTX, such as "SM86"; empty: the GPU of this machine


#: What only one backend understands; a backend that a package adds may read any.
_SESSION_OF = {
    "onnxruntime": {"provider", "spinning", "optimized"},
    "openvino": {"device", "hint", "streams", "pinning", "cache"},
    "tensorrt": {"compute_capabilities"},
    "tensorrt_rtx": {"compute_capabilities"},
}


class Target(Strict):
    """A device profile. ``name`` comes from the file's name."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str = ""
    title: str
    backend: str
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "int8"
    scheme: str | None = None  # None: what the capability table prefers on the machine that builds
    status: Literal["measured", "emulated", "untested"] = "untested"
    round_to: int = Field(8, ge=1, le=128)
    batch: int = Field(1, ge=1, le=1024)
    min_int8_share_macs: float = Field(1.0, ge=0, le=1)  # of an int8 engine, for `build --strict`
    match: Match = Match()
    session: SessionOptions = SessionOptions()
    budget: Budget = Budget()
    sources: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _session_of_the_backend(self) -> Target:
        """A key that the backend does not read would be decoration."""
        own = _SESSION_OF.get(self.backend)
        strange = sorted(self.session.model_fields_set - {"threads"} - own) if own is not None else []
        default = SessionOptions()
        strange = [name for name in strange if getattr(self.session, name) != getattr(default, name)]
        if strange:
            raise ValueError(f"session.{', session.'.join(strange)}: not read by {self.backend}")
        return self

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        return value if value is None else known_scheme(value)


class CalibrationRecipe(Strict):
    """How the pictures that set the int8 ranges are chosen from train."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str = ""
    count: int = Field(300, ge=16, le=100_000)
    selection: Literal["stratified", "diverse"] = "stratified"
    range: Literal["minmax", "percentile", "histogram"] = "minmax"
    seed: Seed = 0


class ModelConfig(Strict):
    """The model: a name, arguments of its constructor, and where its weights come from."""

    name: str = "tf_efficientnet_lite0"
    arguments: dict[str, bool | Whole | float | str | tuple[Whole | float, ...]] = Field(default_factory=dict)
    pretrained: bool = True
    weights: str | None = None

    @field_validator("arguments", mode="before")
    @classmethod
    def _plain_arguments(cls, value: Any) -> Any:
        """Said in one line, not once for each type that it is not."""
        for key, argument in value.items() if isinstance(value, dict) else ():
            items = argument if isinstance(argument, (list, tuple)) else [argument]
            plain = (int, float) if items is argument else (bool, int, float, str)
            if not items or not all(isinstance(item, plain) for item in items):
                raise ValueError(f"{key} must be a number, a word, true, false or a list of numbers")
        return value

    @property
    def random_weights(self) -> bool:
        """Whether it starts from random numbers because that was stated; ``module:attr`` models may load their own."""
        own_code = ":" in self.name and not self.name.startswith(("timm:", "torchvision:"))
        return not self.pretrained and self.weights is None and not own_code


class EnsembleConfig(Strict):
    """Several variants that answer together; without ``members``, the models of the folds."""

    vote: Literal["soft", "hard", "weighted", "stacking", "soup"] = "soft"
    members: tuple[str, ...] = ()


class BuildConfig(Strict):
    """Building: as the options of ``edgeopt build``."""

    strict: bool = False
    float_layers: tuple[str, ...] = ()  # of int8 variants: left in float, without training
    embed_preprocessing: bool = False  # engines that take uint8 pictures and normalize these themselves


class BenchConfig(Strict):
    """Measuring: seconds at most for all engines together, threads of each (0: every core).

    It ends early when the interval of every engine's ratio to the original is narrower than ``width`` of the ratio.
    """

    seconds: float = Field(20.0, gt=0, le=36_000)
    width: float = Field(0.03, gt=0, le=1)
    threads: int = Field(0, ge=0, le=1024)
    compiled: bool = False  # the original through torch.compile as well, as another baseline
    throughput: bool = False  # search batches and processes for the most pictures a second
    max_latency_ms: float | None = Field(None, gt=0)  # p90 of a call that the search may not pass

    cross_check: bool = False  # every engine through its runtime's own tool as well

    @model_validator(mode="after")
    def _a_cap_needs_a_search(self) -> BenchConfig:
        if self.max_latency_ms is not None and not self.throughput:
            raise ValueError("max_latency_ms caps the search for throughput: set throughput as well")
        return self


class Recipe(Strict):
    """The whole run, as in ``edgeopt.toml``."""

    name: str | None = None
    targets: tuple[str, ...] = ("onnxruntime", "openvino")
    package: bool = False  # one for each target, where its engines can be packaged
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    ensemble: EnsembleConfig | None = None
    compress: CompressConfig = CompressConfig()
    build: BuildConfig = BuildConfig()
    bench: BenchConfig = BenchConfig()
    budget: Budget = Budget()
    baseline: BaselineConfig = BaselineConfig()
    tune: TuneConfig = TuneConfig()


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; raises ConfigError with the line when it is not TOML."""
    try:
        with path.open("rb") as handle:
            content = handle.read(_MAX_TOML_BYTES + 1)
        if len(content) > _MAX_TOML_BYTES:
            raise ConfigError(f"{path} is larger than any recipe or target", fix="give a .toml file")
        values: dict[str, Any] = tomllib.loads(content.decode())
        return values
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", fix="check the path, or make one with: edgeopt init") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", fix="give a .toml file") from None
    except (ValueError, RecursionError) as error:  # of tomllib, of the text's encoding, of numbers too long or nested
        raise ConfigError(f"{path} is not valid TOML: {printable(str(error))[:300]}", fix="correct that line") from None


def validate(model: type[Model], values: Mapping[str, Any], *, where: str) -> Model:
    """``values`` as ``model``; raises one ConfigError that lists every problem, with suggestions for misspelt keys.

    Of a recipe what contradicts itself is among the problems, as far as its tables are readable.
    """
    problems, made = [], None
    try:
        made = model.model_validate(values)
    except ValidationError as error:
        problems = [_problem(model, item) for item in error.errors()]
    if issubclass(model, Recipe):
        problems += [*_contradictions(values), *_space_problems(values)]
    if made is None or problems:
        raise ConfigError(listed(problems, where=where), fix=f"correct {where}")
    return made


def listed(problems: Sequence[str], *, where: str) -> str:
    """One message of a line for each problem, up to a number that can be read."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = list(problems[:_MOST_PROBLEMS])
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    return f"{where}: {count}\n" + "\n".join(f"  - {line}" for line in lines)


def require_compatible(
    train: TrainConfig, augment: AugmentConfig, model: ModelConfig, *, soft_targets: bool | None = None
) -> None:
    """Raises ConfigError with everything in these tables that contradicts itself; see :func:`contradictions`."""
    if problems := contradictions(train, augment, soft_targets=soft_targets, random_weights=model.random_weights):
        raise ConfigError(listed(problems, where="training"), fix="leave one side of each out")


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    """Those of a recipe whose other tables may be wrong."""
    latency = _against_targets(values)
    try:
        train = TrainConfig.model_validate(values.get("train", {}))
        model = ModelConfig.model_validate(values.get("model", {}))
        augment = AugmentConfig.model_validate(values.get("augment", {}))
        wanted = values.get("ensemble")
        return [
            *latency,
            *contradictions(train, augment, random_weights=model.random_weights),
            *(_against_ensemble(train, EnsembleConfig.model_validate(wanted)) if wanted is not None else ()),
            *_against_features(wanted, CompressConfig.model_validate(values.get("compress", {}))),
        ]
    except ValidationError:
        return latency


def _against_targets(values: Mapping[str, Any]) -> list[str]:
    """A latency is measured on one target."""
    compress, targets = values.get("compress", {}), values.get("targets", Recipe.model_fields["targets"].default)
    stated = compress.get("latency") if isinstance(compress, Mapping) else getattr(compress, "latency", None)
    if stated is None or not isinstance(targets, (list, tuple)) or len(targets) == 1:
        return []
    return [f"compress.latency: it is measured on one target, and targets names {len(targets)}; name one"]


def _against_ensemble(train: TrainConfig, wanted: EnsembleConfig) -> list[str]:
    if wanted.members:
        return []
    if train.folds is None:
        return ["ensemble.members: one model is trained, and an ensemble needs two; set train.folds, or name variants"]
    if wanted.vote == "stacking":
        return [
            "ensemble.vote: stacking learns from pictures no member was trained on, and every one was in the training "
            "of all folds but one; name cross-validated variants in ensemble.members"
        ]
    if wanted.vote == "soup" and train.keep == "soup":
        return ["ensemble.vote: train.keep makes the soup of the folds already; leave one of them out"]
    return []


def _against_features(ensemble: Any, compress: CompressConfig) -> list[str]:
    if ensemble is None or compress.teacher is not None or compress.distill != "features":
        return []
    if EnsembleConfig.model_validate(ensemble).vote == "soup":
        return []
    return [
        "compress.distill: the ensemble teaches, and has no features of its own; name one of its members in "
        "compress.teacher, or take another way"
    ]


def _space_problems(values: Mapping[str, Any]) -> list[str]:
    """Those of the search space of ``[tune]``, if it is a table at all."""
    table = values.get("tune")
    space = (
        table.get("space", {}) if isinstance(table, Mapping) else table.space if isinstance(table, TuneConfig) else {}
    )
    return [f"tune.space.{one}" for one in read_space(space, Recipe)[1]] if isinstance(space, Mapping) else []


def search_space(tune: TuneConfig) -> Space:
    """The parameters of ``tune.space``; raises one ConfigError that lists every problem."""
    space, problems = read_space(tune.space, Recipe)
    if problems:
        raise ConfigError(listed(problems, where="tune.space"), fix="correct the search space")
    return space


def _problem(model: type[BaseModel], item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    name = printable(".".join(path))[:200]
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown key{did_you_mean(path[-1], _keys(model, path[:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    # Of keys that contradict each other the input is their whole table.
    telling = item["type"] != "missing" and not (item["type"] == "value_error" and isinstance(item["input"], Mapping))
    head = f"{name}: " if name else ""
    return f"{head}{message[0].lower()}{message[1:]}" + (f", got {_shown(item['input'])}" if telling else "")


def _shown(value: object) -> str:
    try:
        return f"{value!r:.100}"
    except ValueError:  # Python does not write out integers of thousands of digits, which TOML reads in hexadecimal
        return "a number of thousands of digits"


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys a table of the recipe may have."""
    for part in path:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def load_recipe(path: Path) -> Recipe:
    """The recipe in ``path``; relative paths in it are taken from its folder."""
    recipe = validate(Recipe, read_toml(path), where=str(path))

    def here(name: str) -> str:
        return str(path.parent / name) if not Path(name).is_absolute() else name

    def file(name: str) -> str:
        return here(name) if name.endswith(".toml") or "/" in name else name

    def teacher(table: Taught) -> str | None:  # another run's folder has a slash in it, a variant's name has none
        return here(table.teacher) if table.teacher and "/" in table.teacher else table.teacher

    data, model, compress = recipe.data, recipe.model, recipe.compress
    if not data.path.startswith("torchvision:"):
        data = data.model_copy(update={"path": here(data.path)})
    if data.exclude:
        data = data.model_copy(update={"exclude": here(data.exclude)})
    if model.weights:
        model = model.model_copy(update={"weights": here(model.weights)})
    baseline = recipe.baseline
    if baseline.report:
        baseline = baseline.model_copy(update={"report": here(baseline.report)})
    compress = compress.model_copy(update={"calibration": file(compress.calibration), "teacher": teacher(compress)})
    train = recipe.train.model_copy(update={"teacher": teacher(recipe.train)})
    targets = tuple(file(name) for name in recipe.targets)
    tables = {"data": data, "model": model, "train": train, "compress": compress, "baseline": baseline}
    return recipe.model_copy(update={**tables, "targets": targets})


def load_target(name_or_file: str) -> Target:
    """A shipped target by name, or the user's own TOML file."""
    path = resources.find("targets", name_or_file)
    return validate(Target, {**read_toml(path), "name": path.stem}, where=f"target {path}")


def load_calibration(name_or_file: str) -> CalibrationRecipe:
    """A shipped calibration recipe by name, or the user's own TOML file."""
    path = resources.find("calibration", name_or_file)
    return validate(CalibrationRecipe, {**read_toml(path), "name": path.stem}, where=f"calibration recipe {path}")
