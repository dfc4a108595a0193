"""Tolerances of curvature, and of rounding."""

from dataclasses import dataclass


@dataclass
class Numerics:
    """Of curvature and rounding."""

    mc_labels: int = 4
    """Labels that ``curvature="mc_fisher"`` draws for each datum."""

    exact_columns: int = 1_000
    """Columns of a datum's root, positions times classes, up to which "kron" and "diag" make all of them.

    Each is a backward pass. Beyond, ``curvature="ggn"`` draws `position_labels` labels at each position instead.
    """

    position_labels: int = 4
    """Labels drawn at each position there: a backward pass each, whatever the number of positions and classes."""

    fisher_labels: int = 100
    """Least number of labels drawn for each datum where "ggn" has no closed form."""

    fisher_draws: int = 2_000
    """Least number of labels drawn for a site there: the sum of its scores' outer products is then off by 3% or so."""

    support_values: int = 200
    """Values up to which a support is enumerated there."""

    oversampling: int = 20
    """Columns of a low-rank sketch beyond its rank (Halko et al. 2011 advise 5 to 10; they cost little here)."""

    outer_prior: float = 1e-5
    """Relative difference up to which a weight's prior precision is the outer product that a Kronecker block needs."""

    blamed_share: float = 0.05
    """Share of a direction without a maximum from which on a site is named."""

    kron_rounding: float = 0.01
    """Rounding of a Kronecker curvature, in units of the prior precision, up to which the sites' dtype will do.

    Beyond, directions that the data say nothing of would have a wrong variance, and the sums are made in float64.
    """

    dual_trace: float = 1e10
    """Trace of ``ZZ'`` beyond which ``I + ZZ'`` is not factorised as it is: squares would lose the 1 that is added."""

    dual_left: float = 1e-6
    """Part of the prior variance that data leave, below which a difference does not tell it."""

    rounding: float = 1e3
    """Units of the dtype's eps up to which results that should agree may differ, after sums over thousands of terms."""

    probe_rounding: float = 1e2
    """The same of two products of a diagonal Hessian, which sum over nothing."""

    outer_rounding: float = 4.0
    """The same of a scale that is an outer product of two vectors: two multiplications and a division."""

    same_run: float = 1e-6
    """Relative difference of the log densities of two runs beyond which the program draws something on its own."""

    same_data: float = 1e-4
    """Difference of the log joints of two passes at one point, relative to them or to 1, beyond which the passes had
    other data. Shuffled batches of the same data, in float32, stay two orders below."""

    row_check_step: float = 0.1
    """Distance from the start, in unconstrained units, of the point where rows are run: at zero too much is equal."""

    rows_apart: float = 1e-9
    """Relative part of a row's gradient that other rows may seem to contribute, in float64, without a hint of it."""

    rows_apart_single: float = 1e-4
    """The same in float32."""

    all_seen: float = 1e-13
    """Part of a gradient, relative to its Cauchy-Schwarz bound, that captured uses may leave unexplained in float64."""

    all_seen_single: float = 2e-6
    """The same in float32."""

    half_rounding: float = 1e-2
    """Both of these in half precision."""

    normalised: float = 1e-4
    """Log of a sum of probabilities up to which logits count as normalised, and do not tell what the program wrote."""

    flat_pivot: float = 4.0
    """Rounding errors, for each coordinate, up to which a pivot of the unit-free precision says nothing."""

    network_probes: int = 8
    """Random weights of the predictors, by which it is measured how far a coordinate moves them."""

    network_unmoved: float = 1e-6
    """Least of these distances, relative to the largest: a coordinate may move nothing at the point."""

    network_mixed: float = 1e-3
    """Mixed derivative of a predictor, in such units, from which on two sites are a layer upon a layer."""

    expected_draws: int = 4
    """Posterior draws along which the expected information is compared with that of the data."""

    expected_apart: float = 0.1
    """Relative difference of both from which on it is told."""

    expected_errors: float = 3.0
    """Standard errors, of the mean over data, by which both may differ by chance."""

    expected_outputs: int = 16
    """Parameters of a distribution up to which their information is looked at one by one."""

    mass_draws: int = 200
    """Posterior draws by which it is seen whether the mass is around the mode, half of them the others mirrored."""

    mass_draws_one_by_one: int = 60
    """The same where the program cannot be run on all at once."""

    mass_elements: int = 2**26
    """Elements that the graphs of all draws, one by one, may have in sum: beyond, they cost more than the fit."""

    mass_share: float = 0.2
    """Effective share of the draws from which on the posterior is this Gaussian, whatever else is found."""

    mass_shift: float = 2.0
    """Distance of the mass from the mode, in posterior standard deviations, from which on it is told."""

    sparse_share: float = 0.5
    """Share of a curvature's entries that are not zero, beyond which it is dense."""

    projected_coordinates: int = 2048
    """Coordinates up to which directions of a sparse curvature are looked for in which the log prior is convex."""

    recovery_columns: int = 16
    """Coordinates of a site up to which its columns of a sparse matrix are taken one by one: a search costs as much."""

    recovery_dense: int = 512
    """The same where the search found that rows have many entries."""

    recovery_base: int = 256
    """Base of the digits by which an entry tells its coordinate: a ratio of float32 numbers tells so many apart."""

    recovery_digit: float = 0.1
    """Distance from a whole number up to which a ratio is a digit."""

    recovery_proofs: int = 2
    """Random vectors that have to agree before rows are believed to have one entry."""

    recovery_modulus: int = 43
    """Classes up to which a site's coordinates are divided, a prime number of them: two are together in few rounds."""

    recovery_hopeless: int = 7
    """Classes from which on a round that shows nothing is the last."""

    record_step: float = 1e-2
    """Share of 1 and of each coordinate by which the points lie off, at which a recorded function is checked."""

    record_constant: int = 2**16
    """Entries of a constant that a recording keeps at most: of larger ones, what is saved is not the time."""
