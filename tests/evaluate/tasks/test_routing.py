"""Router load: against counts from hooks on the routers, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmkit.contracts.evaluation import Subject
from mmkit.evaluate.tasks.routing import Routing

SPARSE = "model.backbone={type: moe, depth: 3, dim: 32, num_heads: 4, experts: 4, first_dense: 1}"


def task():
    return Routing(Routing.Config())


def counts_of(subject):
    """By layer, assignments ``[streams, experts]``, each sample on its own."""
    found = {}
    handles = []
    for layer, block in enumerate(subject.model.backbone.blocks):
        for experts in getattr(getattr(block, "mlp", None), "pools", {}).values():
            heard = found.setdefault(layer, [])
            handles.append(experts.router.register_forward_hook(lambda m, given, out, to=heard: to.append(out)))
    streams = []
    for sample in subject.samples:
        (batch,) = subject.model.batches([sample], step=0, seed=0, budget=4096, drop=False)
        streams.append(batch.layout.tokens.stream)
        with torch.no_grad():
            subject.model(batch)
    for handle in handles:
        handle.remove()
    tables = {}
    for layer, choices in found.items():
        table = np.zeros((2, 4))
        for stream_T, choice in zip(streams, choices, strict=True):
            for token, expert in zip(choice.token_A.tolist(), choice.expert_A.tolist(), strict=True):
                table[stream_T[token], expert] += 1
        tables[layer] = table / table.sum(1, keepdims=True)
    return tables


def test_loads_are_those_of_the_routers(subject_of, run_twice):
    subject = subject_of("moe", SPARSE, "train.batch_tokens=110", count=6)
    outcome, tables = run_twice(task(), subject), counts_of(subject)
    assert sorted(tables) == [1, 2]
    figures = outcome.figures["routing"]
    assert list(figures) == [
        "text load entropy", "image load entropy", "text largest load", "image largest load", "text/image overlap",
    ]  # fmt: skip
    curves = {curve.title: dict(curve.points) for curve in outcome.curves}
    overlaps = {layer: np.minimum(table[0], table[1]).sum() for layer, table in tables.items()}
    assert curves["text/image overlap by layer"] == pytest.approx(overlaps, abs=0.02)
    assert figures["text/image overlap"].value == pytest.approx(np.mean(list(overlaps.values())), abs=0.02)
    for row, name in enumerate(("text", "image")):
        largest = {layer: table[row].max() for layer, table in tables.items()}
        assert curves[f"{name} largest load by layer"] == pytest.approx(largest, abs=0.02)
        entropy = {layer: -sum(p * np.log(p) for p in table[row] if p) / np.log(4) for layer, table in tables.items()}
        assert curves[f"{name} load entropy by layer"] == pytest.approx(entropy, abs=0.02)
    # One mark of either stands in every sample; all of them have text marks.
    assert figures["image largest load"].n == 6 and figures["image largest load"].unit == "share"


def test_a_router_that_does_not_look_treats_all_alike(subject_of):
    subject = subject_of("moe", count=3)
    with torch.no_grad():
        for mixture in subject.model.backbone.mixtures():
            mixture.pools["all"].gate.weight.zero_()
    figures = task().run(subject, lambda done, total: None).figures["routing"]
    assert figures["text/image overlap"].value == 1
    # Equal scores go to the lowest indices: two experts of four, half of the load each.
    assert figures["text largest load"].value == figures["image largest load"].value == 0.5
    assert figures["text load entropy"].value == pytest.approx(0.5)


def test_pools_of_their_own_never_meet(subject_of):
    pools = "model.backbone={type: moe, depth: 2, dim: 32, num_heads: 4, experts: {text: 3, image: 2}}"
    figures = task().run(subject_of("moe", pools, count=3), lambda done, total: None).figures["routing"]
    assert set(figures) == {f"{s} {what}" for s in ("text", "image") for what in ("load entropy", "largest load")}
    # Two choices of two experts: each has half.
    assert figures["image largest load"].value == 0.5 and figures["image load entropy"].value == pytest.approx(1)
    assert figures["text largest load"].value >= 1 / 3


def test_why_not(subject_of):
    assert task().why_not(Subject(None, {}, None, None, ())) == "tokenizers alone route nothing"
    assert task().why_not(subject_of("transfusion", count=1)) == "no backbone with a router"
