"""The programs that time kernels: they run through to a table, and time nothing that is not right. No figure is looked at."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # it would stay so for the other tests


def fails(*_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such library")


def op(right: bool = True, ours: Any = torch.square, goal: float = 1.0) -> SimpleNamespace:
    """Squares of 8 numbers, with and without a backward pass."""
    from races import BOTH, FORWARD, TIMES, Check, Goal, Race

    def gate(_: Any = None) -> Iterator[Check]:
        yield Check("square", "8 numbers", (1e-3, 1e-3), (1e-2, 1e-2 if right else 1e-4))

    def races(_: Any = None) -> Iterator[Race]:
        for grad in (False, True):
            runs = {"triton": ours, "eager": lambda x: (x * x, x), "absent": fails}
            given = lambda grad=grad: [torch.randn(8, requires_grad=grad)]  # noqa: E731
            goals = (Goal(BOTH, TIMES, goal, None, ("eager",)), Goal(FORWARD, TIMES, 1.0, None, ("absent",)))
            made = lambda runs=runs: runs  # noqa: E731
            yield Race(
                "square", f"8 numbers, {grad}", given, made, "triton", grad, flops=8.0, bytes=64.0,
                goals=goals if grad else (),
            )  # fmt: skip

    return SimpleNamespace(gate=gate, races=races, configurations=races)


def gpu(tmp_path: Path, *more: str, **ops: Any) -> dict[str, Any]:
    import kernels_gpu

    path = tmp_path / "found.json"
    arguments = ["--toy", "--rounds", "4", "--json", str(path), *more]
    try:
        kernels_gpu.main(arguments, {name: lambda each=each: each for name, each in ops.items()})
    finally:
        found = json.loads(path.read_text())
    return found


def test_gate_then_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu(tmp_path, square=op(goal=1e-9))
    assert {"device", "driver", "torch", "triton", "ceilings"} <= found.keys() and found["gate"][0]["right"]
    # The one with goals comes first.
    assert [[*race["passes"]] for race in found["races"]] == [
        ["forward", "backward", "forward + backward"],
        ["forward"],
    ]
    ours, peer = found["races"][0]["passes"]["backward"]
    assert (ours["name"], peer["name"], ours["ratio"]) == ("triton", "eager", [1.0, 1.0, 1.0])
    assert ours["flops"] == pytest.approx(16 / ours["seconds"][1]) and peer["bytes"] == pytest.approx(
        128 / peer["seconds"][1]
    )
    said = capsys.readouterr().out
    assert "no figure below means anything" in said
    assert "right: square, 8 numbers" in said and "| 8 numbers, True | backward | eager |" in said
    assert "absent | failed: RuntimeError: no such library" in said
    assert [goal["reached"] for goal in found["goals"]] == ["met", "not measured"]
    assert "| 8 numbers, True | forward + backward: times as fast as eager | 0.00x | - |" in said


def test_goals_are_counted_as_they_say() -> None:
    from races import COPY, FORWARD, MS, PER_FLOP, TIMES, Goal, Outcome, Race, Result, found

    def result(name: str, seconds: float) -> Result:
        return Result(name, (seconds,) * 3, (seconds / 0.002,) * 3, 4e9 / seconds, 6e9 / seconds)

    race = Race("op", "a case", list, {}, "triton", flops=4e9, bytes=6e9, flops_of={"causal": 8e9})
    peers = [result("triton", 0.002), result("fast", 0.003), result("slow", 0.008), result("causal", 0.003)]
    outcome = Outcome(race, {FORWARD: peers}, {}, 3, 3)
    for goal, value, reached in (
        (Goal(FORWARD, TIMES, 4.0, 5.0, ("slow",)), 4.0, "met"),
        (Goal(FORWARD, TIMES, 4.0, 5.0, ("slow", "fast", "absent")), 1.5, "missed"),
        (Goal(FORWARD, TIMES, 1.0, 1.5, ("fast",)), 1.5, "stretch"),
        # The other did twice the work in 1.5 times the time.
        (Goal(FORWARD, PER_FLOP, 0.7, 0.9, ("causal",)), 0.75, "met"),
        (Goal(FORWARD, COPY, 0.8, 0.9), 3e12 / 4e12, "missed"),
        (Goal(FORWARD, MS, 2.1, 1.9), 2.0, "met"),
        (Goal(FORWARD, MS, 1.9), 2.0, "missed"),
    ):
        assert found(outcome, goal, 4e12) == pytest.approx(value) and goal.reached(value) == reached
    for goal in (Goal(FORWARD, TIMES, 1.0, None, ("absent",)), Goal("backward", MS, 1.0)):
        assert found(outcome, goal, 4e12) is None and goal.reached(None) == "not measured"


def test_a_contestant_runs_inside_its_own_context() -> None:
    from races import Race, Under, run

    inside: list[str] = []

    @contextlib.contextmanager
    def named(name: str) -> Iterator[None]:
        inside.append(name)
        yield
        inside.pop()

    seen: list[list[str]] = []
    runs = {"ours": lambda x: seen.append([*inside]) or x, "other": Under(lambda: named("tried"), lambda x: x)}

    def clock(each: Any, tensors: list[torch.Tensor], _: bool) -> dict[str, float]:
        each(*tensors)
        seen.append([*inside])
        return {"forward": 1.0}

    run(Race("op", "a case", lambda: [torch.zeros(1)], runs, "ours"), clock, rounds=1, warm=0, seconds=1)
    assert seen == [[], [], ["tried"]]


def breaks(_: Any = None) -> Iterator[Any]:
    raise RuntimeError("illegal memory access")
    yield


@pytest.mark.parametrize("kind", ["wrong", "breaks", "none"])
def test_what_is_not_right_is_not_timed_and_hides_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    bad = {"wrong": op(right=False), "breaks": SimpleNamespace(gate=breaks), "none": SimpleNamespace(gate=lambda _: ())}
    with pytest.raises(SystemExit, match="1 of 2 checks failed, so nothing was timed of bad"):
        gpu(tmp_path, bad=bad[kind], square=op())
    said = capsys.readouterr().out
    assert "WRONG: bad" in said and "| square | 8 numbers, False |" in said and "| bad |" not in said


def test_a_kernel_of_mmkits_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="own kernel failed in 2 of the races"):
        gpu(tmp_path, square=op(ours=fails))


def test_races_that_break_hide_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = op()
    bad.races = breaks
    with pytest.raises(SystemExit, match="failed in 1 of the races"):
        gpu(tmp_path, bad=bad, square=op())
    said = capsys.readouterr().out
    assert "bad: its races broke: RuntimeError: illegal memory access" in said and "| 8 numbers, True |" in said


def test_what_there_is_no_time_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu(tmp_path, "--seconds", "0", square=op())["races"][0]["rounds"] == 3
    assert "cut short after 3 of 4 rounds" in capsys.readouterr().out
    found = gpu(tmp_path, "--minutes", "0", square=op())
    assert not found["races"] and "no time was left for 2 races: square, 8 numbers, True" in found["notes"][0]
    assert {goal["reached"] for goal in found["goals"]} == {"not measured"}


FAKES = """
import ctypes, time
import torch
from races import Check, Race

def gate(scale):
    yield Check("op", "a case", (0.0,), (0.0,))
    {gate}

def races(scale):
    def run(x):
        {race}
        return x
    yield Race("op", "it", lambda: [torch.zeros(1)], lambda: {{"triton": run}}, "triton")
    yield Race("op", "another", lambda: [torch.zeros(1)], {{"triton": torch.square}}, "triton")
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ops for processes of their own: one whose race ends its process, one whose gate does, one that hangs."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    dies = "ctypes.string_at(0)"
    for name, gate, race in (("dies", "pass", dies), ("ends", dies, "pass"), ("hangs", "time.sleep(600)", "pass")):
        folder.joinpath(f"{name}.py").write_text(FAKES.format(gate=gate, race=race))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    return folder


def test_a_kernel_that_takes_its_process_along_hides_nothing_else(
    fakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import kernels_gpu

    with pytest.raises(SystemExit, match=r"1 of 3 checks failed, so nothing was timed of ends"):
        kernels_gpu.main(["--toy", "--op", "dies", "ends"], folder=str(fakes))
    said = capsys.readouterr().out
    assert "right: ends, a case" in said and "WRONG: ends, broke: its process ended with status" in said
    assert "| dies | it |  | the whole race | failed: its process ended with status" in said
    assert "| dies | another | forward | triton |" in said


def test_a_worker_that_hangs_is_ended(fakes: Path) -> None:
    from gpu_worker import Gone, There
    from scale import Scale

    worker = There(Scale(toy=True), str(fakes))
    with pytest.raises(Gone, match="it hung: no end after 1 s"):
        [*worker.ask(1.0, "gate", op="hangs")]
    assert worker.process.poll() is not None


def test_the_cpu_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import kernels_cpu

    path = tmp_path / "found.json"
    kernels_cpu.main(["--rounds", "4", "--json", str(path), "--without", "absent"], {"square": op})
    said = capsys.readouterr().out
    assert "| square | 8 numbers, True | forward + backward | eager | triton |" in said and "failed" not in said
    assert len(json.loads(path.read_text())["races"]) == 2


def test_what_is_tried_instead_is_found_in_every_thread_and_in_its_own_table_only() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from mmkit.kernels.triton_launch import entry, instead

    table, other, x = {(80, 64): "a"}, {(80, 64): "b"}, torch.empty(0)
    with ThreadPoolExecutor(1) as pool, instead(table, "tried"):
        assert pool.submit(entry, table, x, "here", 64).result() == "tried"
        assert entry(other, x, "here", 64) == "here"
        with instead(table, "inside"):
            assert entry(table, x, "here", 64) == "inside"
        assert entry(table, x, "here", 64) == "tried"
    assert entry(table, x, "here", 64) == "here"


ABSENT = {"liger", "liger, mean", "causal, FA3", "causal, cuDNN"}
"""Contestants that no CPU runs, by name; so is flex, where a gradient is wanted."""
RACED = {path.stem for path in FOLDER.joinpath("gpu_races").glob("*.py")}


@pytest.mark.parametrize(
    ("ops", "more"),
    [
        (("attention",), ()),
        (("experts",), ()),
        pytest.param(("decode", "cross_entropy"), (), marks=pytest.mark.slow),
        pytest.param(("norm", "rope"), (), marks=pytest.mark.slow),
        (("route", "nearest_code"), ()),
        (("route", "nearest_code"), ("--configurations",)),
        pytest.param((*sorted(RACED - {"route", "nearest_code"}),), ("--configurations",), marks=pytest.mark.slow),
    ],
    ids=lambda given: " ".join(given) or "races",
)
def test_toys(tmp_path: Path, ops: tuple[str, ...], more: tuple[str, ...]) -> None:
    """In Triton's interpreter every gate is right, every race has figures of mmkit's kernel, and only those fail that must."""
    path = tmp_path / "found.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "kernels_gpu.py"), "--toy", "--rounds", "1", "--op", *ops, *more]
    done = subprocess.run([*command, "--json", str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(path.read_text())
    assert found["toy"] and all(check["right"] for check in found["gate"])
    assert {check["op"] for check in found["gate"]} == {race["op"] for race in found["races"]} == {*ops}
    for race in found["races"]:
        assert race["passes"]["forward"][0]["name"] == "triton"
        allowed = ABSENT | ({"flex"} if race["op"] == "attention" else set())
        assert race["failed"].keys() <= (allowed if not more else set()), race["failed"]
    assert bool(found["goals"]) == (not more)


def test_every_race_is_of_its_modules_op() -> None:
    import races

    from mmkit.registry import OPS

    assert RACED == races.ops("gpu_races").keys() <= {*OPS} and races.ops("cpu_races").keys() <= {*OPS}


UNHELD = {"grouped_linear"}
"""Ops with no goal of their own: its kernels are those of ``experts``, which has."""


def test_predictions_are_what_the_arithmetic_gives() -> None:
    """At full size: races are listed without a GPU. Every goal is held by a race at full size, too."""
    import predictions
    import races
    from scale import Scale

    assert json.loads(predictions.FILE.read_text()) == json.loads(json.dumps(predictions.everything()))
    assert predictions.of("NVIDIA H100 80GB HBM3") and not predictions.of("another")
    for name, module in races.ops("gpu_races").items():
        listed = [*module().races(Scale())]
        assert any(race.goals for race in listed) or name in UNHELD, name
        assert len({race.title for race in listed}) == len(listed), name
