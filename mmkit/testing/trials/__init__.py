"""Every op on random inputs: what the checks of kernels try them on."""

from collections.abc import Callable, Iterator

from mmkit.testing.trials.attention import attention
from mmkit.testing.trials.linear import linear
from mmkit.testing.trials.nearest_code import nearest_code
from mmkit.testing.trials.trial import Trial

__all__ = ["TRIALS", "Trial"]

TRIALS: dict[str, Callable[[], Iterator[Trial]]] = {
    "attention": attention,
    "linear": linear,
    "nearest_code": nearest_code,
}
