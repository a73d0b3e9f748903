"""How long a grid takes: what is timed, what is not and why, and how runs add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from grids import BASE

from mmkit.ablate import timing
from mmkit.ablate.timing import Estimate, estimate, own_seconds, together
from mmkit.compose import loads
from mmkit.train.memory import free_memory
from mmkit.train.rehearsal import Stage


@pytest.mark.parametrize(
    ("seconds", "slots", "total"),
    [([3, 1, 2], 1, 6), ([3, 1, 2], 2, 3), ([1, 1, 4], 2, 5), ([5], 4, 5), ([2, 2, 2, 2], 3, 4)],
)
def test_runs_start_in_their_order_as_soon_as_there_is_room(seconds, slots, total):
    assert together(seconds, slots) == total


def test_a_tokenizer_that_arms_have_in_common_is_trained_once():
    model, tokenizer, other = Stage("model", 10, 1.0), Stage("t", 5, 4.0, "a tokenizer"), Stage("t", 5, 6.0, "another")
    arms = [Estimate((each, replace(model, recipe=str(n)))) for n, each in enumerate((tokenizer, tokenizer, other))]
    assert own_seconds([arms[0], Estimate(why_none="too large"), arms[1], arms[2]]) == [30.0, 10.0, 40.0]


def test_an_arm_is_timed_with_the_threads_it_will_have(monkeypatch):
    asked = []

    def rehearse(recipe, device):
        asked.append((device, torch.get_num_threads()))
        return [Stage("tokenizers.pixels", 10, 2.0), Stage("model", 4, 0.5)]

    monkeypatch.setattr(timing, "rehearse", rehearse)
    before = torch.get_num_threads()
    found = estimate(loads(BASE), "cpu", before + 1)
    assert (found.seconds, found.why_none, asked) == (22.0, "", [("cpu", before + 1)])
    assert torch.get_num_threads() == before
    estimate(loads(BASE), "cpu", None)
    assert asked[-1] == ("cpu", before)


def test_an_arm_too_large_for_this_machine_is_not_built(monkeypatch):
    monkeypatch.setattr(timing, "rehearse", lambda recipe, device: pytest.fail("it was"))
    sizes = ["model.backbone.dim=8192", "model.backbone.depth=64", "model.backbone.hidden_dim=30000"]
    found = estimate(loads(BASE, sizes), "cpu")
    assert found.seconds is None and found.why_none.startswith("needs about 1") and "GB are free" in found.why_none


def test_where_memory_is_not_known_nothing_is_too_large(monkeypatch):
    monkeypatch.setattr(timing, "free_memory", lambda device: None)
    monkeypatch.setattr(timing, "rehearse", lambda recipe, device: [])
    assert estimate(loads(BASE), "cpu") == Estimate()


def test_an_arm_that_cannot_begin_says_why():
    found = estimate(loads(BASE, ["data=[{type: text, file: nowhere.txt}]"]), "cpu")
    assert found.seconds is None and "nowhere.txt" in found.why_none


def test_running_out_of_memory_is_told(monkeypatch):
    def rehearse(recipe, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(timing, "rehearse", rehearse)
    assert estimate(loads(BASE), "cpu").why_none == "out of memory"


def test_free_memory_is_some_of_what_there_is():
    free = free_memory(torch.device("cpu"))
    assert free is None or 1 << 20 < free < 1 << 50
