"""How long the runs of a grid will take on this machine: a few steps of every arm are timed, and nothing of them is kept."""

from __future__ import annotations

import gc
import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mmkit.ablate.matching import meta_model
from mmkit.compose.recipe import Recipe
from mmkit.errors import MmkitError, RecipeError
from mmkit.explain.example import example_of
from mmkit.explain.facts import training_memory
from mmkit.train.memory import free_memory
from mmkit.train.rehearsal import Stage, rehearse
from mmkit.train.start import device_of


@dataclass(frozen=True)
class Estimate:
    """The trainings of one run, timed; or why they could not be."""

    stages: tuple[Stage, ...] = ()
    why_none: str = ""

    @property
    def seconds(self) -> float | None:
        """Of all its steps; None where they could not be timed."""
        return None if self.why_none else sum(stage.seconds for stage in self.stages)


def estimate(recipe: Recipe, device: str = "auto", threads: int | None = None) -> Estimate:
    """Times a run as a launcher would start it: on a device, with so many threads (None: as many as torch takes).

    A run that needs more memory than is free, or that cannot begin (its data or weights are not here), is not timed.
    """
    why_none = _too_large(recipe, device_of(device))
    if why_none:
        return Estimate(why_none=why_none)
    try:
        with _threads(threads):
            return Estimate(tuple(rehearse(recipe, device)))
    except MmkitError as error:
        problem = error.problems[0] if isinstance(error, RecipeError) else error.problem
        return Estimate(why_none=f"{problem.place}: {problem.fact}" if problem.place else problem.fact)
    except torch.OutOfMemoryError:
        return Estimate(why_none="out of memory")
    finally:
        gc.collect()  # the next arm finds the memory of this one free
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _too_large(recipe: Recipe, device: torch.device) -> str:
    free = free_memory(device)
    if free is None:
        return ""
    model = meta_model(recipe)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    try:
        rows = training_memory(model, example_of(model), trained)
    except MmkitError:
        return ""  # what keeps an example from being laid out keeps a run from beginning, and says so there
    needed = sum(row.bytes or 0 for row in rows)
    return f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free" if needed > free else ""


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def own_seconds(estimates: Iterable[Estimate]) -> list[float]:
    """The seconds of runs that could be timed, in their order; a training that several have in common is the first one's."""
    seen: set[str] = set()
    seconds = []
    for each in estimates:
        if each.seconds is not None:
            seconds.append(sum(stage.seconds for stage in each.stages if stage.recipe not in seen))
            seen |= {stage.recipe for stage in each.stages}
    return seconds


def together(seconds: Sequence[float], slots: int) -> float:
    """How long runs take, started in this order, so many at a time."""
    busy = [0.0] * slots
    for each in seconds:
        heapq.heapreplace(busy, busy[0] + each)
    return max(busy)
