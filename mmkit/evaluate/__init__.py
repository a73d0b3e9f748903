"""Judging a trained model: held-out samples, their verdicts, and how sure a share is."""
