"""What predictions and reports go by."""

from dataclasses import dataclass


@dataclass
class Reports:
    """Of predictions and reports."""

    linear: float = 0.1
    """Nonlinearity up to which the program counts as linear within the posterior: it then predicts itself.

    Measured: regressions, generalised linear models and last layers 0.000; a Dirichlet site 0.12, where both programs
    predict the same to 1e-3 nats a datum; beyond, the linearised one is nearer to NUTS. Log density a datum
    (linearised, sampled, NUTS): noncentred hierarchy, 0.9: -0.70, -0.75, -0.70; eight schools, 3.3: -3.74, -3.87,
    -3.73; Gaussian process, 3.4: -2.75, -3.05, -2.74; network of 31 weights, 2.1: -0.95, -1.03, -0.93.
    """

    nonlinearity_step: float = 0.02
    """Fraction of a deviation over which a directional derivative is a difference quotient."""

    bisections: int = 64
    """Bisections after which an interval is 2**-64 of what it was, below the resolution of float64."""

    coverage_level: float = 0.9
    """Nominal coverage of the predictive intervals of `compare`."""

    bad_k: float = 0.7
    """Pareto k above which an importance-sampled estimate is not reliable (Vehtari et al. 2024)."""

    fewest_draws: int = 30
    """Draws below which there is no tail to fit a Pareto distribution to."""

    plot_classes: int = 20
    """Integer labels up to which a calibration figure takes 0, 1, ... for classes."""

    plot_grid: int = 60
    """Points along each side of a predictive surface."""

    shown_names: int = 3
    """Names of buffers that an error shows."""
