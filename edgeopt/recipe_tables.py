"""The whole recipe, ``edgeopt.toml``, and its shorter tables: model, ensemble, building, measuring, baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from edgeopt.compress_table import CompressConfig
from edgeopt.data_table import DataConfig
from edgeopt.tables import Strict
from edgeopt.target_tables import Budget
from edgeopt.training_tables import AugmentConfig, TrainConfig, Whole
from edgeopt.tune_table import TuneConfig


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


class CheckConfig(Strict):
    """Looking at the pictures before training, as ``edgeopt check`` does.

    ``model`` is the pretrained backbone that labels are checked with. With ``leave_out`` training is without the
    pictures that the check would leave out; each is named with its reason.
    """

    model: str = "tf_efficientnet_lite0"
    labels: bool = True
    leave_out: bool = False


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
    """Measuring: seconds at most for all engines together, divided among ``starts`` of new processes; threads of each
    (0: every core).

    It ends early when the interval of every engine's ratio to the original is narrower than ``width`` of the ratio.
    """

    seconds: float = Field(20.0, gt=0, le=36_000)
    starts: int = Field(2, ge=1, le=100)
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


class BaselineConfig(Strict):
    """An earlier report that this one must not fall behind: an engine may be ``slower`` and ``larger`` by these
    fractions, and lose ``drop_points`` of top-1."""

    report: str | None = None  # report.json, or a run folder
    slower: float = Field(0.05, ge=0, lt=1)
    drop_points: float = Field(1.0, ge=0, le=100)
    larger: float = Field(0.05, ge=0, le=100)


class Recipe(Strict):
    """The whole run, as in ``edgeopt.toml``."""

    name: str | None = None
    targets: tuple[str, ...] = ("onnxruntime", "openvino")
    package: bool = False  # one for each target, where its engines can be packaged
    data: DataConfig
    check: CheckConfig | None = None
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

    @property
    def run_path(self) -> Path | None:
        """Where its run is, when it has a name; else the pictures' folder names it."""
        return Path("runs") / self.name if self.name else None
