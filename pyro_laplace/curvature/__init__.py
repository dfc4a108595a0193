"""*What* a curvature is: the root of a Gauss-Newton or Fisher matrix in the likelihood's own outputs.

One file a curvature, one table. How a root is pulled back to theta is `reading`'s business.
"""
