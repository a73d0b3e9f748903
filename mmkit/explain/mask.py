"""Who sees whom in one sample, as text for a terminal and as SVG."""

from __future__ import annotations

from mmkit.contracts.source import Source
from mmkit.explain.example import Example, laid_out
from mmkit.model import UnifiedModel
from mmkit.sequence.picture import svg_picture, text_picture


def mask_picture(model: UnifiedModel, source: Source) -> str:
    """The mask of a source's first sample as SVG. Text is counted where its tokenizer is not fitted yet."""
    return svg_mask(model, laid_out(model, source.sample(0, model.recipe.train.seed), dict(model.tokenizers.items())))


def svg_mask(model: UnifiedModel, example: Example) -> str:
    """The mask of an example as a picture that stands alone."""
    return svg_picture(example.layout, model.router.names)


def text_mask(model: UnifiedModel, example: Example, width: int = 96, window: int | None = None) -> str:
    """The mask of an example in characters, at most `width` columns beside its margin; through a `window`, if there is one."""
    return text_picture(example.layout, model.router.names, width=width, window=window)
