"""*How* a curvature is read off a run: gradients of its columns, factors, dense columns, the prior.

What a structure is given is a `Columns`, one for each likelihood term and slice of a chunk.
"""
