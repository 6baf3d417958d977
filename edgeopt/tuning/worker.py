"""``python -m edgeopt.tuning.worker STUDY``: one more process for a study; its leader says the rest on stdin."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType

from edgeopt.config import Recipe
from edgeopt.console import Silent
from edgeopt.errors import EdgeoptError


def main(arguments: list[str]) -> int:
    """Work on the study in the folder named until there is nothing left to do; 130 when told to stop.

    stdin has ``{"recipe": ..., "until": seconds as of time.time(), or null}``: not a file of the run, which may come
    from a stranger and name code.
    """
    from edgeopt.stages.tune import reopened
    from edgeopt.tuning import crew

    signal.signal(signal.SIGTERM, _stop)
    stated = json.load(sys.stdin)
    try:
        search = reopened(Recipe.model_validate(stated["recipe"]), Path(arguments[0]), until=stated["until"])
        with search.study.working():
            crew.work(search, Silent())
    except EdgeoptError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
