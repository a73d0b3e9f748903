"""Leaf operations: plain tensors in and out. Each folder holds a reference in plain torch and one dispatcher."""
