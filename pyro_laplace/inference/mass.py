"""A Laplace posterior as the metric of Hamiltonian Monte Carlo."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.infer.mcmc.adaptation import BlockMassMatrix
from pyro.ops.welford import WelfordCovariance
from torch import Tensor

from pyro_laplace._errors import InvalidOption
from pyro_laplace._memory import refuse_too_large
from pyro_laplace.posterior.guide import AutoLaplace
from pyro_laplace.program.program import Program
from pyro_laplace.structure.diag import DiagBlock


class LaplaceMass(BlockMassMatrix):
    """An inverse mass matrix that is a Laplace posterior's covariance over its random sites.

    That part is fixed: it is the metric in which a Gaussian posterior is round. Pyro's adaptation would shrink it to
    0.001 in the sites' own units, which undoes it where they are badly scaled. Other sites have variances that are
    adapted as ever.

    Args:
        guide: the posterior.
        program: the program that is sampled.

    Raises:
        InvalidOption: if the posterior covers some sites in part.
    """

    def __init__(self, guide: AutoLaplace, program: Program) -> None:
        super().__init__()
        if guide.partial:
            raise InvalidOption(
                f"precondition holds a part of sites {list(guide.partial)} at the mode, and a mass matrix covers whole "
                "sites: give a guide whose subset is of whole sites"
            )
        independent = all(isinstance(block, DiagBlock) for block in guide.precision.blocks)
        self.dense_sites = [] if independent else [guide.random]
        self.adapts = len(guide.random) < len(program.latents)
        self._latents = program.latents
        self._adapted: dict[tuple[str, ...], WelfordCovariance] = {}
        self._covariance, self._variances = torch.zeros(0, 0), {}
        if self.dense_sites:
            size = guide.latent_dim
            remedy = "give a guide with structure='diag', or of fewer sites"
            refuse_too_large(size * size, 8, f"the mass matrix [{size}, {size}]", remedy)
            covariance = guide.precision.solve(torch.eye(size, dtype=torch.float64, device=guide.loc.device))
            self._covariance = (covariance + covariance.mT) / 2
        else:
            variance = guide.precision.variance()
            self._variances = {name: variance[part] for name, part in guide.layout.items()}

    def configure(self, mass_matrix_shape: Any, adapt_mass_matrix: bool = True, options: Any = None) -> None:
        """Set up the blocks at the start of a chain.

        Args:
            mass_matrix_shape: tuples of site names to shapes.
            adapt_mass_matrix: whether the sites that the posterior does not cover are adapted.
            options: dtype and device.
        """
        super().configure(mass_matrix_shape, adapt_mass_matrix=False, options=options or {})
        others = [names for names in mass_matrix_shape if names not in self.dense_sites]
        self._adapted = {names: WelfordCovariance(diagonal=True) for names in others} if adapt_mass_matrix else {}
        blocks = {names: self._with_known(names, self.inverse_mass_matrix[names]) for names in others}
        self.inverse_mass_matrix = dict.fromkeys(self.dense_sites, self._covariance) | blocks

    def update(self, z: Mapping[str, Tensor], z_grad: Any) -> None:
        """Take in a draw of the warm-up.

        Args:
            z: site name to unconstrained value.
            z_grad: unused.
        """
        for names, scheme in self._adapted.items():
            scheme.update(torch.cat([z[name].detach().reshape(-1) for name in names]))

    def end_adaptation(self) -> None:
        """Put the variances of the draws since the last call into the mass matrix."""
        for names, scheme in self._adapted.items():
            variance = torch.as_tensor(scheme.get_covariance(regularize=True))
            self.inverse_mass_matrix = {names: self._with_known(names, variance)}
            scheme.reset()

    def _with_known(self, names: tuple[str, ...], variance: Tensor) -> Tensor:
        """Variances [params of the sites], those that the posterior knows replaced."""
        parts = variance.split([self._latents[name].size for name in names])
        return torch.cat([self._variances.get(name, part).to(part) for name, part in zip(names, parts, strict=True)])
