"""A difference and its interval as a mark on a line, so that a column of them reads at a glance."""

from __future__ import annotations

WIDTH, HEIGHT = 132, 16


def whisker(value: float, low: float, high: float, reach: float) -> str:
    """An SVG of a difference between ``-reach`` and ``reach``; the middle line is no difference."""

    def x(at: float) -> float:
        return WIDTH / 2 + max(-1.0, min(1.0, at / reach)) * (WIDTH / 2 - 4)

    middle = HEIGHT / 2
    return (
        f'<svg class="whisker" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">'
        f'<line class="none" x1="{WIDTH / 2}" x2="{WIDTH / 2}" y1="0" y2="{HEIGHT}"/>'
        f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}"/>'
        f'<circle cx="{x(value):.1f}" cy="{middle}" r="3.2"/></svg>'
    )
