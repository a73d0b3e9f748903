"""What a recipe says, as typed values. Torch-free: `mmkit.compose.load` makes these from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mmkit.compose.document import Place
from mmkit.contracts.options import Count, Fraction, NonNegative, Positive, Size, Spec, part
from mmkit.contracts.port import Attend


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How one kind of segment enters and leaves the backbone.

    Options:
        modality: the registered modality of its segments.
        source: (written ``from``) the encoder or tokenizer they enter through.
        attend: ``causal``, ``block`` (a span sees all of itself), ``level`` (one rank per level of a multi-scale tokenizer),
            ``full`` (all such spans of a sample see each other). Default: what its head needs; ``causal`` without one.
        head: the head that learns and generates it; none where it is input only.
        noised: ``hidden``: a target's noised copy is seen by itself only, and a clean copy follows it.
        position: ``shared``: all tokens of a span take one position; otherwise the backbone's scheme plans them.
        enters: ``cross``: keys and values of cross-attention only.
        marks: whether a begin and an end mark stand around its spans.
    """

    modality: str
    source: str = field(metadata={"key": "from"})
    attend: Attend | None = None
    head: str | None = None
    noised: Literal["visible", "hidden"] = "visible"
    position: Literal["planned", "shared"] = "planned"
    enters: Literal["inline", "cross"] = "inline"
    marks: bool = True


@dataclass(frozen=True, kw_only=True)
class Model:
    """The parts, and how they are wired. A model of tokenizers alone is trained by reconstruction."""

    tokenizers: dict[str, Spec] = field(default_factory=dict, metadata={"part": "tokenizer"})
    encoders: dict[str, Spec] = field(default_factory=dict, metadata={"part": "encoder"})
    backbone: Spec | None = part("backbone", default=None)
    heads: dict[str, Spec] = field(default_factory=dict, metadata={"part": "head"})
    streams: dict[str, Stream] = field(default_factory=dict)
    reads: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def specs(self) -> dict[str, Spec]:
        """Every part by its path (``heads.paint``), in the order they are built; connectors only where they are written."""
        sources = {f"tokenizers.{n}": s for n, s in self.tokenizers.items()}
        sources |= {f"encoders.{n}": s for n, s in self.encoders.items()}
        found = dict(sources)
        if self.backbone is not None:
            found["backbone"] = self.backbone
        for path, source in sources.items():
            if source.connector is not None:
                found[f"connectors.{path.partition('.')[2]}"] = source.connector
        return found | {f"heads.{n}": s for n, s in self.heads.items()}

    def readers(self, modality: str) -> tuple[str, ...]:
        """The streams an input segment enters through: `reads`, else those without a head, else the one with."""
        if modality in self.reads:
            return self.reads[modality]
        of = {name: s for name, s in self.streams.items() if s.modality == modality}
        return tuple(n for n, s in of.items() if s.head is None) or tuple(of)[:1]

    def writer(self, modality: str) -> str | None:
        """The stream a target segment goes to: the one of its modality with a head."""
        return next((n for n, s in self.streams.items() if s.modality == modality and s.head is not None), None)


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Loss weights of a tokenizer trained by reconstruction; the tokenizer adds its own (KL, commitment).

    Options:
        l1, l2: pixel losses.
        perceptual: distance in the features of a frozen network (after LPIPS, Zhang et al. 2018).
        adversarial: hinge loss of a patch discriminator (Isola et al. 2017), from step `adversarial_start` on, with the
            adaptive weight of VQGAN (Esser et al. 2021).
        features: the encoder whose features `perceptual` compares, with its weights: ``{type: timm, name: ..., weights: ...}``.
        steps, lr: how long and how fast a tokenizer is trained that a larger recipe uses without naming its weights.
    """

    steps: Count = 600
    lr: Positive = 2e-3

    l1: NonNegative = 1.0
    l2: NonNegative = 0.0
    perceptual: NonNegative = 0.0
    adversarial: NonNegative = 0.0
    adversarial_start: Size = 0
    features: Spec | None = part("encoder", default=None)


@dataclass(frozen=True, kw_only=True)
class Train:
    """How it is trained.

    Options:
        steps: optimizer steps.
        batch_samples: samples of one step: which ones is a pure function of (seed, step), whatever the model.
        batch_tokens: tokens of one forward pass; what a step has beyond that is accumulated over further passes.
        optimizer: ``adamw``; or ``muon``, which moves the matrices inside the backbone by orthogonalised momentum (Jordan et
            al. 2024) and the rest by AdamW: fewer steps to the same loss, from scratch.
        lr: peak learning rate of AdamW; `warmup` steps up to it, then `schedule` down to ``lr * lr_end``.
        muon_lr: the same of Muon, which hardly depends on the size of the model.
        loss_weights: weight of each head's loss (default 1).
        precision: ``auto`` takes bf16 autocast where the device is faster with it.
        ema: decay of the exponential moving average of the weights that sampling and the checkpoint use; 0 for none.
        recompute: activation checkpointing.
        sample_every, save_every, log_every: steps between samples, checkpoints and log lines; 0 for only at the end.
        keep: finished checkpoints to keep.
        trackers: where figures go besides `log.jsonl`; ``tensorboard`` needs ``pip install 'mmkit[tensorboard]'``.
    """

    steps: Count = 1000
    batch_samples: Count = 64
    batch_tokens: Count = 8192
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 1e-3
    muon_lr: Positive = 0.02
    lr_end: Fraction = 0.0
    warmup: Size = 50
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    weight_decay: NonNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip: NonNegative = 1.0
    ema: Fraction = 0.0
    seed: Size = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    recompute: bool = False
    loss_weights: dict[str, NonNegative] = field(default_factory=dict)
    reconstruction: Reconstruction = Reconstruction()
    log_every: Count = 10
    sample_every: Size = 0
    save_every: Size = 0
    keep: Count = 2
    trackers: tuple[Literal["tensorboard"], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """One source of the mixture, and its share of the samples."""

    source: Spec
    weight: Positive = 1.0


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One task that the trained model is put through, and the metrics of what comes of it.

    Options:
        name: what its figures are reported under, where two tasks would take the same name.
        metrics: those the task brings along, where none are listed.
    """

    task: Spec
    name: str = ""
    metrics: tuple[Spec, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One recipe, typed.

    `kernels` names the implementation of an op wherever the recipe is run; mmkit chooses for the ops it does not name.
    `evaluate` is what ``mmkit eval`` does; empty leaves it to mmkit. Nothing of the training depends on it. `text` is its
    resolved rendering, every default written out: what a checkpoint keeps. `places` says where each key path is written, so
    that what is found out later is still reported at its line.
    """

    model: Model
    data: tuple[Mixed, ...] = ()
    train: Train = Train()
    kernels: dict[str, str] = field(default_factory=dict)
    evaluate: tuple[Judged, ...] = ()
    file: str = field(default="", compare=False)
    text: str = ""
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)
