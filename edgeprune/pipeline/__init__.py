"""The order of the work: one command from a trained network to verified, measured files, and each step alone.

`compress` is the only module that knows the order of the stages. `prepare` checks everything that can be checked
before work begins, `stages` holds the stages, `verdict` judges the outcome, `folders` reads and writes what the
step commands pass to each other, `steps` are those commands, and `api` is what `import edgeprune` offers.

Nothing here prints: progress goes to a listener (`events`), results are returned.
"""
