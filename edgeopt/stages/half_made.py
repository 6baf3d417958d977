"""What a half-made stage left for the same command to go on with; checked as records are, for hands can reach it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from edgeopt.models.architecture import check_cuts
from edgeopt.records import StageRecord
from edgeopt.records.fields import Record, Text

Cuts = Annotated[list[Any], Field(max_length=10_000), AfterValidator(check_cuts)]


class BatchSizeRecord(Record):
    """``batch_size.json``: what the search for one found."""

    fix: ClassVar[str] = "delete it, and type the same command again: it is searched for anew"

    size: Annotated[int, Field(ge=1, le=2**20)]


class PruneStepRecord(Record):
    """``step.json``: how many steps of a pruning are done, what they cut, and why layers kept their widths."""

    fix: ClassVar[str] = "make the stage again: type the same command with --force"

    steps: Annotated[int, Field(ge=0, le=1000)]
    history: Cuts
    reasons: dict[Text, Text]
    metrics: dict[Text, Any]
    latency: dict[Text, Any] | None = None


class LatencySearchRecord(StageRecord.LatencySearch, Record):
    """``latency_search.json``: what the stage's record will hold, and the acts of the plan to be carried out."""

    fix: ClassVar[str] = "delete it, and type the same command again: it is searched for anew"

    class Chosen(StageRecord.LatencySearch.Plan):
        """The plan with its acts."""

        history: Cuts

    untouched: dict[Text, Text]
    chosen: Chosen
