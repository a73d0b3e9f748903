"""Residual codebooks against ResidualVQ of vector-quantize-pytorch."""

import pytest
import torch
from mmkit_audio.residual import ResidualCodebooks
from vector_quantize_pytorch import ResidualVQ

BOOKS, SIZE, DIM = 3, 16, 8


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def both():
    """The two, with the same codes, which get finer from book to book."""
    own = ResidualCodebooks(BOOKS, SIZE, DIM, decay=0.9, commitment=0.75, revive_after=0)
    other = ResidualVQ(
        dim=DIM, num_quantizers=BOOKS, codebook_size=SIZE, decay=0.9, commitment_weight=0.75, kmeans_init=False,
        threshold_ema_dead_code=0, rotation_trick=False,
    )  # fmt: skip
    for number, (book, layer) in enumerate(zip(own.books, other.layers, strict=True)):
        vectors = draw(SIZE, DIM, seed=number) * 0.5**number
        for tensor in (book.vectors, book.total):
            tensor.copy_(vectors)
        for tensor in (layer._codebook.embed, layer._codebook.embed_avg):
            tensor.data.copy_(vectors[None])
        layer._codebook.cluster_size.data.fill_(1.0)
        layer._codebook.initted.fill_(True)
    return own, other


def test_codes_and_vectors_are_the_same(both):
    own, other = (part.eval() for part in both)
    x = draw(50, DIM, seed=9)
    found, (vectors, indices, _) = own(x), other(x[None])
    assert torch.equal(own.lookup(x) % SIZE, indices[0])
    assert torch.equal(own.lookup(x) // SIZE, torch.arange(BOOKS).expand(50, -1))
    assert torch.equal(found.codes_N, own.lookup(x))
    # A sum of three float32 vectors in either order.
    assert torch.allclose(found.vectors_NC, vectors[0], atol=1e-6)
    assert torch.allclose(own.embed(own.lookup(x)).sum(1), vectors[0], atol=1e-6)


def test_one_training_step_moves_the_books_alike(both):
    own, other = (part.train() for part in both)
    x = draw(50, DIM, seed=9)
    found, (_, _, commitments) = own(x), other(x[None])
    assert found.losses["commitment"].item() == pytest.approx(commitments.mean().item(), rel=1e-5)
    for book, layer in zip(own.books, other.layers, strict=True):
        assert torch.allclose(book.vectors, layer._codebook.embed[0], atol=1e-5)


def test_the_gradient_passes_once():
    own = ResidualCodebooks(BOOKS, SIZE, DIM, decay=0.9, commitment=0.25, revive_after=0).eval()
    x = draw(20, DIM).requires_grad_()
    weight = draw(20, DIM, seed=1)
    (own(x).vectors_NC * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_more_books_come_nearer():
    x = draw(2000, DIM)
    errors = []
    for books in (1, 2, 4):
        torch.manual_seed(0)
        own = ResidualCodebooks(books, SIZE, DIM, decay=0.8, commitment=0.25, revive_after=20).train()
        for _ in range(40):
            found = own(x)
        errors.append(float((found.vectors_NC - x).square().mean()))
    assert errors[0] > 1.2 * errors[1] > 1.2 * 1.2 * errors[2]


def test_codes_of_any_book_have_their_own_vector():
    own = ResidualCodebooks(BOOKS, SIZE, DIM, decay=0.9, commitment=0.25, revive_after=0)
    codes = torch.tensor([[0, SIZE], [2 * SIZE + 3, SIZE - 1]])
    wanted = [[own.books[0].vectors[0], own.books[1].vectors[0]], [own.books[2].vectors[3], own.books[0].vectors[15]]]
    assert torch.equal(own.embed(codes), torch.stack([torch.stack(row) for row in wanted]))
