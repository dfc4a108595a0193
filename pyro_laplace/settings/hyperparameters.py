"""Steps and tolerances of the search for hyperparameters."""

from dataclasses import dataclass


@dataclass
class HyperparameterSearch:
    """Of the search for priors and noise."""

    evidence_step: float = 1e-4
    """Relative step of the central differences by which the log evidence is differentiated where no closed form is."""

    evidence_range: float = 1e5
    """Factor by which a positive hyperparameter may move from where it starts, up or down: beyond, it runs away."""

    evidence_gain: float = 1e-5
    """Nats by which a further round must raise the log evidence: less tells no two priors apart."""

    evidence_wall: float = 1e3
    """Nats below the best value seen at which a search takes a point to be that has no posterior."""

    evidence_flat: float = 1e-3
    """Nats that the log evidence may fall by where a hyperparameter goes to its bound, to be said to run there."""

    evidence_looks: int = 5
    """Times that a search looks again at hyperparameters that ran to a bound."""

    evidence_grid: int = 12
    """Values of such a hyperparameter that are tried."""

    spectrum_coordinates: int = 300
    """Coordinates from which on the evidence of a dense curvature takes its spectrum, once, and no factor each step."""

    spectrum_others: int = 20
    """One coordinate in so many may have another prior precision than all others for that."""

    kept_elements: int = 2**27
    """Entries of the Jacobian at held-out rows that `tune` keeps of a layer whose weights several positions share."""

    tune_range: float = 1e3
    """Factor by which `tune` lets a positive hyperparameter move from where it starts, up or down."""

    tune_plateau: float = 1e-4
    """Difference of scores that tells no two trials apart."""

    tune_short: float = 0.1
    """Length, in the logarithm, under which its steps are over, and distance from a bound that is none."""

    tune_edge: float = 0.7
    """First step of `tune` away from the best common factor, in the logarithm."""

    evidence_radius: float = 1e-2
    """Radius, in the logarithm of hyperparameters, under which the search for the highest evidence ends."""

    kept_promise: float = 0.25
    """Share of its promised gain that a step must bring for the next one not to be shorter."""

    evidence_few: int = 5
    """Prior scales up to which a search in a small program also begins with each one by itself larger or smaller."""

    evidence_tries: int = 12
    """Modes that are found around the end of a search that was misled."""

    evidence_rounds: int = 40
    """Most rounds of a new mode under a new prior, and a new prior at that mode."""

    evidence_steps: int = 200
    """Most steps of one search for the hyperparameters."""

    measured_hyperparameters: int = 20
    """Most numbers whose every step takes passes over the data: two a number for the gradient."""

    refit_work: int = 2_000_000
    """Coordinates times data up to which the mode is found again under a new prior unasked."""

    noise_apart: float = 1e-5
    """Relative difference of the ratios of two noise scales from datum to datum, up to which these are one factor."""

    same_location: float = 1e-3
    """Derivative of the location, relative to that of the dispersion, under which a parameter is noise alone."""
