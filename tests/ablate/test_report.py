"""The page of a comparison and its JSON twin."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import tiny
from synthetic import run_folder

from mmkit.ablate.arms import Entry
from mmkit.ablate.report import SHOWN, write_comparison
from mmkit.compose import load
from mmkit.demo import report_on
from mmkit.errors import CheckpointError
from mmkit.train import train

LR = load("transfusion-tiny").train.lr


def said_of(page):
    return json.loads(page.with_name("report.json").read_text())


def metric(said, task, figure="right"):
    return next(m for m in said["metrics"] if (m["task"], m["figure"]) == (task, figure))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    arms = {"base": ((), 0.7), "<b>better</b> & 'so'": (("train.lr=1e-4",), 0.97), "same": (("train.lr=1e-2",), 0.7)}
    entries = [
        Entry(name, {s: run_folder(folder / f"{n}-{s}", *overrides, seed=s, share=share) for s in range(3)})
        for n, (name, (overrides, share)) in enumerate(arms.items())
    ]
    few = run_folder(folder / "few", "train.ema=0", tasks=("generate",))
    return write_comparison([*entries, Entry("few", {0: few})], "base", folder / "out", "A <script> & more")


def test_json_says_all_there_is(page):
    said = said_of(page)
    assert list(said) == ["format", "title", "base", "arms", "metrics", "notes", "curves"]
    assert [arm["name"] for arm in said["arms"]] == ["base", "<b>better</b> & 'so'", "same", "few"]
    assert list(said["arms"][0]["runs"]) == ["0", "1", "2"] and said["arms"][0]["changes"] == []
    assert said["arms"][1]["changes"] == [{"path": "train.lr", "base": LR, "arm": 0.0001}]
    assert said["arms"][0]["costs"]["seconds"] == 613.0 and said["arms"][0]["costs"]["parameters"] == 1_234_567
    assert set(said["curves"]) == {"say", "paint"} and set(said["curves"]["say"]) == {a["name"] for a in said["arms"]}
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_means_and_verdicts(page):
    said = said_of(page)
    found = metric(said, "answer")
    base = found["arms"]["base"]
    assert base["low"] < base["mean"] < base["high"] and list(base["seeds"]) == ["0", "1", "2"]
    assert base["mean"] == pytest.approx(sum(r["value"] for r in base["seeds"].values()) / 3)
    better, same = found["differences"]["<b>better</b> & 'so'"], found["differences"]["same"]
    assert better["verdict"] == "better" and better["low"] > 0 and (better["seeds"], better["samples"]) == (3, 40)
    assert same["verdict"] == "not distinguishable" and same["low"] < 0 < same["high"]


def test_what_does_not_apply_says_so(page):
    found = metric(said_of(page), "caption")
    assert found["arms"]["few"] is None and found["differences"]["few"] == {"why_none": "does not apply"}
    assert "does not apply" in page.read_text()
    assert any("does not apply" in note for note in said_of(page)["notes"])


class Seen(HTMLParser):
    """All tags, and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data")]


def test_the_page_is_self_contained_and_runs_nothing(page):
    text, seen = page.read_text(), Seen()
    seen.feed(text)
    assert "script" not in seen.tags and "link" not in seen.tags and "iframe" not in seen.tags
    assert seen.sources and all(source.startswith("data:image/png;base64,") for source in seen.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_names_that_people_give_are_escaped(page):
    text = page.read_text()
    assert "<script" not in text and "<b>better" not in text
    assert "A &lt;script&gt; &amp; more" in text and "&lt;b&gt;better&lt;/b&gt;" in text.replace("<wbr>", "")


def test_the_same_samples_stand_side_by_side(page):
    text = page.read_text()
    rows = text.split("The same samples: generate")[1].split("</table>")[0].split("<tr>")[2:]
    assert len(rows) == SHOWN
    assert all(row.count("<td>") == 4 and row.count("<img") == 4 for row in rows)
    caption = text.split("The same samples: caption")[1].split("</table>")[0]
    assert caption.count("not judged") == SHOWN


def test_one_seed_has_notes_and_wilsons_interval(tmp_path):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "train.lr=1e-4", seed=1)
    said = said_of(write_comparison([Entry("a", {0: a}), Entry("b", {1: b})], "a", tmp_path / "out", "two"))
    share = metric(said, "caption")["arms"]["a"]
    assert (share["low"], share["high"]) == (share["seeds"]["0"]["low"], share["seeds"]["0"]["high"])
    assert metric(said, "caption")["differences"]["b"] == {"why_none": "no seed in common"}
    assert any("one seed" in note for note in said["notes"])
    assert any("same seeds" in note for note in said["notes"])


def test_a_run_keeps_its_own_report(tmp_path):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "train.lr=1e-4")
    before = (a / "report.json").read_bytes()
    with pytest.raises(CheckpointError, match="a: is a run folder, whose own report would be lost"):
        write_comparison([Entry("a", {0: a}), Entry("b", {0: b})], "a", a, "t")
    assert (a / "report.json").read_bytes() == before


def relabelled(run, name):
    """As if a run had been judged on other samples, which another source gave the same ids."""
    report = json.loads((run / "report.json").read_text())
    for record in report["records"]:
        record["segments"] = [name, *record["segments"]]
    (run / "report.json").write_text(json.dumps(report))
    return run


def test_other_samples_are_paired_by_seed_alone(tmp_path):
    base = {seed: run_folder(tmp_path / f"a{seed}", seed=seed) for seed in (0, 1)}
    arm = {seed: relabelled(run_folder(tmp_path / f"b{seed}", "train.lr=1e-4", seed=seed), "x") for seed in (0, 1)}
    both = [Entry("a", base), Entry("b", arm)]
    found = metric(said_of(write_comparison(both, "a", tmp_path / "out", "t")), "caption")["differences"]["b"]
    assert (found["seeds"], found["samples"]) == (2, 0) and found["low"] <= found["value"] <= found["high"]
    one = [Entry("a", {0: base[0]}), Entry("b", {0: arm[0]})]
    found = metric(said_of(write_comparison(one, "a", tmp_path / "one", "t")), "caption")["differences"]["b"]
    assert found == {"why_none": "no sample in common"}


def test_a_log_that_ends_early_or_was_never_written(tmp_path):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", "train.lr=1e-4")
    (b / "log.jsonl").unlink()
    said = said_of(write_comparison([Entry("a", {0: a}), Entry("b", {0: b})], "a", tmp_path / "out", "t"))
    assert any(note.startswith(f"{b}: has no log.jsonl") for note in said["notes"])
    assert said["curves"]["say"]["b"] == [] and len(said["curves"]["say"]["a"]) == 20


def test_two_real_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("mmkit.generate.program.MAX_TOKENS", 6)
    for name, lr in (("slow", "1e-5"), ("fast", "1e-2")):
        recipe = tiny.recipe("transfusion", "train.steps=3", "train.log_every=1", f"train.lr={lr}")
        train(recipe, tmp_path / name, quiet=True)
        report_on(tmp_path / name, 2, title=name, quiet=True)
    entries = [Entry("slow", {0: tmp_path / "slow"}), Entry("fast", {0: tmp_path / "fast"})]
    page = write_comparison(entries, "slow", tmp_path / "out", "slow or fast")
    said = said_of(page)
    assert {m["task"] for m in said["metrics"]} == {"caption", "generate", "answer", "likelihood"}
    # What is said of all samples together cannot be paired by them.
    unpaired = [m["figure"] for m in said["metrics"] if "why_none" in m["differences"]["fast"]]
    assert unpaired == ["text perplexity"]
    assert all(m["differences"]["fast"]["samples"] > 0 for m in said["metrics"] if m["figure"] not in unpaired)
    assert {m["better"] for m in said["metrics"] if m["task"] == "likelihood"} == {"less"}
    assert [c["path"] for c in said["arms"][1]["changes"]] == ["train.lr"]
    assert None not in said["arms"][0]["costs"].values()
    slow, fast = said["curves"]["say"]["slow"], said["curves"]["say"]["fast"]
    # The first step's loss comes before any learning: the arms start from the same weights and samples.
    assert slow[0] == fast[0] and slow[-1] != fast[-1]
    assert page.read_text().count("data:image/png;base64,") >= 8


def test_seeds_that_agree_to_the_last_sample_are_drawn(tmp_path):
    """No spread between the seeds: an interval of no width, and nothing to scale by."""
    base = {seed: run_folder(tmp_path / f"a{seed}", seed=seed, share=1.0) for seed in (0, 1)}
    arm = {
        seed: relabelled(run_folder(tmp_path / f"b{seed}", "train.lr=1e-4", seed=seed, share=1.0), "x")
        for seed in (0, 1)
    }
    page = write_comparison([Entry("a", base), Entry("b", arm)], "a", tmp_path / "out", "t")
    found = metric(said_of(page), "caption")["differences"]["b"]
    assert (found["low"], found["high"], found["verdict"]) == (0, 0, "not distinguishable")
