"""One code book on several ranks. A file of its own, since each rank imports it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing

from mmkit.nn.codebook import Codebook


def make(revive_after: int) -> Codebook:
    torch.manual_seed(0)
    return Codebook(
        32, 6, normalize="none", update="ema", decay=0.9, commitment=0.25, estimator="straight_through",
        revive_after=revive_after,
    )  # fmt: skip


def batch(step: int) -> Tensor:
    return torch.randn(60, 6, generator=torch.Generator().manual_seed(step))


def train(rank: int, folder: str) -> None:
    """Two processes share each batch unevenly; the first has none of the last one."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for revive_after in (0, 1):
        book = make(revive_after)
        torch.manual_seed(rank)
        for step, mine in enumerate((17, 30, 59, 0)):
            book(batch(step)[:mine] if rank == 0 else batch(step)[mine:])
        torch.save(book.state_dict(), f"{folder}/{rank}-{revive_after}.pt")
    distributed.destroy_process_group()


def test_two_ranks_keep_one_book(tmp_path: Path) -> None:
    multiprocessing.spawn(train, (str(tmp_path),), nprocs=2)
    for revive_after in (0, 1):
        first, second = (torch.load(tmp_path / f"{rank}-{revive_after}.pt", weights_only=True) for rank in (0, 1))
        for name in first:
            assert torch.equal(first[name], second[name]), name
        if revive_after:
            assert (first["vectors"] != make(0).vectors).any(dim=1).all(), "every code was seeded or moved"
            continue
        alone = make(revive_after)
        for step in range(4):
            alone(batch(step))
        for name, value in alone.state_dict().items():
            # Sums of 60 vectors in another order.
            torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
