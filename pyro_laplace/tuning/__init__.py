"""Hyperparameters by how well the linearised program predicts held-out data.

`tune` is what users call; `held_out` splits data off, `trials` makes a trial cheap, and `search` spends them.
"""
