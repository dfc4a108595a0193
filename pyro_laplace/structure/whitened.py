"""The eigenpairs of a Kronecker factor that a prior whitens, which priors that differ by a number have in common."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Whitened:
    """A factor's eigenpairs in the basis that a prior whitens, of which a number is left out: its first entry is 1.

    Priors that differ by a number have them in common.

    Attributes:
        form: the prior's precisions, divided by the first one.
        values: eigenvalues of ``form^-1/2 factor form^-1/2``, not negative.
        basis: eigenvectors.
        roots: ``form^-1/2 basis`` by dtype, as far as it was asked for.
    """

    form: Tensor
    values: Tensor
    basis: Tensor
    roots: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(factor: Tensor, form: Tensor, dtype: torch.dtype) -> "Whitened":
        """Decompose a factor, of which the lower triangle is read."""
        scale = form.sqrt()
        values, basis = eigenpairs(factor / scale / scale.unsqueeze(-1), dtype)
        return Whitened(form, values.clamp(min=0), basis)

    def times(self, factor: float) -> "Whitened":
        """Of the factor times a number."""
        return Whitened(self.form, self.values * factor, self.basis, self.roots)

    def root(self, dtype: torch.dtype) -> Tensor:
        """``form^-1/2 basis``, the same tensor at every call."""
        if dtype not in self.roots:
            self.roots[dtype] = (self.basis / self.form.sqrt().unsqueeze(-1)).to(dtype)
        return self.roots[dtype]


def form_of(prior: Tensor) -> tuple[Tensor, float]:
    """A vector of positive precisions as one whose first entry is 1, and a number; ones and zero of a flat prior."""
    number = float(prior[0])
    return (prior / number, number) if bool((prior != 0).any()) else (torch.ones_like(prior), 0.0)


def eigenpairs(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, computed in a dtype and given in float64."""
    values, vectors = torch.linalg.eigh(matrix.to(dtype))
    return values.double(), vectors.double()
