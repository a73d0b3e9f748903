"""Judging a trained model: tasks it is put through, metrics of what came of it, and how sure each figure is."""

from mmkit.hooks import Register, hookimpl

TASKS = {
    "gradients": "mmkit.evaluate.tasks.gradients:Gradients",
    "guidance": "mmkit.evaluate.tasks.guidance:GuidanceSweep",
    "held_out": "mmkit.evaluate.tasks.held_out:HeldOut",
    "likelihood": "mmkit.evaluate.tasks.likelihood:Likelihood",
    "routing": "mmkit.evaluate.tasks.routing:Routing",
}
METRICS = {
    "verdicts": "mmkit.evaluate.metrics.verdicts:Verdicts",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's tasks and metrics."""
    for kind, catalogue in (("task", TASKS), ("metric", METRICS)):
        for name, target in catalogue.items():
            register(kind, name, target)
