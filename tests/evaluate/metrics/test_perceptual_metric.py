"""The perceptual distance as a metric, and the frozen encoders that metrics look through."""

from __future__ import annotations

import pytest
import torch
from drawn import TEXTS_ONLY, images, record, records, subject
from safetensors.torch import save_file

from mmkit.compose import spec
from mmkit.errors import CheckpointError, ContractError

PATCHES = {"type": "patch", "patch": 8}
NETWORK = {"type": "timm", "name": "test_resnet"}


def metric(**features):
    return spec("metric", "perceptual", features=features or PATCHES).build()


def values(found, one):
    return [own["perceptual"] for own in one.each(found, subject())]


@pytest.fixture
def trained(tmp_path):
    """An encoder with weights to name."""
    torch.manual_seed(1)
    encoder = spec("encoder", "timm", name="test_resnet").build()
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    return {**NETWORK, "weights": str(tmp_path)}


def test_it_is_twice_the_cosine_distance_over_the_grid():
    target, image = images(1, 16, seed=0)[0], images(1, 16, seed=1)[0]
    wanted = []
    for row in (0, 8):
        for column in (0, 8):
            a, b = (2 * x[:, row : row + 8, column : column + 8].flatten() - 1 for x in (target, image))
            wanted.append(2 - 2 * float(torch.cosine_similarity(a, b, dim=0)))
    assert values([record(target, image)], metric())[0] == pytest.approx(sum(wanted) / 4, rel=1e-4)


def test_images_of_several_sizes_each_for_itself(trained):
    one = metric(**trained)
    targets, contents = [*images(3, 32), *images(2, 64)], [*images(3, 32, seed=5), *images(2, 64, seed=5)]
    found = records(targets, contents)
    mixed = [found[i] for i in (4, 0, 3, 1, 2)]
    together = values(mixed, one)
    assert together == pytest.approx([values([r], one)[0] for r in mixed], rel=1e-4)
    assert values(records(targets, targets), one) == [0.0] * 5 and min(together) > 0


def test_random_features_are_refused():
    with pytest.raises(
        ContractError, match=r"perceptual.features.weights: the encoder 'timm' has no weights named"
    ) as e:
        metric(**NETWORK).each([record(*images(2, 32))], subject())
    assert "name weights" in e.value.problem.remedy


def test_weights_of_another_encoder_are_refused(trained):
    with pytest.raises(CheckpointError):
        metric(**{**trained, "name": "test_vit"}).each([record(*images(2, 32))], subject())


def test_no_draw_is_seen_outside_and_nothing_is_trained(trained):
    one = metric(**trained)
    before = torch.random.get_rng_state()
    one.each([record(*images(2, 32))], subject())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not one.features.encoder.training and not any(p.requires_grad for p in one.features.encoder.parameters())


def test_where_it_does_not_apply():
    assert metric().why_not([TEXTS_ONLY]) == "no images among the targets"
