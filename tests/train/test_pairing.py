"""What an ablation does not change stays bit-identical: initial weights of the other parts, and the order of the data."""

from __future__ import annotations

import pytest
import tiny
import torch

from mmkit.model import UnifiedModel
from mmkit.objectives import Joint
from mmkit.train import train

MOE = "model.backbone={type: moe, depth: 2, dim: 32, num_heads: 4, experts: 4}"
MOT = "model.backbone={type: mot, depth: 2, dim: 32, num_heads: 4, towers: {read: [text], draw: [image]}}"
SWAPS = {
    "flow head for masked head": (
        "transfusion",
        "show-o",
        (),
        ("heads.paint", "tokenizers.pixels", "connectors.pixels"),
    ),
    "dense for MoE": ("transfusion", "transfusion", (MOE,), ("backbone",)),
    "dense for mixture of transformers": ("transfusion", "transfusion", (MOT,), ("backbone",)),
    "options of one head": ("adaln", "adaln", ("model.heads.paint.steps=7",), ()),
    "loss weight": ("show-o", "show-o", ("train.loss_weights={paint: 3}",), ()),
}


def changed(one, other):
    """The names of tensors that one model lacks or that differ."""
    return {n for n in one.keys() | other.keys() if n not in one or n not in other or not torch.equal(one[n], other[n])}


@pytest.mark.parametrize("swap", SWAPS)
def test_unchanged_parts_start_bit_identical(swap):
    first, second, overrides, parts = SWAPS[swap]
    torch.manual_seed(1)
    one = UnifiedModel(tiny.recipe(first)).state_dict()
    torch.manual_seed(2)  # whatever was drawn before must not matter
    other = UnifiedModel(tiny.recipe(second, *overrides)).state_dict()
    differing = changed(one, other)
    assert all(name.startswith(tuple(f"{part}." for part in parts)) for name in differing), sorted(differing)[:5]
    assert bool(differing) == bool(parts)
    kept = [n for n in one.keys() - differing if one[n].is_floating_point() and one[n].numel() > 1]
    assert kept and any(one[n].std() > 0 for n in kept)


def test_another_seed_changes_every_part():
    one, other = (UnifiedModel(tiny.recipe("transfusion", f"train.seed={s}")).state_dict() for s in (0, 1))
    differing = changed(one, other)
    assert {".".join(name.split(".")[:2]) for name in differing} >= {"heads.say", "connectors.text", "marks.weight"}
    assert any(name.startswith("backbone.") for name in differing)


@pytest.fixture
def seen(monkeypatch):
    """The samples that each step of a training run is given."""
    found: list[tuple[str, ...]] = []
    original = Joint.prepare

    def watched(objective, samples, step):
        found.append(tuple(sample.id for sample in samples))
        return original(objective, samples, step)

    monkeypatch.setattr(Joint, "prepare", watched)
    return found


def test_the_order_of_data_does_not_depend_on_the_model(seen, tmp_path):
    quick = ("train.steps=3", "train.reconstruction.steps=1")
    orders = []
    for number, (kind, *overrides) in enumerate(
        [("transfusion",), ("show-o",), ("transfusion", MOE), ("janus",), ("transfusion", "train.batch_tokens=90")]
    ):
        train(tiny.recipe(kind, *quick, *overrides), tmp_path / str(number), quiet=True)
        orders.append(tuple(seen))
        seen.clear()
    assert len(orders[0]) == 3 and len(set(sum(orders[0], ()))) == 12
    assert all(order == orders[0] for order in orders)


def test_another_seed_gives_another_order(seen, tmp_path):
    for seed in (0, 1):
        train(tiny.recipe("transfusion", "train.steps=1", f"train.seed={seed}"), tmp_path / str(seed), quiet=True)
    assert set(seen[0]) != set(seen[1])
