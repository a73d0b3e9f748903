"""The programs that time kernels: they run through to a table, and time nothing that is not right. No figure is looked at."""

from __future__ import annotations

import json
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


def op(right: bool = True, ours: Any = torch.square) -> SimpleNamespace:
    """Squares of 8 numbers, with and without a backward pass."""
    from races import Check, Race

    def gate() -> Iterator[Check]:
        yield Check("square", "8 numbers", (1e-3, 1e-3), (1e-2, 1e-2 if right else 1e-4))

    def races() -> Iterator[Race]:
        for grad in (False, True):
            runs = {"triton": ours, "eager": lambda x: (x * x, x), "absent": fails}
            given = lambda grad=grad: [torch.randn(8, requires_grad=grad)]  # noqa: E731
            yield Race("square", f"8 numbers, {grad}", given, runs, "triton", grad, flops=8.0, bytes=64.0)

    return SimpleNamespace(gate=gate, races=races)


def gpu(tmp_path: Path, *more: str, **ops: Any) -> dict[str, Any]:
    import kernels_gpu

    path = tmp_path / "found.json"
    arguments = ["--device", "cpu", "--rounds", "4", "--json", str(path), *more]
    try:
        kernels_gpu.main(arguments, {name: lambda each=each: each for name, each in ops.items()})
    finally:
        found = json.loads(path.read_text())
    return found


def test_gate_then_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu(tmp_path, square=op())
    assert {"device", "driver", "torch", "triton", "ceilings"} <= found.keys() and found["gate"][0]["right"]
    assert [[*race["passes"]] for race in found["races"]] == [["forward"], ["forward", "backward"]]
    ours, peer = found["races"][1]["passes"]["backward"]
    assert (ours["name"], peer["name"], ours["ratio"]) == ("triton", "eager", [1.0, 1.0, 1.0])
    assert ours["flops"] == pytest.approx(16 / ours["seconds"][1]) and peer["bytes"] == pytest.approx(
        128 / peer["seconds"][1]
    )
    said = capsys.readouterr().out
    assert "right: square, 8 numbers" in said and "| 8 numbers, True | backward | eager |" in said
    assert "absent | failed: RuntimeError: no such library" in said


def breaks() -> Iterator[Any]:
    raise RuntimeError("illegal memory access")
    yield


@pytest.mark.parametrize("kind", ["wrong", "breaks", "none"])
def test_what_is_not_right_is_not_timed_and_hides_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    bad = {"wrong": op(right=False), "breaks": SimpleNamespace(gate=breaks), "none": SimpleNamespace(gate=lambda: ())}
    with pytest.raises(SystemExit, match="1 of 2 checks failed, so nothing was timed of bad"):
        gpu(tmp_path, bad=bad[kind], square=op())
    said = capsys.readouterr().out
    assert "WRONG: bad" in said and "## square" in said and "## bad" not in said


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
    assert not found["races"] and "no time was left for '8 numbers, False'" in found["notes"][0]


def test_the_cpu_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import kernels_cpu

    path = tmp_path / "found.json"
    kernels_cpu.main(["--rounds", "4", "--json", str(path), "--without", "absent"], {"square": op})
    said = capsys.readouterr().out
    assert "| square | 8 numbers, True | forward + backward | eager | triton |" in said and "failed" not in said
    assert len(json.loads(path.read_text())["races"]) == 2


def test_every_race_is_of_its_modules_op() -> None:
    import races

    from mmkit.registry import OPS

    assert races.ops("gpu_races").keys() <= {*OPS} and races.ops("cpu_races").keys() <= {*OPS}
