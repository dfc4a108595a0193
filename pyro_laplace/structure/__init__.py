"""*What is kept* of a curvature: the sum over data of each structure, and the precision made of it and a prior.

One file a structure, one table in `build`.
"""
