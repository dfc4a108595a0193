"""What is known of the point around which the posterior is built."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mode:
    """A point judged by its distance to the mode.

    Attributes:
        theta: all latent sites, unconstrained [params].
        log_joint: log p(y, theta) there, the log-Jacobian included if the density is that of theta.
        gradient_norm: Euclidean norm of its gradient in the random coordinates, in nats per unit of theta.
        decrement: Newton decrement ``sqrt(g' Lambda^-1 g)``: the distance to the mode in posterior standard deviations.
        num_random: number of random coordinates P; a decrement above 0.1 sqrt(P) is no mode.
        moved: whether the point was moved from where the map guide left it.
    """

    theta: Tensor
    log_joint: float
    gradient_norm: float
    decrement: float
    num_random: int
    moved: bool

    @property
    def allowed(self) -> float:
        """0.1 sqrt(P)."""
        return 0.1 * self.num_random**0.5

    @property
    def is_mode(self) -> bool:
        """Whether the decrement is at most 0.1 sqrt(P)."""
        return self.decrement <= self.allowed
