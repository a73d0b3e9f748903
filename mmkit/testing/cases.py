"""A component under test: how it is built, what it is shown, and what comes out, for each kind."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmkit.compose.document import Layer
from mmkit.compose.extract import realize
from mmkit.compose.parts import RecipeTyper
from mmkit.contracts.options import Spec
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.values import Condition, Feed, Packed, Targets
from mmkit.errors import ContractError, MmkitError, RecipeError
from mmkit.registry import Entry, Registry
from mmkit.testing import sequences
from mmkit.testing.catalogue import Untyped
from mmkit.testing.contents import contents
from mmkit.testing.examples import Options

DIM = 32
"""The backbone width that connectors and heads are built for."""
CODES, WIDTH, MARKS = 11, 6, 5


def spec(kind: str, name: str, options: Mapping[str, Any], registry: Registry) -> Spec:
    """A part as a recipe of this registry would name it. Raises `RecipeError` with every mistake."""
    typer = RecipeTyper(Layer(), registry)
    root = {"backbone": ("backbone",), "source": ("data", "0"), "task": ("evaluate", "0")}.get(kind, (f"{kind}s", "it"))
    found = typer.part({"type": name, **options}, kind, root)
    if typer.problems:
        raise RecipeError(typer.problems)
    return found


FED = tuple("condition_SD" if f.name == "condition" else f.name for f in fields(Feed))
"""All that a feed may hold, as attributes that are tensors."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's default generator starts from `seed` inside, and is as before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@dataclass(eq=False)
class Case:
    """One component with one example of its options. What is built once is shared by all checks: copy it to change it."""

    entry: Entry
    options: Options
    registry: Registry
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is called in results."""
        shown = ", ".join(f"{key}: {value}" for key, value in self.options.items())
        return f"{self.entry.kind} {self.entry.name}" + (f" {{{shown}}}" if shown else "")

    @cached_property
    def cls(self) -> Any:
        """The registered class."""
        return self.entry.load()

    @cached_property
    def spec(self) -> Spec:
        """The typed options. Raises `Fault` where they cannot be had."""
        try:
            return spec(self.entry.kind, self.entry.name, self.options, self.registry)
        except RecipeError as error:
            what = "its example" if self.options else "it declares no `examples`, and its defaults"
            raise Untyped(f"{what} cannot be typed: {error}") from error

    @property
    def config(self) -> Any:
        """The options as an instance of the part's own ``Config``."""
        return realize(self.spec.options)


class PartCase(Case):
    """A part: a module with inputs and outputs."""

    def arguments(self) -> tuple[Any, ...]:
        """What the constructor takes beside its options."""
        return ()

    def build(self, seed: int = 0) -> Any:
        """A new one on the current default device, its initial weights drawn under a seed."""
        with seeded(seed):
            return self.cls(self.config, *self.arguments())

    @cached_property
    def part(self) -> Any:
        """One in evaluation mode, its weights moved off their start, where zeros hide mistakes. Not to be changed."""
        return self.lively().eval()

    def lively(self, seed: int = 0) -> Any:
        """A new one with every trainable parameter moved."""
        part = self.build(seed)
        with seeded(seed + 1000), torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * _stir(parameter))
        self.ready(part)
        return part

    def ready(self, part: Any) -> None:
        """What must happen before it is used."""

    @abstractmethod
    def inputs(self, part: Any, seed: int = 0) -> Any:
        """What it is shown: tensors in lists, tuples and dataclasses."""

    @abstractmethod
    def drive(self, part: Any, inputs: Any) -> dict[str, Tensor]:
        """Everything it can be asked of these inputs, by name."""

    def halved(self, inputs: Any) -> Any:
        """The inputs of a part in bf16."""
        return cast(inputs, torch.bfloat16)

    def outputs(self, part: Any | None = None, inputs: Any | None = None) -> dict[str, Tensor]:
        """`drive` with the default inputs, of the shared part where none is given."""
        part = self.part if part is None else part
        return self.drive(part, self.inputs(part) if inputs is None else inputs)

    def learned(self, outputs: dict[str, Tensor]) -> list[Tensor]:
        """The outputs that a loss may reach."""
        return [x for x in outputs.values() if x.requires_grad]

    def trainable(self, part: Any) -> dict[str, nn.Parameter]:
        """The parameters that a run of it should reach."""
        return {n: p for n, p in part.named_parameters() if p.requires_grad}


def _stir(parameter: Tensor) -> float:
    """How far a parameter is moved: 0.1, and less where a sum of so many terms would grow with every layer.

    Where no norm keeps them in bounds, forty wide convolutions would make of it numbers whose differences bf16 cannot tell.
    """
    return min(0.1, max(1, math.prod(parameter.shape[1:])) ** -0.5)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same inputs with every tensor replaced."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Targets | Packed | Condition):
        named = {f.name: map_tensors(getattr(value, f.name), change) for f in fields(value) if "plan" not in f.name}
        if isinstance(value, Targets):
            named["generators"] = tuple(copy_generator(g) for g in value.generators)
        return replace(value, **named)
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(v, change) for v in value)
    return value


def copy_generator(generator: torch.Generator) -> torch.Generator:
    """A generator that draws the same from here on."""
    new = torch.Generator(device="cpu")
    new.set_state(generator.get_state())
    return new


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Inputs with floating tensors in another dtype."""
    return map_tensors(value, lambda x: x.to(dtype) if x.is_floating_point() else x)


def tensors(value: Any) -> list[Tensor]:
    """All tensors of some inputs."""
    found: list[Tensor] = []
    map_tensors(value, lambda x: (found.append(x), x)[1])
    return found


class EncoderCase(PartCase):
    """Contents of its port's modality in; features out."""

    def halved(self, inputs: Any) -> Any:
        """Contents are in their canonical form whatever the part's dtype."""
        return inputs

    def inputs(self, part: Any, seed: int = 0) -> list[Any]:
        """Three contents of sizes it takes."""
        return contents(part.port.modality, self.registry, part.grid, seed)

    def drive(self, part: Any, inputs: Any) -> dict[str, Tensor]:
        """The features of each."""
        return {f"features of content {i}": x for i, x in enumerate(part(inputs))}


class ConnectorCase(PartCase):
    """Tokens of one of the spaces it takes in; embeddings out."""

    source = Port("image", "features", WIDTH)
    GRIDS = ((4, 4), (4, 6), (2, 4))

    def arguments(self) -> tuple[Any, ...]:
        """A source's port, and the backbone's width."""
        return (self.source, DIM)

    @property
    def title(self) -> str:
        """With the space it reads."""
        books = f" in {self.source.codebooks} books" if self.source.codebooks > 1 else ""
        return f"{super().title} of {self.source.space}{books}"

    @property
    def bundled(self) -> bool:
        """True where several numbers stand at one token: channels, or the codes of several books."""
        return self.source.space != "codes" or self.source.codebooks > 1

    def inputs(self, part: Any, seed: int = 0) -> list[Tensor]:
        """Three grids of unfolded tokens."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        here = {"generator": generator, "device": "cpu"}
        if self.source.space == "codes":
            books = (self.source.codebooks,) * self.bundled
            return [torch.randint(0, CODES, (*grid, *books), **here) for grid in self.GRIDS]
        return [torch.randn(*grid, self.source.width, **here) for grid in self.GRIDS]

    def folded(self, part: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """One content's folded tokens ``[S, ...]``, and their grid."""
        y = part.fold(x)
        grid = tuple(y.shape[:-1] if self.bundled else y.shape)
        return y.reshape(math.prod(grid), *y.shape[len(grid) :]), grid

    def drive(self, part: Any, inputs: Any) -> dict[str, Tensor]:
        """The embeddings of all tokens."""
        pairs = [self.folded(part, x) for x in inputs]
        tokens = pairs[0][0] if len(pairs) == 1 else torch.cat([x for x, _ in pairs])
        return {"embeddings": part(tokens, [grid for _, grid in pairs])}


class TokenizerCase(PartCase):
    """Contents in; codes or latents, and contents again, out."""

    def halved(self, inputs: Any) -> Any:
        """Contents are in their canonical form whatever the part's dtype."""
        return inputs

    def ready(self, part: Any) -> None:
        """Fitted, where it must see data first."""
        if not part.fitted:
            part.eval()
            part.fit([c for seed in range(40) for c in self.inputs(part, seed)])

    def inputs(self, part: Any, seed: int = 0) -> list[Any]:
        """Three contents of sizes it takes."""
        return contents(part.port.modality, self.registry, None if self.open(part) else part.grid, seed)

    def open(self, part: Any) -> bool:
        """True where its contents have an open length."""
        return bool(self.registry.find("modality", part.port.modality).load().open)

    def drive(self, part: Any, inputs: Any) -> dict[str, Tensor]:
        """The tokens of each content, and what they decode to."""
        tokens = part.encode(inputs)
        found = {f"tokens of content {i}": x for i, x in enumerate(tokens)}
        found |= {f"decoded content {i}": x for i, x in enumerate(part.decode(tokens)) if isinstance(x, Tensor)}
        return found


class BackboneCase(PartCase):
    """Packed documents of text and pictures in; hidden states out."""

    def arguments(self) -> tuple[Any, ...]:
        """The names of three streams."""
        return (sequences.STREAMS,)

    def inputs(self, part: Any, seed: int = 0) -> Packed:
        """A few documents; one has a noised picture, hidden from what follows, and one a memory where the part reads it."""
        plans = sequences.CROSSED if part.crosses else sequences.MIXED
        return sequences.mixed(part, plans, seed=seed + 1)[1]

    def drive(self, part: Any, inputs: Packed) -> dict[str, Tensor]:
        """The hidden states, and auxiliary losses."""
        hidden = part(inputs)
        return {"hidden states": hidden.x_TD, **{f"loss {n}": x for n, x in hidden.losses.items()}}

    def learned(self, outputs: dict[str, Tensor]) -> list[Tensor]:
        """The hidden states, against a fixed direction: a norm's output has a constant square."""
        x = outputs["hidden states"]
        return [x * torch.linspace(-1, 1, x.numel(), device=x.device).view_as(x).to(x.dtype)]

    def trainable(self, part: Any) -> dict[str, nn.Parameter]:
        """Weights that belong to the stream of the memory have no token here, and a gradient of zero."""
        return {n: p for n, p in super().trainable(part).items() if not ({"memory"} & set(n.split(".")))}


class HeadCase(PartCase):
    """Targets and hidden states in; what is fed, and the loss of each token, out."""

    space = "codes"
    LENGTHS = (4, 7, 6)

    @property
    def title(self) -> str:
        """With the space it learns."""
        return f"{super().title} of {self.space}"

    @cached_property
    def targets(self) -> tuple[TargetPort, ...]:
        """Two streams, of which one is of open length where the head takes that; else one."""
        if self.space == "codes":
            text = TargetPort("text", Port("text", "codes", codebook_size=CODES), open=True)
            wanted = (text, TargetPort("image", Port("image", "codes", codebook_size=2 * CODES)))
        else:
            ports = (("image", "image"), ("clip", "video"))
            wanted = tuple(TargetPort(name, Port(m, "latents", width=WIDTH)) for name, m in ports)
        for tried in (wanted, wanted[1:], wanted[:1]):
            try:
                with torch.device("meta"):
                    self.cls(self.config, tried, MARKS if any(t.open for t in tried) else 0, DIM)
            except ContractError:
                continue
            return tried
        return wanted

    def arguments(self) -> tuple[Any, ...]:
        """The streams, the marks, and the backbone's width."""
        return (self.targets, MARKS if any(t.open for t in self.targets) else 0, DIM)

    def tokens(self, part: Any, stream: str, count: int, seed: int) -> Tensor:
        """Tokens of one stream: codes in the head's vocabulary, or latents."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        if part.vocabulary is None:
            return torch.randn(count, WIDTH, generator=generator, device="cpu")
        piece = part.vocabulary.of(stream)
        return torch.randint(piece.offset, piece.stop, (count,), generator=generator, device="cpu")

    def spans(self, part: Any, lengths: Sequence[int], seed: int = 0, first: int = 0) -> Targets:
        """Spans of the streams in turn, whose random numbers depend on which span it is."""
        names = [t.stream for t in self.targets]
        streams = tuple(names[(first + i) % len(names)] for i in range(len(lengths)))
        each = [
            self.tokens(part, s, n, 100 * seed + first + i)
            for i, (s, n) in enumerate(zip(streams, lengths, strict=True))
        ]
        empty = torch.zeros(0, dtype=torch.long) if part.vocabulary is not None else torch.zeros(0, WIDTH)
        generators = tuple(
            torch.Generator(device="cpu").manual_seed(1000 * seed + first + i) for i in range(len(lengths))
        )
        return Targets(torch.cat([empty, *each]), tuple(lengths), tuple((n,) for n in lengths), streams, generators)

    def read(self, part: Any, lengths: Sequence[int]) -> list[int]:
        """How many tokens stand in the sequence for spans of these lengths."""
        return [math.prod(part.grid((n,))) for n in lengths]

    def hidden(self, count: int, seed: int = 0) -> Tensor:
        """What a backbone might give at so many tokens."""
        return torch.randn(count, DIM, generator=torch.Generator(device="cpu").manual_seed(seed + 7), device="cpu")

    def inputs(self, part: Any, seed: int = 0) -> tuple[Targets, Tensor]:
        """Three spans, and hidden states for them."""
        return self.spans(part, self.LENGTHS, seed), self.hidden(sum(self.read(part, self.LENGTHS)), seed)

    def drive(self, part: Any, inputs: Any) -> dict[str, Tensor]:
        """What is fed, and the weighted losses."""
        targets, hidden = inputs
        targets = replace(targets, generators=tuple(copy_generator(g) for g in targets.generators))
        prepared = part.prepare(targets)
        loss = part.loss(hidden, prepared)
        feed = {name: getattr(prepared.feed, name) for name in FED}
        return {**{f"feed.{n}": x for n, x in feed.items() if x is not None}, "loss": loss.value_S * loss.weight_S}


def cases(entry: Entry, options: Options, registry: Registry) -> list[Case]:
    """The cases of one example: one, or one for each space that the part takes."""
    if entry.kind == "connector":
        return _connectors(entry, options, registry)
    if entry.kind == "head":
        return [_with(HeadCase(entry, options, registry), "space", s) for s in sorted(entry.load().needs.spaces)]
    kinds: dict[str, type[Case]] = {"encoder": EncoderCase, "tokenizer": TokenizerCase, "backbone": BackboneCase}
    return [kinds.get(entry.kind, Case)(entry, options, registry)]


def _connectors(entry: Entry, options: Options, registry: Registry) -> list[Case]:
    """One for each space; one for codes of several books, too, where they are taken."""
    codes = Port("image", "codes", codebook_size=CODES)
    ports = {"codes": codes, "latents": Port("image", "latents", WIDTH), "features": Port("image", "features", WIDTH)}
    found = [_with(ConnectorCase(entry, options, registry), "source", ports[s]) for s in sorted(entry.load().takes)]
    if "codes" in entry.load().takes:
        several = _with(ConnectorCase(entry, options, registry), "source", replace(codes, codebooks=2))
        if refusal(several.build) is None:
            found.append(several)
    return found


def _with(case: Any, name: str, value: Any) -> Any:
    setattr(case, name, value)
    return case


def refusal(call: Callable[[], Any]) -> MmkitError | None:
    """The error that a call is refused with; None where it is not. Raises what is not meant for users."""
    try:
        call()
    except MmkitError as error:
        return error
    return None


def duplicate(part: Any) -> Any:
    """A deep copy."""
    return copy.deepcopy(part)
