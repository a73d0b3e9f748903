"""Judging a trained model: tasks it is put through, metrics of what came of it, and how sure each figure is."""

from mmkit.hooks import Register, hookimpl

TASKS = {
    "gradients": "mmkit.evaluate.tasks.gradients:Gradients",
    "guidance": "mmkit.evaluate.tasks.guidance:GuidanceSweep",
    "held_out": "mmkit.evaluate.tasks.held_out:HeldOut",
    "likelihood": "mmkit.evaluate.tasks.likelihood:Likelihood",
    "reconstruction": "mmkit.evaluate.tasks.reconstruction:Reconstruction",
    "routing": "mmkit.evaluate.tasks.routing:Routing",
}
METRICS = {
    "agreement": "mmkit.evaluate.metrics.agreement:Agreement",
    "clip_score": "mmkit.evaluate.metrics.clip_score:CLIPScore",
    "codebook": "mmkit.evaluate.metrics.codebook:Codebook",
    "frechet": "mmkit.evaluate.metrics.frechet:Frechet",
    "lpips": "mmkit.evaluate.metrics.lpips:LPIPS",
    "perceptual": "mmkit.evaluate.metrics.perceptual:Perceptual",
    "precision_recall": "mmkit.evaluate.metrics.precision_recall:PrecisionRecall",
    "psnr": "mmkit.evaluate.metrics.psnr:PSNR",
    "ssim": "mmkit.evaluate.metrics.ssim:SSIM",
    "verdicts": "mmkit.evaluate.metrics.verdicts:Verdicts",
}


@hookimpl
def mmkit_components(register: Register) -> None:
    """Registers this folder's tasks and metrics."""
    for kind, catalogue in (("task", TASKS), ("metric", METRICS)):
        for name, target in catalogue.items():
            register(kind, name, target)
