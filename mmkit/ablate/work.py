"""One run of a grid, in a process of its own: ``python -m mmkit.ablate.work`` trains a recipe, then judges what came of it.

The job comes as one line of JSON: on the standard input, which stays open for as long as whoever started it lives; or in a
file that is named, and then the run lives on its own (`mmkit.contracts.launcher`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from mmkit.errors import MmkitError

JUDGED = "judged.json"
"""Written last: how the run was judged."""


def _stop_with_parent() -> None:
    """The input ends when the process that holds it does, however it died: then this one saves and stops, too."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def work(recipe: str, run: Path, shared: Path, per_task: int, title: str) -> None:
    """Trains a resolved recipe into a folder, from wherever that stands, and writes its report. Raises `MmkitError`.

    What runs have in common is in `shared`.
    """
    # Torch comes after the watch over the parent has begun: importing it takes seconds.
    from mmkit import checkpoint
    from mmkit.compose import loads
    from mmkit.compose.rendering import of_evaluation
    from mmkit.demo import report_on
    from mmkit.evaluate.judging import tasks_of
    from mmkit.train import train

    loaded = loads(recipe, file=str(run / "recipe.yaml"))
    train(loaded, run, shared=shared, quiet=True)
    report_on(run, per_task, title=title, quiet=True, tasks=tasks_of(loaded))
    how = {"per_task": per_task, "step": loaded.train.steps, "evaluate": of_evaluation(recipe)}
    checkpoint.write_text(run / JUDGED, json.dumps(how))


def main(arguments: Sequence[str]) -> int:
    """Does the job of a file, or of the standard input. Gives 2, and one line, where a user can mend what is wrong."""
    if arguments:
        job = json.loads(Path(arguments[0]).read_text())
    else:
        job = json.loads(sys.stdin.buffer.readline())
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        work(job["recipe"], Path(job["run"]), Path(job["shared"]), job["per_task"], job["title"])
    except MmkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
