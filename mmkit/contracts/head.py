"""Head: owns its loss and its sampling step. The trainer only sums, the generator only loops."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from mmkit.contracts.options import Guidance
from mmkit.contracts.part import Part
from mmkit.contracts.port import Needs, TargetPort
from mmkit.contracts.values import Feed, Prepared, Request, Targets, TokenLoss
from mmkit.contracts.vocabulary import Vocabulary


class State(Protocol):
    """What a head remembers while it generates one span."""

    @property
    def done(self) -> bool:
        """True once `finish` may be called."""

    @property
    def progress(self) -> float:
        """How far the span is, 0 at the start and 1 at the end: the clock of guidance schedules."""


StateT = TypeVar("StateT", bound=State)


class Head(Part, Generic[StateT]):
    """Learns and generates the spans of one or more streams; built as ``Class(config, targets, marks, dim)``.

    `targets` are the streams in the recipe's order, `marks` the number of marks this head predicts too (0 for most).
    Generation runs, for each span, ``state = begin(request)`` and, until ``state.done``: the backbone reads ``feed(state)``
    at the span's tokens, `predict` turns its hidden states into a prediction for each guidance branch, the branches are
    combined, ``state = step(state, prediction)``; then ``finish(state)``. A step is a function of its inputs: heads keep no
    state between calls. A head that `combines` is given the branches' predictions as they are.
    """

    needs: ClassVar[Needs]
    shift: ClassVar[int] = 0
    """Where a token is predicted: 0 at itself, -1 at the token before it."""
    leads: int = 0
    """Extra tokens before each span (1 for ``time: token``)."""
    conditions: bool = False
    """True where `Feed.condition_SD` is used, which needs a backbone that modulates."""
    guidance: Guidance | None = None
    vocabulary: Vocabulary | None = None
    """The ids this head speaks, for heads over codes."""
    length: int | None = None
    """Tokens of a span of open length, filled up with end marks; None where a span is as long as its content and one end mark
    follows it."""

    combines: ClassVar[bool] = False
    """True where `step` takes a mapping of branches' names to predictions: guidance acts on what the head makes of them."""

    def __init__(self, config: Any, targets: Sequence[TargetPort], marks: int, dim: int) -> None:
        super().__init__()

    def grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of the tokens that stand in the sequence for a target of this (folded) grid.

        Another one in heads that read learned queries there (`Feed.x_SD`): their hidden states are as many as those, while
        targets, losses and what is generated keep the given grid. Raises `ContractError` on a grid the head cannot learn.
        """
        return grid

    def tie(self, tables: dict[str, Tensor]) -> None:
        """Use the given embedding tables, by vocabulary owner, as output weights. Called only where `tied` is true."""

    tied: bool = False

    @abstractmethod
    def prepare(self, targets: Targets) -> Prepared:
        """What the backbone sees at the targets, and what must be predicted (shift, mask, noise)."""

    @abstractmethod
    def predict(self, hidden_SD: Tensor) -> Tensor:
        """Logits ``[S, V]``, vectors ``[S, C]``, or a condition ``[S, W]`` that `step` draws tokens from by itself."""

    @abstractmethod
    def loss(self, hidden_SD: Tensor, prepared: Prepared) -> TokenLoss:
        """The loss of each target token, from the hidden states of all tokens of the spans."""

    @abstractmethod
    def begin(self, request: Request) -> StateT:
        """The state before anything of the span is known."""

    @abstractmethod
    def feed(self, state: StateT) -> Feed | None:
        """What the backbone must read next; None where the hidden state it gave last is all that is needed.

        A head with ``shift == -1`` feeds the tokens found since it was last asked, and they stay in the cache; the others
        feed their whole span each time, and it is forgotten. After None, those get the same prediction once more. Learned
        queries that were fed first are what stands in the sequence once the span is done, as in training.
        """

    @abstractmethod
    def step(self, state: StateT, prediction: Tensor | Mapping[str, Tensor]) -> StateT:
        """One iteration. `prediction` is ``[S, ...]`` for the whole span, or ``[1, V]`` where ``shift == -1``.

        Where the head `combines`, it is one such for each guidance branch, by the names of `mmkit.nn.guidance`.
        """

    @abstractmethod
    def finish(self, state: StateT) -> Tensor:
        """Codes ``[*grid]`` in the head's vocabulary, or folded latents ``[*grid, C]``; open spans ``[n]`` without the end mark."""
