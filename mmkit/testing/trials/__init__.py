"""Every op on random inputs: what the checks of kernels try them on."""

from collections.abc import Callable, Iterator

from mmkit.testing.trials.attention import attention
from mmkit.testing.trials.cross_entropy import cross_entropy
from mmkit.testing.trials.decode import decode
from mmkit.testing.trials.experts import experts, grouped_linear
from mmkit.testing.trials.linear import linear
from mmkit.testing.trials.nearest_code import nearest_code
from mmkit.testing.trials.norm import norm
from mmkit.testing.trials.rope import rope
from mmkit.testing.trials.route import route
from mmkit.testing.trials.trial import Trial

__all__ = ["TRIALS", "Trial"]

TRIALS: dict[str, Callable[[], Iterator[Trial]]] = {
    "attention": attention,
    "cross_entropy": cross_entropy,
    "decode": decode,
    "experts": experts,
    "grouped_linear": grouped_linear,
    "linear": linear,
    "nearest_code": nearest_code,
    "norm": norm,
    "rope": rope,
    "route": route,
}
