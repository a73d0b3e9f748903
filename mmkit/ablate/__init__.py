"""Ablations: one file names a base recipe and what to swap; every arm differs from the base by that alone.

`reading` types the file, `grid` composes and checks its arms, `diff` says what differs, `matching` solves the size that
makes arms comparable, `running` trains and judges them, each run a process of its own; `statistics` says how sure figures
are, and `report` lays arms side by side in one page.
"""
