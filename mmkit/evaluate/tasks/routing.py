"""`routing`: which experts read which streams.

Shape suffixes: A assignments, N streams, E experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmkit.contracts.evaluation import Curve, Figure, Outcome, Subject, Task, Tick
from mmkit.contracts.values import Hidden, Packed, Route


class Routing(Task):
    """How the tokens of each stream spread over the experts of a backbone that says so (`Backbone.routes`).

    Held-out samples are read as in training, targets and all, with whole contexts; a mark counts to the stream that owns it.
    A stream's load is the share of its assignments that each expert of its pool has. Figures are means over the layers:

    - ``load entropy``: of the load, divided by that of an even one: 1 is even, 0 a single expert.
    - ``largest load``: the share of the expert with most; even: one over the number of experts.
    - ``overlap`` of two streams: ``sum(min(p, q))``, 1 minus the total variation distance of their loads: 1 where the experts
      do not tell them apart, 0 where they have none in common. Streams whose pools never meet have none.

    There are no intervals: neighbouring tokens are routed alike, so that their number says little.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """It has no options."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def why_not(self, subject: Subject) -> str:
        """Needs a backbone that routes."""
        if subject.model is None:
            return "tokenizers alone route nothing"
        return "" if subject.model.backbone.routes else "no backbone with a router"

    def run(self, subject: Subject, tick: Tick) -> Outcome:
        """Figures under ``routing``, and curves over the layers."""
        names, loads, counts = subject.model.router.names, _Loads(), dict.fromkeys(subject.model.router.names, 0)
        work = subject.model.batches(
            subject.samples, step=0, seed=0, budget=subject.recipe.train.batch_tokens, drop=False
        )
        done = 0
        with torch.no_grad(), _listening(subject.model.backbone) as heard:
            for batch in work:
                subject.model(batch)
                loads.add(*heard.pop(), len(names))
                for _, stream in {*zip(batch.layout.doc.tolist(), batch.layout.tokens.stream.tolist(), strict=True)}:
                    counts[names[stream]] += 1
                done += len(batch.samples)
                tick(done, len(subject.samples))
        spread = loads.spread(names)
        figures, curves = {}, []
        for (name, what), by_layer in spread.items():
            n = min(counts[stream] for stream in name.split("/"))
            unit = "share" if what == "largest load" else ""
            figures[f"{name} {what}"] = Figure(float(np.mean(list(by_layer.values()))), n, unit=unit, better="")
            curves.append(Curve(f"{name} {what} by layer", "layer", what, tuple(by_layer.items())))
        return Outcome(figures={"routing": figures}, curves=tuple(curves))


@contextmanager
def _listening(backbone: Any) -> Iterator[list[tuple[np.ndarray, Mapping[int, tuple[Route, ...]]]]]:
    """What goes through the backbone: the stream of each token, and the routes."""
    heard: list[tuple[np.ndarray, Mapping[int, tuple[Route, ...]]]] = []

    def listen(module: Any, given: tuple[Packed, ...], hidden: Hidden) -> None:
        heard.append((given[0].stream_T.cpu().numpy(), hidden.routes))

    handle = backbone.register_forward_hook(listen)
    try:
        yield heard
    finally:
        handle.remove()


class _Loads:
    """Assignments by (layer, pool), each ``[N, E]``."""

    def __init__(self) -> None:
        self.tables: dict[tuple[int, int], np.ndarray] = {}

    def add(self, stream_T: np.ndarray, routes: Mapping[int, tuple[Route, ...]], streams: int) -> None:
        """Counts one pass."""
        for layer, pools in routes.items():
            for pool, route in enumerate(pools):
                stream_A = stream_T[route.token_A.cpu().numpy()]
                place_A = stream_A * route.experts + route.expert_A.cpu().numpy()
                counts = np.bincount(place_A, minlength=streams * route.experts)
                self.tables[layer, pool] = self.tables.get((layer, pool), 0) + counts.reshape(streams, -1)

    def spread(self, names: tuple[str, ...]) -> dict[tuple[str, str], dict[int, float]]:
        """By stream or pair of streams and figure: the value of each layer."""
        found: dict[tuple[str, str], dict[int, float]] = {}
        for (layer, _), count_NE in sorted(self.tables.items()):
            loads = {name: row / row.sum() for name, row in zip(names, count_NE, strict=True) if row.sum()}
            for name, load_E in loads.items():
                found.setdefault((name, "load entropy"), {})[layer] = _evenness(load_E)
                found.setdefault((name, "largest load"), {})[layer] = float(load_E.max())
            for (a, p_E), (b, q_E) in itertools.combinations(loads.items(), 2):
                found.setdefault((f"{a}/{b}", "overlap"), {})[layer] = float(np.minimum(p_E, q_E).sum())
        order = ("load entropy", "largest load", "overlap")
        return dict(sorted(found.items(), key=lambda item: order.index(item[0][1])))


def _evenness(load_E: np.ndarray) -> float:
    """The entropy of a load, of that of an even one; a single expert has an even load."""
    some = load_E[load_E > 0]
    return float(-(some * np.log(some)).sum() / np.log(len(load_E))) if len(load_E) > 1 else 1.0
