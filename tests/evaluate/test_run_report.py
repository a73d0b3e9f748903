"""What the report of a run says to machines."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from mmkit.contracts.evaluation import Record
from mmkit.contracts.segment import Sample, Segment
from mmkit.demo import report_on
from mmkit.evaluate import report as reports
from mmkit.evaluate.judging import Evaluation
from mmkit.train import train


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    train(tiny.recipe("transfusion", "train.steps=3", "train.log_every=1"), run, quiet=True)
    patch = pytest.MonkeyPatch()
    patch.setattr("mmkit.generate.program.MAX_TOKENS", 6)
    patch.setattr(reports, "KEPT", 2)
    report_on(run, 3, title="tiny", quiet=True)
    patch.undo()
    return json.loads((run / "report.json").read_text())


def test_it_says_what_the_run_cost(said):
    figures = said["figures"]
    assert set(figures) == {
        "parameters", "trained", "steps", "tokens", "flops", "tokens_per_second", "seconds", "peak_memory",
    }  # fmt: skip
    assert figures["steps"] == 3 and figures["tokens"] == sum(row["tokens"] for row in said["log"])
    assert figures["seconds"] == said["log"][-1]["elapsed"] > 0
    # Every parameter of the backbone is multiplied once per token: 2 FLOPs forward, 4 backward.
    assert 0.5 < figures["flops"] / (6 * figures["tokens"] * figures["parameters"]) < 3


def test_each_record_has_its_verdict_and_the_first_ones_are_shown(said):
    assert said["format"] == reports.FORMAT
    for task in ("caption", "generate", "answer"):
        records = [r for r in said["records"] if r["task"] == task]
        assert [("view" in r) for r in records] == [True, True, False]
        assert all(r["id"] and "right" in r["values"] for r in records)
        whole = said["tasks"][task]["right"]
        assert sum(r["values"]["right"] for r in records) / len(records) == whole["value"] and whole["n"] == len(
            records
        )
        assert whole["unit"] == "share" and whole["low"] <= whole["value"] <= whole["high"]
    # Losses have no contents to show.
    assert [r for r in said["records"] if r["task"] == "likelihood"] and not any(
        "view" in r for r in said["records"] if r["task"] == "likelihood"
    )
    drawn = next(r["view"] for r in said["records"] if r["task"] == "generate")
    assert drawn["generated"][0]["picture"].startswith("data:image/png;base64,")


def test_a_content_is_shown_as_the_file_that_its_modality_saves():
    clip = torch.rand(3, 3, 8, 8)
    sample = Sample(
        "s", (Segment("text", "a clip"), Segment("video", clip, "target"), Segment("text", "b", "target")), "t"
    )
    said = reports.Report("r", "", Evaluation((Record("t", sample, (clip, "c")),), {"t": {}}), ())
    (view,) = (record["view"] for record in said.as_json()["records"])
    assert [item["text"] for item in view["inputs"]] == ["a clip"] and [item["text"] for item in view["wanted"]] == [
        "b"
    ]
    assert view["generated"][0]["picture"].startswith("data:image/gif;base64,") and view["generated"][1]["text"] == "c"
    assert view["generated"][0]["picture"] in said.as_html()
