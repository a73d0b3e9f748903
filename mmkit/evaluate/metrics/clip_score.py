"""`clip_score`: how well generated images agree with their prompts, by CLIP.

Shape suffixes: N images with their texts, C channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkit.compose.scalars import Refusal
from mmkit.compose.weights import Weights
from mmkit.contracts.evaluation import Metric, Record, Subject, Value
from mmkit.contracts.options import Count
from mmkit.errors import CheckpointError, ContractError
from mmkit.evaluate.contents import averaged, device_of, in_batches
from mmkit.evaluate.prompts import UNPROMPTED, prompted

PLACE = "clip_score.weights"


class CLIPScore(Metric):
    """100 times the cosine of CLIP's embeddings of the image and its prompt, 0 where it is negative (Hessel et al. 2021).

    The scale is the one that is commonly reported (the paper multiplies by 2.5). A prompt is the texts before its image; what CLIP
    has no room for, beyond 77 tokens, is cut off. Images go in as 8 bits.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `clip_score`.

        Options:
            weights: a CLIP model in the layout of transformers, with its processor: a folder, or hf://org/name of the local
                Hugging Face cache.
            batch: images that are embedded at once.
        """

        weights: str
        batch: Count = 32

    def __init__(self, config: Config) -> None:
        self.config = config

    def load(self) -> None:
        """CLIP."""
        _ = self._clip

    def why_not(self, records: Sequence[Record]) -> str:
        """No image after a text."""
        return "" if prompted(records) else UNPROMPTED

    def each(self, records: Sequence[Record], subject: Subject) -> list[dict[str, Value]]:
        """``clip_score`` of each record; where it has several prompted images, their mean."""
        values: list[tuple[int, float]] = []
        for batch in in_batches(prompted(records), self.config.batch):
            score_N = self._scores([t for _, t, _ in batch], [i for _, _, i in batch], device_of(subject))
            values += zip((place for place, _, _ in batch), score_N.tolist(), strict=True)
        return averaged("clip_score", len(records), values)

    @torch.no_grad()
    def _scores(self, texts: list[str], images: list[Tensor], device: torch.device) -> Tensor:
        model, processor = self._clip
        pixels = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images]
        given = processor(text=texts, images=pixels, return_tensors="pt", padding=True, truncation=True)
        embedded = model.to(device)(**given.to(device))
        cosine_N = torch.cosine_similarity(embedded.image_embeds.double(), embedded.text_embeds.double())
        return 100 * cosine_N.clamp_min(0)

    @cached_property
    def _clip(self) -> tuple[Any, Any]:
        """The model and its processor. Raises `ContractError` without transformers, `CheckpointError` where they are not."""
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError:
            raise ContractError(
                "metric clip_score", "transformers is not installed", "run `pip install 'mmkit[eval]'`"
            ) from None
        folder = _folder(self.config.weights)
        try:
            with torch.random.fork_rng(devices=[]):
                model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
                processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                PLACE, f"{self.config.weights} is no CLIP model with its processor ({error})",
                "name a folder that transformers' save_pretrained wrote for both",
            ) from error  # fmt: skip
        return model.eval().requires_grad_(False), processor


def _folder(reference: str) -> Path:
    """The folder that weights lie in. Raises `CheckpointError` where there is none."""
    named = Weights.parse(reference)
    folder = named if isinstance(named, Refusal) else named.folder()
    if isinstance(folder, Refusal):
        raise CheckpointError(PLACE, folder.fact, folder.remedy)
    return folder
