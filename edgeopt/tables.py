"""What tables of a recipe share: they are strict, and where something is trained a teacher may help."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Strict(BaseModel):
    """Frozen; unknown keys are errors, and so are NaN and infinity, which no record could hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Distill = Literal["hinton", "dkd", "dist", "features"]
DISTILL: tuple[Distill, ...] = get_args(Distill)
#: Temperature and weight where none are stated.
_LESSONS: dict[Distill, tuple[float | None, float]] = {
    "hinton": (3.0, 0.9),
    "dkd": (4.0, 0.5),
    "dist": (4.0, 2 / 3),
    "features": (None, 0.5),
}


class Taught(Strict):
    """How a teacher is listened to; see :mod:`edgeopt.train.distillation`.

    ``teacher`` is a float variant or an ensemble of the run, the folder of another run of the same classes, or
    ``timm:NAME`` where the classes are ImageNet's. The loss is ``distill_weight`` times what ``distill`` measures, and
    the rest the loss of the labels.
    """

    teacher: str | None = None
    distill: Distill = "hinton"
    temperature: float | None = Field(None, gt=0, le=1000)  # of the softened answers; None: the method's own
    distill_weight: float | None = Field(None, ge=0, le=1)  # None: the method's own

    @field_validator("temperature")
    @classmethod
    def _has_a_temperature(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("distill") == "features":
            raise ValueError("features have no temperature, answers have; leave it out")
        return value

    def lesson(self) -> dict[str, Any]:
        """``distill``, and the ``temperature`` and ``distill_weight`` that hold."""
        temperature, weight = _LESSONS[self.distill]
        return {
            "distill": self.distill,
            "temperature": temperature if self.temperature is None else self.temperature,
            "distill_weight": weight if self.distill_weight is None else self.distill_weight,
        }
