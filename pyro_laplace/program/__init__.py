"""The Pyro program, traced once: its sites, the layout of theta, its densities, and what is refused.

A program is read here and nowhere else. Nothing in it knows of curvature.
"""

from pyro_laplace.program import bijections

__all__ = ["bijections"]
