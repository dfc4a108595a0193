"""What is known of the point around which the posterior is built."""

from dataclasses import dataclass, field

from torch import Tensor

from pyro_laplace.mode.reached import Stopped
from pyro_laplace.settings import settings


@dataclass(frozen=True)
class Mode:
    """A point judged by its distance to the mode.

    Attributes:
        theta: all latent sites, unconstrained [params].
        log_joint: log p(y, theta) there, the log-Jacobian included if the density is that of theta.
        gradient: its gradient in the random coordinates [random], in nats per unit of theta, in float64.
        decrement: Newton decrement ``sqrt(g' Lambda^-1 g)``: the distance to the mode in posterior standard deviations.
        moved: whether the point was moved from where the map guide left it.
        stopped: why the search that moved it ended; None where there was none.
        rises: what is said of a line along which the log joint never falls; None where none was found.
    """

    theta: Tensor = field(repr=False)
    log_joint: float
    gradient: Tensor = field(repr=False)
    decrement: float
    moved: bool
    stopped: Stopped | None = None
    rises: str | None = None

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient."""
        return float(self.gradient.norm())

    @property
    def num_random(self) -> int:
        """Number of random coordinates P; a decrement above `allowed` is no mode."""
        return len(self.gradient)

    @property
    def allowed(self) -> float:
        """``settings.mode_decrement sqrt(P)``, a tenth of a posterior standard deviation a coordinate."""
        return settings.mode_decrement * self.num_random**0.5

    @property
    def is_mode(self) -> bool:
        """Whether the decrement is at most that, and the log joint falls in the end along every line tried."""
        return self.decrement <= self.allowed and self.rises is None
