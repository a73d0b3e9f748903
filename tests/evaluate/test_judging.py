"""Tasks are run, metrics read their records, and what does not apply is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
from click.testing import CliRunner

from mmkit.cli.eval import command
from mmkit.compose.recipe import Judged
from mmkit.contracts.evaluation import Curve, Figure, Metric, Outcome, Record, Subject, Task
from mmkit.contracts.options import Spec
from mmkit.contracts.segment import Sample
from mmkit.errors import CheckpointError, ContractError, RecipeError
from mmkit.evaluate.judging import evaluate, subject_of, tasks_of
from mmkit.evaluate.rate import Rate
from mmkit.train import train

NOBODY = Subject(None, {}, None, None, tuple(Sample(f"s{i}", (), "guess") for i in range(4)))


class Guess(Task):
    """Gives each sample its number, all under one group."""

    def __init__(self, config):
        pass

    runs = 0

    def run(self, subject, tick):
        type(self).runs += 1
        tick(4, 4)
        records = tuple(Record("guess", s, (i,), {"number": float(i)}) for i, s in enumerate(subject.samples))
        return Outcome(records, {"speed": {"runs": Figure(7.0, 1)}}, (Curve("c", "x", "y", ((0.0, 1.0), (1.0, 2.0))),))


class Timed(Guess):
    """Knows the unit of what its records say."""

    def run(self, subject, tick):
        outcome = super().run(subject, tick)
        return replace(outcome, figures={"guess": {"number": Figure(1.5, 4, 0.0, 3.0, "s", "less")}})


class Idle(Guess):
    def why_not(self, subject):
        return "there is nothing to guess"


class Even(Metric):
    unit, better = "m", "less"

    def __init__(self, config):
        pass

    def each(self, records, subject):
        return [
            {"even": r.contents[0] % 2 == 0, "right": r.contents[0] < 3, "half": r.contents[0] / 2} for r in records
        ]

    def whole(self, records, subject):
        return {"sum": Figure(float(sum(r.contents[0] for r in records)), len(records))}


class Never(Even):
    def why_not(self, records):
        return "no pictures"


def named(kind: str, cls: type, name: str = "") -> Spec:
    return Spec(SimpleNamespace(kind=kind, name=name or cls.__name__.lower(), load=lambda: cls), None)


def judged(task: type, *metrics: type, name: str = "") -> Judged:
    return Judged(task=named("task", task), metrics=tuple(named("metric", m) for m in metrics), name=name)


def test_truth_values_are_shares_numbers_are_means_and_the_whole_comes_first():
    ticks: list[tuple[str, int, int]] = []
    found = evaluate(NOBODY, [judged(Guess, Even)], tick=lambda *told: ticks.append(told))
    assert list(found.figures["guess"]) == ["right", "number", "even", "half", "sum"]
    assert found.figures["guess"]["right"] == Rate(3, 4).figure and found.figures["guess"]["sum"] == Figure(6.0, 4)
    half = found.figures["guess"]["half"]
    # Student's interval of 0, 0.5, 1, 1.5: the standard error is 0.3227, and t(0.975, 3) is 3.1824.
    assert (half.value, half.unit, half.better, half.n) == (0.75, "m", "less", 4)
    assert half.low == pytest.approx(0.75 - 3.182446 * 0.322749, abs=1e-5)
    assert found.figures["speed"]["runs"].value == 7.0 and [c.title for c in found.curves] == ["c"]
    assert [r.values["even"] for r in found.of("guess")] == [True, False, True, False]
    assert ticks == [("guess", 4, 4)] and found.notes == ()


class Lost(Even):
    def load(self):
        raise CheckpointError("lost", "is nowhere", "look again")


def test_what_a_metric_cannot_load_is_told_before_anything_is_run(counted):
    with pytest.raises(CheckpointError, match="is nowhere"):
        evaluate(NOBODY, [judged(Guess), judged(Timed, Lost)])
    assert Guess.runs == 0


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(Guess, "runs", 0)


def test_what_does_not_apply_is_noted_and_stops_nothing():
    found = evaluate(NOBODY, [judged(Idle, Even), judged(Guess, Never)])
    assert found.notes == ("idle: there is nothing to guess", "guess: never does not apply: no pictures")
    assert list(found.figures["guess"]) == ["number"]


def test_two_tasks_that_report_under_one_name_need_names(counted):
    with pytest.raises(ContractError, match=r"evaluate\.1.*guess reports 'guess'.*`name:`"):
        evaluate(NOBODY, [judged(Guess), judged(Guess)])
    assert Guess.runs == 0, "told before anything is run"
    with pytest.raises(ContractError, match=r"evaluate\.1.*timed reports 'guess'"):
        evaluate(NOBODY, [judged(Guess), judged(Timed)])
    found = evaluate(NOBODY, [judged(Guess), judged(Guess, name="again")])
    assert list(found.figures) == ["guess", "speed", "again/guess", "again/speed"]
    assert len(found.of("again/guess")) == 4 and [c.title for c in found.curves] == ["c", "again: c"]


def test_two_metrics_with_a_figure_of_one_name_are_refused():
    for second in ("a", "b"):
        twice = Judged(task=named("task", Guess), metrics=(named("metric", Even, "a"), named("metric", Even, second)))
        with pytest.raises(ContractError, match=f"metric {second}: its figure 'even' is one of another metric, too"):
            evaluate(NOBODY, [twice])


def test_a_task_knows_its_own_figures_best():
    found = evaluate(NOBODY, [judged(Timed, Even)])
    assert found.figures["guess"]["number"] == Figure(1.5, 4, 0.0, 3.0, "s", "less")
    assert next(iter(found.figures["guess"])) == "right"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    train(tiny.recipe("transfusion", "train.steps=2"), folder, quiet=True)
    return folder


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr("mmkit.generate.program.MAX_TOKENS", 6)


def said(run, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, [str(run), "--per-task", "2", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_says_every_figure(run):
    code, text = said(run, "evaluate=[{type: held_out, name: calm}]")
    assert code == 0 and "calm/generate  right" in text and "(n = 2, 95 % between" in text
    assert (run / "report.html").is_file() and "calm/generate" in (run / "report.html").read_text()


def test_the_command_changes_nothing_but_how_a_run_is_judged(run):
    code, text = said(run, "train.lr=1")
    assert code == 2 and "would change more than how" in text
    with pytest.raises(RecipeError, match="did you mean 'held_out'"):
        said(run, "evaluate=[held_oud]")
    with pytest.raises(CheckpointError):
        said(run.parent / "nowhere")


def test_how_a_run_is_judged_is_no_part_of_what_it_is(run):
    """The recipe may say later that it is judged otherwise, and the run is still its own."""
    before = (run / "checkpoints").stat().st_mtime_ns
    train(tiny.recipe("transfusion", "train.steps=2", "evaluate=[held_out]"), run, quiet=True)
    assert (run / "checkpoints").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="another recipe"):
        train(tiny.recipe("transfusion", "train.steps=3"), run, quiet=True)


def test_as_many_samples_of_each_task_are_judged(run):
    subject = subject_of(run, 3)
    tasks: Sequence[str] = [sample.task for sample in subject.samples]
    assert {task: tasks.count(task) for task in tasks} == {"caption": 3, "generate": 3, "answer": 3}
    assert subject.step == 2 and not subject.model.training
    assert tasks_of(subject.recipe)[0].task.name == "held_out"
