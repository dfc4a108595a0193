"""What is known of observed distributions: a family for each.

Fisher information and link, what y is where its parameters are Gaussian, how predictives are mixed, and what its data
are. No other room asks which distribution a site has.
"""

from pyro_laplace.likelihood import (
    categorical,
    circular,
    counts,
    discrete,
    location_scale,
    multivariate,
    normal,
    ordinal,
    positive,
    simplex,
    zero_inflated,
)
from pyro_laplace.likelihood.registry import FAMILIES, Family, family_of, register, requires_grad
from pyro_laplace.likelihood.totals import of_totals
from pyro_laplace.likelihood.unregistered import (
    ABSTRACT,
    EXACT_HESSIAN,
    MONTE_CARLO,
    REFUSED,
    can_be_drawn,
    check_informative,
)
from pyro_laplace.likelihood.wrappers import (
    Likelihood,
    likelihood_of,
    marginalises_nan,
    require_likelihood,
    seen_through,
)

__all__ = [
    "ABSTRACT",
    "EXACT_HESSIAN",
    "FAMILIES",
    "MONTE_CARLO",
    "REFUSED",
    "Family",
    "Likelihood",
    "can_be_drawn",
    "categorical",
    "check_informative",
    "circular",
    "counts",
    "discrete",
    "family_of",
    "likelihood_of",
    "location_scale",
    "marginalises_nan",
    "multivariate",
    "normal",
    "of_totals",
    "ordinal",
    "positive",
    "register",
    "require_likelihood",
    "requires_grad",
    "seen_through",
    "simplex",
    "zero_inflated",
]
