"""Checks of what is no part: sources, modalities, positions, routers, tasks, metrics, launchers."""

from __future__ import annotations

import copy
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmkit.contracts.evaluation import Record, Subject
from mmkit.contracts.segment import Sample, Segment
from mmkit.contracts.source import Source
from mmkit.errors import ContractError, DataError, LaunchError, MmkitError, PluginError
from mmkit.testing.cases import Case, refusal, seeded
from mmkit.testing.catalogue import Inapplicable, check, demand
from mmkit.testing.contents import contents
from mmkit.testing.surroundings import watched

SEVERAL = 4


def built(case: Case, *arguments: Any) -> Any:
    """The component, built once. Raises `Inapplicable` where it needs files or packages that are not here."""
    if "built" not in case.memory:
        try:
            case.memory["built"] = case.cls(case.config, *arguments)
        except (DataError, LaunchError, ImportError) as error:
            raise Inapplicable(f"it cannot be built here: {error}") from None
    return case.memory["built"]


@check("source", "positions", "task", "metric", "launcher", "router")
def it_can_be_built(case: Case) -> None:
    """It is built from its example options, or from its defaults, and touches no global state."""
    arguments = {"launcher": (1,), "router": (4,)}.get(case.entry.kind, ())
    built(case, *arguments)
    with watched("__init__", drawing=True), seeded(0):
        case.cls(case.config, *arguments)


# Sources


def samples(case: Case) -> list[Sample]:
    """A few of a source's samples."""
    source = built(case)
    return [source.sample(i, 7) for i in range(min(SEVERAL, len(source)))]


def _alike(a: Sample, b: Sample) -> bool:
    def key(sample: Sample) -> list[Any]:
        return [(s.modality, s.role, s.content.numpy().tobytes() if isinstance(s.content, Tensor) else s.content)
                for s in sample.segments]  # fmt: skip

    return a.id == b.id and a.task == b.task and key(a) == key(b)


@check("source")
def a_sample_is_a_function_of_index_and_seed(case: Case) -> None:
    """The same index and seed give the same bits, in any order, from another instance, and wherever generators stand."""
    first = samples(case)
    other = case.cls(case.config)
    for i in reversed(range(len(first))):
        demand(_alike(first[i], other.sample(i, 7)), "sample", f"sample {i} of seed 7 is another one the second time")


@check("source")
def drawing_samples_touches_no_global_state(case: Case) -> None:
    """Drawing samples changes no setting of the process and draws from no generator that others use."""
    source = built(case)
    with watched("sample", drawing=True):
        source.sample(0, 3)


@check("source")
def its_samples_are_what_modalities_take(case: Case) -> None:
    """Samples have ids of their own, and segments of registered modalities, in canonical form, with known roles."""
    found = samples(case)
    demand(len({s.id for s in found}) == len(found), "sample", "two samples have one id")
    for sample in found:
        demand(sample.segments, sample.id, "it has no segment")
        demand(
            any(s.role == "target" for s in sample.segments),
            sample.id,
            "nothing in it is a target, so nothing is learned",
        )
        for segment in sample.segments:
            demand(segment.role in ("input", "target"), sample.id, f"{segment.role!r} is no role")
            modality = case.registry.find("modality", segment.modality).load()()
            modality.coerce(segment.content)


@check("source")
def its_sizes_are_those_of_its_samples(case: Case) -> None:
    """`sizes` names the usual size of modalities that it yields."""
    source = built(case)
    met = {s.modality for sample in samples(case) for s in sample.segments}
    for name, size in source.sizes().items():
        demand(name in case.registry.names("modality"), "sizes", f"no modality is named {name!r}")
        demand(name in met or len(source) > SEVERAL, "sizes", f"it yields no {name}")
        demand(all(isinstance(n, int) and n > 0 for n in size), "sizes", f"{name} has the size {size}")


@check("source")
def what_is_held_out_is_held_out(case: Case) -> None:
    """What `held_out` gives has ids that training does not see; a source that keeps nothing apart says so."""
    source = built(case)
    try:
        other = source.held_out()
    except DataError as error:
        raise Inapplicable(error.problem.fact) from None
    demand(isinstance(other, Source), "held_out", f"it gives {type(other).__name__}")
    ours = {source.sample(i, 7).id for i in range(min(64, len(source)))}
    theirs = {other.sample(i, 7).id for i in range(min(64, len(other)))}
    demand(not ours & theirs, "held_out", f"{sorted(ours & theirs)[:1]} is in both")


@check("source")
def its_judge_finds_the_truth_right(case: Case) -> None:
    """Where it judges, its own targets are right."""
    for sample in samples(case):
        truth = [s.content for s in sample.segments if s.role == "target"]
        verdict = built(case).judge(sample, truth)
        demand(verdict.get("right", True), "judge", f"the truth of sample {sample.id} is judged {verdict}")


@check("source")
def it_has_samples(case: Case) -> None:
    """It has a length, every index below it works, and an index past the end is an error or a further sample."""
    source = built(case)
    demand(len(source) > 0, "__len__", "it has no sample")
    demand(isinstance(source.sample(len(source) - 1, 1), Sample), "sample", "the last index gives no sample")


@check("source")
def a_copied_source_gives_the_same(case: Case) -> None:
    """A deep copy, as a worker has it, gives the same samples."""
    demand(
        _alike(copy.deepcopy(built(case)).sample(0, 7), built(case).sample(0, 7)),
        "sample",
        "a copy gives another sample",
    )


# Modalities


def _examples(case: Case) -> list[Any]:
    return contents(case.entry.name, case.registry)


@check("modality")
def canonical_contents_stay_as_they_are(case: Case) -> None:
    """`coerce` of a canonical content is that content."""
    modality = case.cls()
    for content in _examples(case):
        again = modality.coerce(content)
        same = torch.equal(again, content) if isinstance(content, Tensor) else again == content
        demand(same, "coerce", "a canonical content becomes another one")


@check("modality")
def it_accepts_its_own_contents_or_says_no(case: Case) -> None:
    """`accepts` is true or false for anything, and accepts no other modality's plain values."""
    modality = case.cls()
    for value in (*_examples(case), None, 3, object()):
        demand(
            isinstance(modality.accepts(value), bool), "accepts", f"of {type(value).__name__} it gives no truth value"
        )
    demand(not modality.accepts(object()), "accepts", "it accepts anything")


@check("modality")
def sizes_are_whole_numbers(case: Case) -> None:
    """`size` gives positive whole numbers, none where the length is open."""
    for content in _examples(case):
        size = case.cls().size(content)
        demand(bool(size) != case.cls.open, "size", f"it is {size}, and open is {case.cls.open}")
        demand(all(isinstance(n, int) and n > 0 for n in size), "size", f"it is {size}")


@check("modality")
def an_unusable_value_is_refused(case: Case) -> None:
    """`coerce` of nonsense raises `DataError`."""
    error = refusal(lambda: case.cls().coerce(object()))
    demand(isinstance(error, DataError), "coerce", f"an object gives {error}")


@check("modality")
def a_content_is_saved_to_a_file(case: Case) -> None:
    """`save` writes a file that is not empty, with the ending it declares."""
    demand(re.fullmatch(r"\.\w+", case.cls.suffix), "suffix", f"it is {case.cls.suffix!r}")
    with tempfile.TemporaryDirectory() as folder:
        for i, content in enumerate(_examples(case)):
            path = Path(folder) / f"{i}{case.cls.suffix}"
            case.cls().save(content, path)
            demand(path.is_file() and path.stat().st_size, "save", "it writes nothing")


@check("modality")
def a_dropped_content_can_be_coerced(case: Case) -> None:
    """What `empty` gives is a content, or nothing."""
    for content in _examples(case):
        nothing = case.cls().empty(content)
        demand(nothing is None or case.cls().coerce(nothing) is not None, "empty", "it is no content")


# Positions


@check("positions")
def coordinates_are_one_row_for_each_token(case: Case) -> None:
    """`place` gives int64 ``[tokens, axes]`` for grids of one to three axes, and a cursor that moves on."""
    scheme = built(case)
    for grid in ((1,), (5,), (2, 3), (2, 2, 2)):
        for shared in (False, True):
            found = refusal(lambda grid=grid, shared=shared: scheme.place(3, grid, shared))
            if found is not None:
                demand(isinstance(found, ContractError), "place", f"{grid}: {found}")
                continue
            where, cursor = scheme.place(3, grid, shared)
            wanted = (int(np.prod(grid)), scheme.axes)
            demand(
                where.shape == wanted and where.dtype == np.int64, "place", f"{grid} gives {where.dtype} {where.shape}"
            )
            demand(cursor >= 3, "place", f"after {grid} the cursor goes back from 3 to {cursor}")
            demand(not shared or (where == where[0]).all(), "place", "a shared span stands on several positions")


@check("positions")
def coordinates_move_with_the_cursor(case: Case) -> None:
    """Running text that starts later stands as much later on every axis."""
    first, second = (built(case).place(cursor, (4,), False)[0] for cursor in (0, 10))
    demand(((second - first) == (second - first)[0]).all(), "place", "text does not move as a whole")


@check("positions")
def every_frequency_has_an_axis(case: Case) -> None:
    """`frequencies` gives finite float64 values, each with an axis there is, at most half the head's width."""
    frequency, axis = built(case).frequencies(16)
    demand(
        frequency.dtype == torch.float64 and frequency.isfinite().all(), "frequencies", f"they are {frequency.dtype}"
    )
    demand(frequency.shape == axis.shape and len(axis) <= 8, "frequencies", f"{len(frequency)} for heads of width 16")
    demand(not len(axis) or int(axis.max()) < built(case).axes, "frequencies", "one turns on an axis that is not there")


@check("positions")
def an_odd_head_width_is_taken_or_refused(case: Case) -> None:
    """A head width that does not fit the scheme raises `ContractError`."""
    for width in (1, 2, 6, 7):
        error = refusal(lambda width=width: built(case).frequencies(width))
        demand(error is None or isinstance(error, ContractError), "frequencies", f"width {width}: {error}")


# Routers

EXPERTS = 4


def _choice(case: Case, tokens: int) -> Any:
    logits = torch.randn(tokens, EXPERTS, generator=torch.Generator(device="cpu").manual_seed(0))
    return built(case, EXPERTS)(logits.requires_grad_()), logits


@check("router")
def assignments_name_tokens_and_experts(case: Case) -> None:
    """Assignments name tokens and experts there are, with float32 weights, for any number of tokens."""
    for tokens in (0, 1, 9):
        choice, _ = _choice(case, tokens)
        demand(
            len(choice.token_A) == len(choice.expert_A) == len(choice.weight_A),
            "forward",
            "they are of several lengths",
        )
        demand(choice.weight_A.dtype == torch.float32, "forward", f"weights are {choice.weight_A.dtype}")
        inside = not len(choice.token_A) or (
            int(choice.token_A.max()) < tokens and int(choice.expert_A.max()) < EXPERTS
        )
        demand(inside, "forward", "an assignment names a token or an expert that is not there")


@check("router")
def weights_pass_gradients_to_the_logits(case: Case) -> None:
    """The weights of assignments and the losses reach the logits, and losses are finite scalars."""
    choice, logits = _choice(case, 9)
    demand(all(x.ndim == 0 and x.isfinite() for x in choice.losses.values()), "forward", "a loss is no finite scalar")
    (choice.weight_A.square().sum() + sum(choice.losses.values())).backward()
    demand(logits.grad is not None and logits.grad.any(), "forward", "no gradient reaches the logits")


@check("router")
def balancing_changes_buffers_alone(case: Case) -> None:
    """`rebalance` changes no parameter, and what it changes is in the state."""
    router = copy.deepcopy(built(case, EXPERTS))
    before = {n: p.clone() for n, p in router.named_parameters()}
    router.rebalance(torch.tensor([4.0, 0.0, 1.0, 1.0]))
    demand(all(torch.equal(p, before[n]) for n, p in router.named_parameters()), "rebalance", "it changes a parameter")


# Tasks and metrics


def _records(case: Case) -> tuple[Record, ...]:
    """Contents of every modality there are examples of, which came out as they should."""
    found = []
    for i in range(SEVERAL):
        shown = {
            name: given for name in case.registry.names("modality") if (given := _example(case, name, i)) is not None
        }
        targets = tuple(Segment(name, content, "target") for name, content in shown.items())
        sample = Sample(f"s{i}", (Segment("text", "a"), *targets), "draw")
        found.append(Record("draw", sample, tuple(shown.values()), {"right": True}))
    return tuple(found)


def _example(case: Case, modality: str, seed: int) -> Any | None:
    try:
        return contents(modality, case.registry, seed=seed)[0]
    # Whatever modality a third package has broken is no fault of this metric.
    except (Inapplicable, PluginError):
        return None


class _Four(Source):
    """The samples of the records."""

    def __init__(self, records: tuple[Record, ...]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, seed: int) -> Sample:
        return self.records[index].sample


def _subject(records: tuple[Record, ...]) -> Subject:
    return Subject(None, {}, None, _Four(records), tuple(r.sample for r in records))


@check("metric")
def figures_are_numbers_with_names(case: Case) -> None:
    """Of records that it says it applies to, it gives finite figures by name, one mapping a record."""
    metric, records = built(case), _records(case)
    why = metric.why_not(records)
    demand(isinstance(why, str), "why_not", f"it is {why!r}")
    if why:
        raise Inapplicable(why)
    each = metric.each(records, _subject(records))
    demand(len(each) == len(records), "each", f"{len(records)} records give {len(each)}")
    values = [v for one in each for v in one.values()] + [
        f.value for f in metric.whole(records, _subject(records)).values()
    ]
    demand(all(isinstance(v, bool | int | float) for v in values), "each", "a figure is no number")


@check("metric", "task")
def its_declarations_are_known(case: Case) -> None:
    """It says which way its figures are better in known words, and names metrics that are installed."""
    demand(getattr(case.cls, "better", "") in ("more", "less", ""), "better", f"it is {case.cls}")
    unknown = [m for m in getattr(case.cls, "metrics", ()) if m not in case.registry.names("metric")]
    demand(not unknown, "metrics", f"no metric is named {', '.join(unknown)}")


@check("metric")
def measuring_changes_nothing(case: Case) -> None:
    """The same records give the same figures, measuring touches no global state, and no record changes."""
    metric, records = built(case), _records(case)
    if why := metric.why_not(records):
        raise Inapplicable(why)
    before = copy.deepcopy([r.contents for r in records])
    first = metric.each(records, _subject(records))
    with watched("each", drawing=True):
        second = metric.each(records, _subject(records))
    demand(first == second, "each", "the same records give other figures")
    pairs = [pair for kept, r in zip(before, records, strict=True) for pair in zip(kept, r.contents, strict=True)]
    kept = all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
    demand(kept, "each", "it changes a record")


# Launchers


@check("launcher")
def it_says_how_many_run_at_a_time(case: Case) -> None:
    """`slots` is a whole number from 1 to the jobs that were asked for, and `device` names one."""
    for jobs in (1, 3):
        try:
            launcher = case.cls(case.config, jobs)
        except (MmkitError, ImportError) as error:
            raise Inapplicable(f"it starts nothing here: {error}") from None
        demand(1 <= launcher.slots <= jobs, "slots", f"asked for {jobs} jobs it has {launcher.slots}")
        demand(isinstance(launcher.device, str), "device", f"it is {launcher.device!r}")
        demand(launcher.threads is None or launcher.threads > 0, "threads", f"it is {launcher.threads!r}")
