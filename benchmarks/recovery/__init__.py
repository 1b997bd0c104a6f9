"""Accuracy after pruning: what is left, what comes back without training, and what one epoch of training adds.

`python -m benchmarks.recovery` makes the rows, edgeprune beside Torch-Pruning; benchmarks/README.md says how.
"""
