"""The README's picture: held-out prompts and what a trained run draws for them, with the verifier's verdict.

python benchmarks/demo_picture.py runs/demo docs/pictures/demo.png
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from mmkit.compose import spec
from mmkit.compose.recipe import Judged
from mmkit.contracts.evaluation import Record
from mmkit.evaluate.judging import WHOLE, evaluate, subject_of

COLUMNS, CELL, TEXT = 6, 150, 44


def cell(record: Record) -> Image.Image:
    """One prompt, its drawing and its verdict."""
    (drawing,) = record.contents
    prompt = next(s.content for s in record.sample.segments if s.role == "input")
    right = record.values[WHOLE]
    pixels = (drawing.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.new("RGB", (CELL, CELL + TEXT), "white")
    picture.paste(Image.fromarray(pixels).resize((CELL - 10, CELL - 10), Image.Resampling.NEAREST), (5, 5))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((4, 4, CELL - 5, CELL - 5), outline="#2a9d55" if right else "#c8402e", width=2)
    for line, words in enumerate(textwrap.wrap(prompt, 24)[:3]):
        draw.text((6, CELL - 2 + 13 * line), words, fill="black")
    return picture


def main() -> None:
    """Draws the first held-out prompts of a run, right or wrong as they come."""
    run, output = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    subject = subject_of(run, 2 * COLUMNS)
    drawn = replace(subject, samples=tuple(sample for sample in subject.samples if sample.task == "generate"))
    records = evaluate(drawn, [Judged(task=spec("task", "held_out"))]).records
    rows = len(records) // COLUMNS
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + TEXT)), "white")
    for number, record in enumerate(records):
        sheet.paste(cell(record), (number % COLUMNS * CELL, number // COLUMNS * (CELL + TEXT)))
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    main()
