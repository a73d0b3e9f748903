"""Run by `test_killing`: forks processes that write checkpoints, kills them, and looks at what is left.

One process with torch warmed up forks all of them, so that a kill costs milliseconds. Prints a JSON object; any broken
promise is an assertion error instead.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from states import same_tensors, training_state

from mmkit.checkpoint import disk, latest, lock, read, verify, write
from mmkit.checkpoint.directory import checkpoints
from mmkit.checkpoint.manifest import step_of
from mmkit.errors import CheckpointError

KEEP = 2


def save(run: Path, step: int, seed: int | None = None) -> None:
    """One checkpoint whose content is known from `seed`, by default its step."""
    write(run, step, **training_state(step if seed is None else seed), keep=KEEP)


def holds(path: Path, seed: int) -> bool:
    """Whether a checkpoint has every bit of `save(..., seed)`."""
    verify(path)
    checkpoint, state = read(path), training_state(seed)
    return (
        same_tensors(checkpoint.model(), state["model"])
        and same_tensors(checkpoint.ema(), state["ema"])
        and same_tensors(checkpoint.optimizer(), state["optimizer"])
        and checkpoint.trainer == state["trainer"]
        and checkpoint.recipe == state["recipe"]
    )


def forked(work: Callable[[], None]) -> int:
    """A child that does `work` and ends without the parent's clean-up."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def leftovers(run: Path) -> list[str]:
    """The names that are neither a checkpoint nor expected."""
    parent = run / "checkpoints"
    return sorted(p.name for p in parent.iterdir() if step_of(p) is None) if parent.is_dir() else []


def check(run: Path, acknowledged: int) -> int:
    """What must hold after any kill, before anything is cleaned. Gives the newest step."""
    steps = {step_of(path): path for path in checkpoints(run)}
    for step, path in steps.items():
        assert holds(path, step), f"{path} is not what was written"
    newest = latest(run)
    found = step_of(newest) if newest else 0
    assert found >= acknowledged, f"step {acknowledged} was acknowledged, and {found} is the newest"
    required = set(range(max(1, found - KEEP + 1), found + 1))
    assert required <= steps.keys(), f"{sorted(required)} must be there, and {sorted(steps)} are"
    return found


def random_kills(folder: Path, kills: int) -> dict[str, object]:
    """Kills a writer `kills` times at a random instant; each next one goes on in the same run."""
    run, chance = folder / "random", random.Random(0)
    save(run, 1)
    started = time.perf_counter()
    for step in (2, 3):
        save(run, step)
    span = (time.perf_counter() - started) / 2
    acknowledged, caught, progress = 3, Counter[str](), 0
    for kill in range(kills):
        reader, writer = os.pipe()

        def work(writer: int = writer) -> None:
            with lock(run):
                step = step_of(latest(run))
                os.write(writer, b"%d\n" % step)
                while True:
                    step += 1
                    save(run, step)
                    os.write(writer, b"%d\n" % step)

        child = forked(work)
        os.close(writer)
        told = b"" if kill % 5 == 0 else os.read(reader, 100)  # each fifth kill falls on the start, the others on saves
        time.sleep(chance.uniform(0, 4 * span))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer failed by itself"
        told += os.read(reader, 65536)
        os.close(reader)
        progress += max(0, told.count(b"\n") - 1)
        acknowledged = max([acknowledged, *map(int, told.split())])
        caught.update(name.split("-")[0] for name in leftovers(run))
        acknowledged = check(run, acknowledged)
    with lock(run):
        assert leftovers(run) == [], f"not cleaned: {leftovers(run)}"
    check(run, acknowledged)
    return {"kills": kills, "acknowledged": progress, "caught": dict(caught), "write_ms": round(span * 1000, 1)}


def phases_of(run: Path, step: int, seed: int) -> list[str]:
    """The named instants of one save."""
    seen: list[str] = []
    disk.phase = seen.append
    save(run, step, seed)
    disk.phase = lambda name: None
    return seen


def phase_kills(folder: Path) -> dict[str, object]:
    """Kills a save at each of its named instants: a new step that prunes another, and a step that is replaced."""
    base = folder / "base"
    for step in (1, 2):
        save(base, step)
    counts = {}
    for scenario, step, seed in (("new", 3, 3), ("replaced", 2, 20)):
        names = phases_of(Path(shutil.copytree(base, folder / f"all-{scenario}")), step, seed)
        counts[scenario] = len(names)
        for instant, name in enumerate(names):
            run = Path(shutil.copytree(base, folder / f"{scenario}-{instant}"))
            killed_at(run, step, seed, instant)
            visible = {step_of(path): path for path in checkpoints(run)}
            assert all(holds(p, s) or (s == step and holds(p, seed)) for s, p in visible.items()), name
            with lock(run):
                assert leftovers(run) == [], name
                steps = {step_of(path): path for path in checkpoints(run)}
                assert 2 in steps, f"killed at {name!r}: a finished checkpoint is lost"
                assert steps.keys() >= ({1, 2} if 3 not in steps else {2, 3}), name
                assert all(holds(p, s) or (s == step and holds(p, seed)) for s, p in steps.items()), name
                save(run, 3)
                assert holds(latest(run), 3)
    return counts


def killed_at(run: Path, step: int, seed: int, instant: int) -> None:
    """A child that kills itself when it has passed `instant` named instants of a save."""
    passed = 0

    def phase(name: str) -> None:
        nonlocal passed
        if passed == instant:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def work() -> None:
        disk.phase = phase
        save(run, step, seed)

    _, status = os.waitpid(forked(work), 0)
    assert os.WIFSIGNALED(status)


def lock_races(folder: Path, races: int) -> dict[str, int]:
    """Several processes want one folder again and again: never are two inside, and nobody is refused an idle folder."""
    run = folder / "race"
    reader, writer = os.pipe()

    def work() -> None:
        chance = random.Random(os.getpid())
        for _ in range(races):
            try:
                with lock(run):
                    inside = os.open(run / "inside", os.O_CREAT | os.O_EXCL)  # fails where another is inside
                    time.sleep(chance.uniform(0, 0.002))
                    (run / "inside").unlink()
                    os.close(inside)
                os.write(writer, b"i")
            except CheckpointError as error:
                assert "is in use by" in str(error), error
                os.write(writer, b"r")
            time.sleep(chance.uniform(0, 0.004))

    children = [forked(work) for _ in range(3)]
    os.close(writer)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    outcomes = Counter(os.read(reader, 65536).decode())
    with lock(run):
        return {"got in": outcomes["i"], "refused": outcomes["r"]}


def orphan_keeps_no_lock(folder: Path) -> bool:
    """A data worker outlives the trainer that was killed: the run is free at once."""
    run = folder / "orphan"
    reader, writer = os.pipe()

    def trainer() -> None:
        with lock(run):
            worker = forked(lambda: time.sleep(30))
            os.write(writer, b"%d\n" % worker)
            time.sleep(30)

    child = forked(trainer)
    worker = int(os.read(reader, 100))
    try:
        refused = lock(run)
        try:
            refused.__enter__()
        except CheckpointError as error:
            assert f"in use by process {child} on " in str(error), error
        else:
            raise AssertionError("the lock was given twice")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.kill(worker, 0)
        with lock(run):
            return True
    finally:
        os.kill(worker, signal.SIGKILL)


def main(folder: Path, kills: int) -> None:
    """All of it, timed."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    result: dict[str, object] = {}
    for name, work in (
        ("random", lambda: random_kills(folder, kills)),
        ("phases", lambda: phase_kills(folder)),
        ("races", lambda: lock_races(folder, 50)),
        ("orphan", lambda: orphan_keeps_no_lock(folder)),
    ):
        started = time.perf_counter()
        result[name] = work()
        result[f"{name}_s"] = round(time.perf_counter() - started, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
