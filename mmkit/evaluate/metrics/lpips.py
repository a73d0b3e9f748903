"""`lpips`: how different images look to people from those they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from mmkit.checkpoint.weights import find
from mmkit.contracts.evaluation import Metric, Record, Subject, Value
from mmkit.contracts.options import Count
from mmkit.errors import CheckpointError, ContractError
from mmkit.evaluate.contents import NO_IMAGES, compared, device_of, same_size_pairs

LEAST = {"vgg": 16, "alex": 31}
"""Pixels along a side below which nothing is left at a network's last layer."""
CLASSIFIERS = ("classifier.", "pre_logits.", "head.")
"""What torchvision and timm call the layers behind the features, which LPIPS does not use."""
INSTALL = "torchmetrics is not installed; run `pip install 'mmkit[eval]'`"


class LPIPS(Metric):
    """Learned perceptual image patch similarity (Zhang et al. 2018, version 0.1), 0 for a copy, as torchmetrics computes it.

    The weights of channels, learned from people's judgements, come with torchmetrics; those of the ImageNet classifier that
    looks do not, and are named. An image too small for the network has no figure.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `lpips`.

        Options:
            weights: the classifier's weights by torchvision's names (``features.0.weight``), which timm's VGG has, too: a
                safetensors file, a folder of one, or hf://org/name of the local Hugging Face cache.
            net: which classifier looks: ``vgg`` (VGG16) or ``alex`` (AlexNet). Figures of the two do not compare.
            batch: pairs of images that are compared at once.
        """

        weights: str
        net: Literal["vgg", "alex"] = "vgg"
        batch: Count = 32

    better = "less"

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self) -> None:
        """The classifier."""
        _ = self._network

    def why_not(self, records: Sequence[Record]) -> str:
        """No image of the size it should be, or all too small; or torchmetrics is not installed."""
        both = same_size_pairs(records)
        if not both:
            return NO_IMAGES
        if not any(self._seen(a) for _, a, _ in both):
            return f"images smaller than {LEAST[self.config.net]} pixels, the least that {self.config.net} can look at"
        return "" if find_spec("torchmetrics") else INSTALL

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """``lpips`` of each record; where it has several images, their mean."""
        device = device_of(subject)
        network = self._network.to(device)

        @torch.no_grad()
        def distance(images: Tensor, wanted: Tensor) -> Tensor:
            return network(wanted.to(device), images.to(device), normalize=True).flatten()

        return compared("lpips", records, distance, self.config.batch, self._seen)

    def _seen(self, image: Tensor) -> bool:
        return min(image.shape[-2:]) >= LEAST[self.config.net]

    @cached_property
    def _network(self) -> Any:
        """Raises `ContractError` without torchmetrics, `CheckpointError` where the weights are another network's."""
        try:
            # The class behind torchmetrics' own LPIPS, which can only fetch its weights and not be given them.
            from torchmetrics.functional.image.lpips import _NoTrainLpips
        except ImportError:
            raise ContractError("metric lpips", *INSTALL.split("; ")) from None
        with torch.random.fork_rng(devices=[]):
            network = _NoTrainLpips(net=self.config.net, pnet_rand=True)
        wanted = {name: f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}
        found = find(self.config.weights)
        self._compare({wanted[name]: tensor.shape for name, tensor in network.net.state_dict().items()}, found)
        network.net.load_state_dict({name: found[theirs] for name, theirs in wanted.items()})
        return network.eval().requires_grad_(False)

    def _compare(self, shapes: dict[str, torch.Size], found: dict[str, Tensor]) -> None:
        looking = {name: tensor.shape for name, tensor in found.items() if not name.startswith(CLASSIFIERS)}
        wrong = sorted(name for name in shapes.keys() | looking.keys() if shapes.get(name) != looking.get(name))
        if wrong:
            raise CheckpointError(
                "lpips.weights",
                f"{self.config.weights} are not the weights of {self.config.net}: {wrong[0]} is"
                f" {_shape(looking, wrong[0])} there and {_shape(shapes, wrong[0])} in the network"
                + (f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""),
                "name torchvision's weights of that classifier as safetensors, for vgg also hf://timm/vgg16.tv_in1k",
            )


def _shape(shapes: dict[str, torch.Size], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "missing"
