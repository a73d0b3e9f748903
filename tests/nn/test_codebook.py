"""The code book: lookup, losses, updates, revival."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.vq_model import VectorQuantizer
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from mmkit.nn.codebook import Codebook, pass_rotated, pass_straight, usage


def make(size: int = 32, dim: int = 6, **options: object) -> Codebook:
    options = {
        "normalize": "none", "update": "ema", "decay": 0.9, "commitment": 0.25, "estimator": "straight_through",
        "revive_after": 0,
    } | options  # fmt: skip
    return Codebook(size, dim, **options)


def outside(ours: Codebook, **options: object) -> VectorQuantize:
    """vector-quantize-pytorch with the same book and averages."""
    size, dim = ours.vectors.shape
    theirs = VectorQuantize(
        dim, size, decay=ours.decay, commitment_weight=ours.commitment, threshold_ema_dead_code=0,
        use_cosine_sim=ours.normalize == "l2", **options,
    )  # fmt: skip
    with torch.no_grad():
        theirs._codebook.embed.copy_(ours.vectors[None])
        theirs._codebook.embed_avg.copy_(ours.total[None])
        theirs._codebook.cluster_size.copy_(ours.mass[None])
    return theirs


@pytest.mark.parametrize("normalize", ["none", "l2"])
@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_ema_book_is_that_of_vector_quantize_pytorch_for_five_updates(normalize: str, estimator: str) -> None:
    torch.manual_seed(0)
    ours = make(normalize=normalize, estimator=estimator)
    with torch.no_grad():
        ours.vectors.copy_(F.normalize(torch.randn(32, 6), dim=1))
        ours.total.copy_(ours.vectors)
    theirs = outside(ours, rotation_trick=estimator == "rotation")
    for _ in range(5):
        x = torch.randn(4, 50, 6)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        got = ours(mine.flatten(0, 1))
        want, codes, loss = theirs(other)
        assert torch.equal(got.codes_N, codes.flatten())
        # The same sums in another order, in float32.
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(got.vectors_NC, want.flatten(0, 1), **close)
        torch.testing.assert_close(sum(got.losses.values()), loss.squeeze(), **close)
        torch.testing.assert_close(ours.vectors, theirs.codebook, **close)
        torch.testing.assert_close(ours.mass, theirs._codebook.cluster_size[0], **close)
        torch.testing.assert_close(ours.total, theirs._codebook.embed_avg[0], **close)
        weight = torch.randn(200, 6)
        (got.vectors_NC * weight).sum().backward()
        (want.flatten(0, 1) * weight).sum().backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_gradient_book_is_that_of_diffusers() -> None:
    torch.manual_seed(0)
    ours, theirs = make(update="gradient"), VectorQuantizer(32, 6, beta=0.25, legacy=False)
    with torch.no_grad():
        ours.vectors.copy_(torch.randn(32, 6))
        theirs.embedding.weight.copy_(ours.vectors)
    x = torch.randn(2, 6, 5, 4)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = ours(mine.permute(0, 2, 3, 1).reshape(-1, 6))
    want, loss, (_, _, codes) = theirs(other)
    assert torch.equal(got.codes_N, codes)
    torch.testing.assert_close(sum(got.losses.values()), loss)
    torch.testing.assert_close(got.vectors_NC, want.permute(0, 2, 3, 1).reshape(-1, 6))
    (sum(got.losses.values()) + got.vectors_NC.square().sum()).backward()
    (loss + want.square().sum()).backward()
    torch.testing.assert_close(mine.grad, other.grad)
    torch.testing.assert_close(ours.vectors.grad, theirs.embedding.weight.grad)


def test_l2_gradient_book_follows_its_formula() -> None:
    torch.manual_seed(0)
    ours = make(update="gradient", normalize="l2").double()
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    got = ours(x)
    unit, table = F.normalize(x, dim=1), F.normalize(ours.vectors, dim=1)
    codes = (unit @ table.T).argmax(1)
    assert torch.equal(got.codes_N, codes)
    torch.testing.assert_close(got.losses["commitment"], 0.25 * F.mse_loss(unit, table[codes].detach()))
    torch.testing.assert_close(got.losses["codebook"], F.mse_loss(table[codes], unit.detach()))
    torch.testing.assert_close(got.vectors_NC.norm(dim=1), torch.ones(40, dtype=torch.float64))
    got.losses["codebook"].backward()
    used = torch.zeros(32, dtype=torch.bool).index_fill(0, codes, True)
    assert (ours.vectors.grad.norm(dim=1) > 0)[used].all() and not ours.vectors.grad[~used].any() and x.grad is None


def test_estimators_give_the_codes_own_bits() -> None:
    x, q = torch.randn(100, 7) * 30, torch.randn(100, 7)
    assert torch.equal(pass_straight(x, q), q) and torch.equal(pass_rotated(x, q), q)


def test_rotation_survives_a_code_opposite_its_vector() -> None:
    x = torch.randn(5, 4, requires_grad=True)
    pass_rotated(x, -2 * x.detach()).sum().backward()
    assert x.grad.isfinite().all()


def test_usage() -> None:
    assert usage(torch.tensor([5, 5, 0, 0])) == {"codebook_use": 0.5, "perplexity": pytest.approx(2.0)}
    assert usage(torch.zeros(4, dtype=torch.int64))["codebook_use"] == 0.0


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_revival_raises_use(update: str, normalize: str) -> None:
    """Vectors from 64 separate clusters, a book that starts far from them: without revival a few codes take them all."""
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(64, 6), dim=1) * 5
    used = {}
    for revive_after in (0, 3):
        torch.manual_seed(1)
        book = make(64, update=update, normalize=normalize, revive_after=revive_after)
        with torch.no_grad():
            book.vectors.copy_(10 * torch.ones(64, 6) + 0.01 * torch.randn(64, 6))
            book.idle.zero_()
            if update == "ema":
                book.total.copy_(book.vectors)
        parameters = list(book.parameters())
        optimizer = torch.optim.SGD(parameters, lr=1.0) if parameters else None
        for _ in range(12):
            got = book(centres[torch.randint(0, 64, (512,))] + 0.05 * torch.randn(512, 6))
            if optimizer:
                sum(got.losses.values()).backward()
                optimizer.step()
                optimizer.zero_grad()
        used[revive_after] = got.figures["codebook_use"]
    assert used[0] < 0.4 and used[3] > 0.6, used


def test_the_first_batch_seeds_the_book() -> None:
    book = make(16, revive_after=50)
    x = torch.randn(16, 6) + 100
    got = book(x)
    assert got.figures["codebook_use"] == 1.0 and got.losses["commitment"] < 1e-9
    before = book.vectors.clone()
    book.eval()(x + 5)
    assert torch.equal(book.vectors, before), "nothing moves in eval mode"


def test_a_small_batch_revives_only_as_many_codes_as_it_has_vectors() -> None:
    book = make(16, revive_after=50)
    book(torch.randn(5, 6))
    assert (book.idle >= 50).sum() == 11
    book(torch.randn(0, 6))
    assert (book.idle >= 50).sum() == 11


def test_revival_keeps_the_graph_of_the_step_whole() -> None:
    book = make(16, update="gradient", normalize="l2", revive_after=1)
    for _ in range(3):
        sum(book(torch.randn(8, 6, requires_grad=True)).losses.values()).backward()
    assert book.vectors.grad.isfinite().all()


def test_state_round_trip() -> None:
    book = make(revive_after=2)
    book(torch.randn(40, 6))
    other = make(revive_after=2)
    other.load_state_dict(book.state_dict())
    x = torch.randn(40, 6)
    torch.manual_seed(3)
    first = book(x)
    torch.manual_seed(3)
    second = other(x)
    assert torch.equal(first.vectors_NC, second.vectors_NC) and torch.equal(book.vectors, other.vectors)
