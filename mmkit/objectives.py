"""What one training step minimises: a unified model's heads, or a tokenizer's reconstruction.

The trainer sees one interface; both normalise by counts that are known before the first forward pass, so a loss is the same
under any packing, accumulation or sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from mmkit.compose.recipe import Recipe
from mmkit.contracts.seeds import derive
from mmkit.contracts.segment import Sample
from mmkit.contracts.values import TokenLoss
from mmkit.errors import DataError
from mmkit.model import Losses, UnifiedModel
from mmkit.nn.discriminator import PatchDiscriminator, adaptive_weight, hinge_discriminator, hinge_generator
from mmkit.nn.perceptual import perceptual_distance
from mmkit.routing import Batch

Work = TypeVar("Work")


@dataclass(frozen=True)
class Share:
    """One accumulated pass: its share of the step's loss, and figures as (sum, weight) to be averaged over the step."""

    loss: Tensor
    figures: Mapping[str, tuple[float, float]]
    tokens: int
    samples: tuple[str, ...]


class Objective(Protocol[Work]):
    """What the trainer needs: modules to train, by the path prefix their tensors are stored under, and a step's shares.

    `prepare` does what needs no weights, and the trainer may call it for the next step while this one runs, in another thread.
    """

    def modules(self) -> Mapping[str, nn.Module]: ...
    def prepare(self, samples: Sequence[Sample], step: int) -> Work: ...
    def shares(self, work: Work, step: int) -> Iterator[Share]: ...


class Joint(Objective[Sequence[Batch]]):
    """All heads of a unified model at once, each loss averaged over the step's target tokens of that head."""

    def __init__(self, model: UnifiedModel) -> None:
        self.model = model
        self.train = model.recipe.train

    def modules(self) -> Mapping[str, nn.Module]:
        """The model, stored without a prefix."""
        return {"": self.model}

    def prepare(self, samples: Sequence[Sample], step: int) -> Sequence[Batch]:
        """The samples laid out, in packs of at most `batch_tokens` tokens."""
        return self.model.batches(samples, step=step, budget=self.train.batch_tokens)

    def shares(self, work: Sequence[Batch], step: int) -> Iterator[Share]:
        """One share per pack."""
        samples = sum(len(batch.samples) for batch in work)
        totals = self.totals(work)
        for batch in work:
            losses = self.model(batch)
            terms, figures = list(self.terms(losses, totals).values()), {}
            for name, loss in losses.heads.items():
                figures[name] = (float(weighted(loss).detach()), float(loss.weight_S.sum()))
            share = len(batch.samples) / samples
            for name, value in losses.auxiliary.items():
                terms.append(value * share)
                figures[name] = (float(value.detach()) * share, share)
            yield Share(torch.stack(terms).sum(), figures, len(batch.layout), batch.samples)

    def totals(self, work: Sequence[Batch]) -> dict[str, int]:
        """Target tokens of each head in all of a step's packs."""
        totals: dict[str, int] = {}
        for batch in work:
            for name, learned in self.model.router.learned_tokens(batch).items():
                totals[name] = totals.get(name, 0) + len(learned)
        return totals

    def terms(self, losses: Losses, totals: Mapping[str, int]) -> dict[str, Tensor]:
        """What each head's loss in one pack adds to the step's, which has `totals` target tokens."""
        weights = self.train.loss_weights
        return {name: weights.get(name, 1.0) * weighted(loss) / totals[name] for name, loss in losses.heads.items()}


def weighted(loss: TokenLoss) -> Tensor:
    """The sum over tokens of a loss times its weights, in float32."""
    return (loss.value_S.float() * loss.weight_S).sum()


class Reconstruct(Objective[Sequence[Sample]]):
    """A tokenizer's contents in and out again: pixel losses, its own terms, and optional perceptual and adversarial ones."""

    def __init__(self, recipe: Recipe, tokenizers: nn.ModuleDict, features: nn.Module | None = None) -> None:
        self.tokenizers = tokenizers
        self.weights = recipe.train.reconstruction
        self.features = features
        self.seed = recipe.train.seed
        self.discriminator = PatchDiscriminator() if self.weights.adversarial else None

    def modules(self) -> Mapping[str, nn.Module]:
        """The tokenizers, and the discriminator where there is one."""
        found: dict[str, nn.Module] = {f"tokenizers.{n}": t for n, t in self.tokenizers.items()}
        return found if self.discriminator is None else {**found, "discriminator": self.discriminator}

    def prepare(self, samples: Sequence[Sample], step: int) -> Sequence[Sample]:
        """The samples as they are."""
        return samples

    def shares(self, work: Sequence[Sample], step: int) -> Iterator[Share]:
        """One share: every tokenizer that reconstruction trains reconstructs every content of its modality."""
        terms, figures, size = [], {}, 0
        torch.manual_seed(derive(self.seed, step, "reconstruct"))
        for name, tokenizer in self.tokenizers.items():
            if not tokenizer.port.trained_by_reconstruction:
                continue
            contents = self._contents(work, tokenizer, step)
            size += sum(content.numel() for content in contents)
            result = tokenizer.reconstruct(contents)
            for key, (value, weight) in self._terms(tokenizer, contents, result.contents, step).items():
                terms.append(value * weight)
                figures[f"{name}.{key}"] = (float(value.detach()), 1.0)
            for key, value in result.losses.items():
                terms.append(value)
                figures[f"{name}.{key}"] = (float(value.detach()), 1.0)
            figures.update({f"{name}.{key}": (float(value), 1.0) for key, value in result.figures.items()})
        yield Share(torch.stack(terms).sum(), figures, size, tuple(s.id for s in work))

    def _contents(self, samples: Sequence[Sample], tokenizer: nn.Module, step: int) -> list[Tensor]:
        """What a tokenizer is shown, on its device."""
        modality, device = tokenizer.port.modality, next(tokenizer.parameters()).device
        contents = [s.content.to(device) for sample in samples for s in sample.segments if s.modality == modality]
        if not contents:
            raise DataError(f"step {step}", f"none of its {len(samples)} samples has {modality} content",
                            "name a data source that has")  # fmt: skip
        return contents

    def _terms(
        self, tokenizer: nn.Module, contents: Sequence[Tensor], outputs: Sequence[Tensor], step: int
    ) -> dict[str, tuple[Tensor, float]]:
        pairs = list(zip(contents, outputs, strict=True))
        difference = torch.cat([(a - b).flatten() for a, b in pairs])
        terms = {"l1": (difference.abs().mean(), self.weights.l1)}
        if self.weights.l2:
            terms["l2"] = (difference.square().mean(), self.weights.l2)
        if self.weights.perceptual:
            distance = torch.cat([perceptual_distance(self._maps, b[None], a[None]) for a, b in pairs]).mean()
            terms["perceptual"] = (distance, self.weights.perceptual)
        if self.discriminator is not None and step >= self.weights.adversarial_start:
            terms.update(self._adversarial(tokenizer, contents, outputs, terms))
        return terms

    def _maps(self, images_B3HW: Tensor) -> list[Tensor]:
        """The feature encoder's output as one map ``[B, C, h, w]``."""
        return [torch.stack(self.features(list(images_B3HW))).movedim(-1, 1)]

    def _adversarial(
        self, tokenizer: nn.Module, real: Sequence[Tensor], fake: Sequence[Tensor],
        terms: Mapping[str, tuple[Tensor, float]],
    ) -> dict[str, tuple[Tensor, float]]:  # fmt: skip
        """The tokenizer is scored by a discriminator held still, the discriminator by pictures held still: one backward."""
        still = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        frozen = partial(torch.func.functional_call, self.discriminator, still)
        adversarial = hinge_generator(_scores(frozen, fake))
        reconstruction = torch.stack([value * weight for value, weight in terms.values()]).sum()
        balance = adaptive_weight(reconstruction, adversarial, tokenizer.last_weight)
        seen = hinge_discriminator(
            _scores(self.discriminator, real), _scores(self.discriminator, [image.detach() for image in fake])
        )
        return {
            "adversarial": (adversarial, float(balance) * self.weights.adversarial),
            "discriminator": (seen, 1.0),
        }


def _scores(discriminator: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> Tensor:
    """The scores of all patches of all images ``[n]``, one call for each size among them."""
    sizes: dict[tuple[int, ...], list[Tensor]] = {}
    for image in images:
        sizes.setdefault(tuple(image.shape), []).append(image)
    return torch.cat([discriminator(torch.stack(group)).flatten() for group in sizes.values()])
