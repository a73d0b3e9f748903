"""LPIPS, against the implementation of its authors, both looking through one random network."""

from __future__ import annotations

import re

import pytest
import torch
from drawn import TEXTS_ONLY, images, record, records, subject
from safetensors.torch import save_file

from mmkit.compose import spec
from mmkit.errors import CheckpointError

lpips = pytest.importorskip("lpips", reason="the authors' package is not installed")
NETS = ("vgg", "alex")


def classifier(net):
    """A torchvision classifier with random weights, small enough to be quick where a size is free."""
    from torchvision import models

    torch.manual_seed(1)
    return {"vgg": models.vgg16, "alex": models.alexnet}[net](weights=None)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """For each network: its features, and a file of its weights, the classifier's first layer among them."""
    folder, found = tmp_path_factory.mktemp("lpips"), {}
    for net in NETS:
        features = classifier(net).features
        tensors = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
        save_file({**tensors, "classifier.0.weight": torch.zeros(2, 2)}, folder / f"{net}.safetensors")
        found[net] = features, str(folder / f"{net}.safetensors")
    return found


def metric(stored, net="vgg", **options):
    return spec("metric", "lpips", weights=stored[net][1], net=net, **options).build()


def values(found, one):
    return [own.get("lpips") for own in one.each(found, subject())]


def authors(stored, net):
    """Their distance with our weights in their network, by the number of a layer, which they keep."""
    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    theirs = {name.partition(".")[2]: parameter for name, parameter in model.net.named_parameters()}
    with torch.no_grad():
        for name, parameter in stored[net][0].named_parameters():
            if name in theirs:
                theirs[name].copy_(parameter)
    return model.eval()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("size", [32, 48])
def test_it_is_what_its_authors_compute(stored, net, size):
    targets = images(4, size, seed=0)
    contents = [0.6 * a + 0.4 * b for a, b in zip(targets, images(4, size, seed=1), strict=True)]
    with torch.no_grad():
        wanted = authors(stored, net)(torch.stack(targets), torch.stack(contents), normalize=True).flatten().tolist()
    found = values(records(targets, contents), metric(stored, net))
    assert found == pytest.approx(wanted, rel=1e-4)
    assert min(found) > 0


def test_a_copy_is_0_and_images_go_in_by_their_sizes(stored):
    one = metric(stored, "alex", batch=2)
    targets, contents = [*images(3, 32), *images(2, 40)], [*images(3, 32, seed=5), *images(2, 40, seed=5)]
    together = values([records(targets, contents)[i] for i in (4, 0, 3, 1, 2)], one)
    alone = [values([records(targets, contents)[i]], one)[0] for i in (4, 0, 3, 1, 2)]
    assert together == pytest.approx(alone, rel=1e-4)
    assert values(records(targets, targets), one) == [0.0] * 5


@pytest.mark.parametrize(("net", "least"), [("vgg", 16), ("alex", 31)])
def test_what_a_network_cannot_look_at_has_no_figure(stored, net, least):
    one = metric(stored, net)
    small, seen = (images(2, size) for size in (least - 1, least))
    assert values([record(*small), record(*seen)], one)[0] is None
    assert values([record(*seen)], one)[0] > 0
    assert one.why_not([record(*small)]).startswith(f"images smaller than {least} pixels")
    assert one.why_not([record(*seen)]) == "" and one.why_not([TEXTS_ONLY]) == "no images among the targets"
    with pytest.raises(RuntimeError):  # the bound is the network's own
        one._network(*(torch.rand(1, 3, least - 1, least - 1) for _ in range(2)))


def test_weights_of_another_network_are_refused_by_name(stored, tmp_path):
    with pytest.raises(CheckpointError, match=r"not the weights of vgg: features.\d+\.\w+ is .* more differ") as error:
        spec("metric", "lpips", weights=stored["alex"][1]).build().load()
    assert "hf://timm/vgg16.tv_in1k" in error.value.problem.remedy
    tensors = {f"features.{name}": t for name, t in stored["alex"][0].state_dict().items()}
    for changed, fact in (
        ({**tensors, "features.20.weight": torch.zeros(3)}, "features.20.weight is [3] there and missing"),
        ({k: t for k, t in tensors.items() if k != "features.0.bias"}, "features.0.bias is missing there and [64]"),
    ):
        save_file(changed, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match=re.escape(fact)):
            spec("metric", "lpips", weights=str(tmp_path), net="alex").build().load()


def test_no_draw_is_seen_outside_and_nothing_is_trained(stored):
    before = torch.random.get_rng_state()
    one = metric(stored, "alex")
    one.load()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not one._network.training and not any(p.requires_grad for p in one._network.parameters())
