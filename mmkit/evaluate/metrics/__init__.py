"""Figures of what came of it: one file each."""
