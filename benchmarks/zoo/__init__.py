"""The engine zoo: networks with random weights through edgeprune's engine and through Torch-Pruning.

`python -m benchmarks.zoo` makes one row per network and tool; benchmarks/README.md says how.
"""
