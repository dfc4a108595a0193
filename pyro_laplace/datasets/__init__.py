"""Toy data whose truth is known: each a function that returns ``(x, y)``, one batch as every fit takes it.

A seed makes them, through a generator of their own: the global one is neither read nor moved. Real data, and the
moons and circles of scikit-learn, are not made again here.
"""

from pyro_laplace.datasets.classes import linear, multiclass, nonlinear
from pyro_laplace.datasets.curves import counts, gap, heteroscedastic

__all__ = ["counts", "gap", "heteroscedastic", "linear", "multiclass", "nonlinear"]
