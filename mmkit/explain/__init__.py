"""What a recipe builds, told before anything is trained: parts, costs, tokens, and pictures."""

from mmkit.explain.architecture import architecture_picture
from mmkit.explain.example import Example, example_of
from mmkit.explain.facts import Explanation, explain
from mmkit.explain.mask import mask_picture, svg_mask, text_mask

__all__ = [
    "Example",
    "Explanation",
    "architecture_picture",
    "example_of",
    "explain",
    "mask_picture",
    "svg_mask",
    "text_mask",
]
