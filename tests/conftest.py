"""What all tests share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# Tiny tensors: a second thread costs far more than it gives, above all on a busy machine, in this process and in those that
# tests start. Read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# To search all that is imported for garbage again and again takes a tenth of the time.
gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-golden`` writes the files of tests/golden anew instead of comparing with them; the others are the matrix's."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.json anew")
    parser.addoption("--full", action="store_true", help="try all combinations of parts, not a sample of them")
    parser.addoption("--matrix-seed", type=int, default=0, help="which sample of the combinations is tried")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is slow begins first: a long test at the end would have one core wait for the other."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays, and is no garbage."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Also where this process had read another number of threads before."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and images that lies beside a checkout; not part of the repository."""
    folder = Path(os.environ.get("MMKIT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MMKIT_SHARED_DATA to the folder that holds it")
    return folder
