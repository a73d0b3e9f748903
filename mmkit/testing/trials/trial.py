"""What a trial of an op is."""

from mmkit.kernels.trial import Trial

__all__ = ["Trial"]
