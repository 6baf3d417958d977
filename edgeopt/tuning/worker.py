"""``python -m edgeopt.tuning.worker STUDY [UNTIL]``: one more process for a study, started by its leader."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from edgeopt.console import Silent
from edgeopt.errors import EdgeoptError


def main(arguments: list[str]) -> int:
    """Work on the study in the folder named until there is nothing left to do; 130 when told to stop."""
    from edgeopt.stages.tune import reopened
    from edgeopt.tuning import crew

    signal.signal(signal.SIGTERM, _stop)
    until = float(arguments[1]) if len(arguments) > 1 else None
    try:
        search = reopened(Path(arguments[0]), until=until, console=Silent())
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
