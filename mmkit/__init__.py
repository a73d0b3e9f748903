"""mmkit: unified multimodal models as recipes.

The public names, loaded on first use: ``import mmkit`` imports neither torch nor any part.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmkit.contracts.segment import Image, Sample, Segment, Text, Video
    from mmkit.hooks import hookimpl
    from mmkit.model import UnifiedModel, load

_WHERE = {
    "Image": "mmkit.contracts.segment",
    "Sample": "mmkit.contracts.segment",
    "Segment": "mmkit.contracts.segment",
    "Text": "mmkit.contracts.segment",
    "UnifiedModel": "mmkit.model",
    "Video": "mmkit.contracts.segment",
    "hookimpl": "mmkit.hooks",
    "load": "mmkit.model",
}
__all__ = ["Image", "Sample", "Segment", "Text", "UnifiedModel", "Video", "hookimpl", "load"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'mmkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
