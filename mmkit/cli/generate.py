"""``mmkit generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(
    epilog="""\b
Examples:
  mmkit generate runs/demo "a red circle above a blue square" --image --count 4
  mmkit generate runs/demo picture.png "What is left of the circle?" --text
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("segments", nargs=-1)
@click.option("--image", "blank", flag_value="image", help="Draw a picture after the segments.")
@click.option("--text", "blank", flag_value="text", default=True, help="Write a text after the segments. The default.")
@click.option("--blank", "blank", help="Generate a segment of another modality, by name.")
@click.option("--size", type=int, nargs=2, help="Height and width of the picture, in pixels. Default: as in training.")
@click.option("--count", default=1, show_default=True, help="How many, each with a seed of its own.")
@click.option("--seed", default=0, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), help="0 takes the likeliest.")
@click.option("--guidance", type=click.FloatRange(0), help="Guidance scale; 1 is none.")
@click.option("--steps", type=click.IntRange(1), help="Iterations of a masked, flow or diffusion head.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What the weights are kept in.",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("generated"), show_default=True,
              help="Folder for pictures.")  # fmt: skip
def command(
    run: Path, segments: tuple[str, ...], blank: str, size: tuple[int, int] | None, count: int, seed: int,
    temperature: float | None, guidance: float | None, steps: int | None, dtype: str,
    output: Path,
) -> None:  # fmt: skip
    """Continue SEGMENTS with the model of a RUN folder.

    A segment that names an existing file is read as a picture; everything else is text.
    """
    from mmkit.contracts.options import Sampling
    from mmkit.contracts.segment import Segment
    from mmkit.model import load

    model = load(run, dtype=dtype)
    prompt: list[Any] = [Path(s) if Path(s).is_file() else s for s in segments]
    wanted = Segment(blank, None, "target", size=tuple(size) if size else None)
    sampling = Sampling(temperature=temperature, guidance_scale=guidance, steps=steps)
    seeds = range(seed, seed + count)
    replies = model.generate_batch([[*prompt, wanted]] * count, sampling, seeds=seeds)
    for number, reply in zip(seeds, replies, strict=True):
        if isinstance(reply[-1], str):
            click.echo(reply[-1])
            continue
        modality = model.router.modalities[blank]
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{number:04d}{modality.suffix}"
        modality.save(reply[-1], path)
        click.echo(path)
