"""Of other ways to a posterior, and of what is done to predictions on held-out data."""

from dataclasses import dataclass


@dataclass
class Peers:
    """Sampling, ensembles, trajectories; calibration."""

    same_member: float = 1e-3
    """Distance of an ensemble's members, in units of their largest coordinate or 1, below which they are one point."""

    swag_batches: int = 10
    """Mini-batches that SGD makes of data that are one batch."""

    swag_noise_passes: int = 5
    """Passes over the mini-batches by which the noise of their gradients is measured."""

    swag_power_steps: int = 10
    """Power iterations for the largest curvature, which bounds the step size: a bound needs no digits."""

    swag_difference: float = 1e-3
    """Step of differences of gradients there, in units of the largest coordinate or 1: float32 has digits for it."""

    swag_floor: float = 1e-10
    """Least variance of a coordinate of a trajectory, in units of the largest: a dead unit's weights do not move."""

    most_temperature: float = 1e3
    """Bound of a temperature or scale, and of its inverse: data that are all predicted right would have none."""

    temperature_steps: int = 100
    """Newton steps for it at most; the bounds that they stay in halve, in logarithms, where a step leaves them."""

    temperature_rounding: float = 1e-10
    """Relative change of a temperature at which the steps end."""

    scale_rounding: float = 1e-6
    """The same of a scale, whose log density is evaluated by mixtures."""

    plot_letters: int = 9
    """Points of the letters of figures that are made for the width of a column."""
