"""Sizes, budgets and tolerances of the package, each named once, with its reason.

A number that belongs to one formula, as a floor that keeps a division finite, stands in the code beside it.

They are read when they are used, so that one that is set holds from then on::

    pl.settings.chunk_bytes = 2**26
    with pl.settings.using(chunk_bytes=2**26, small=50):
        guide = pl.fit_laplace(model, data)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from pyro_laplace._errors import InvalidOption


@dataclass
class Settings:
    """What `pl.settings` is: numbers by name, each checked when it is set."""

    # --- memory -------------------------------------------------------------------------------

    chunk_bytes: int = 2**28
    """Bytes that what one chunk of the data makes may take, whatever `enough_bytes` and `enough_rows` say."""

    enough_bytes: int = 2**23
    """Bytes from which on a larger chunk gains nothing: a batch is split, and small batches are joined, to it."""

    enough_rows: int = 128
    """Rows that a chunk has all the same, where `chunk_bytes` allows them."""

    cut_bytes: int = 2**16
    """Bytes of a single batch's tensors below which it is not worth finding out whether it can be cut."""

    cut_rows: int = 32
    """Rows on which a program is run, twice as many and these, to find out whether its batches can be cut."""

    block_bytes: int = 2**33
    """Bytes that one block of memory may take; a larger one is refused before it is tried."""

    keep_sum_bytes: int = 2**31
    """Bytes up to which a posterior keeps the sum over data that it was made of, for `update` and the evidence."""

    pass_elements: int = 2**24
    """Elements that one vectorised pass of automatic differentiation, or the rows of a Jacobian, may have."""

    row_elements: int = 2**22
    """Elements of rows of a Hessian or of a dual system that are made at a time."""

    product_elements: int = 2**18
    """Elements of intermediate products of one slice of the data: they stay in the processor's cache."""

    streamed_elements: int = 2**22
    """Elements of gradients at a time for structures that add up column after column."""

    together_elements: int = 2**25
    """The same for structures that pay for every slice of columns."""

    few_elements: int = 2**16
    """Elements of factors that `full` holds by rows whatever the number of coordinates."""

    one_hot_elements: int = 2**24
    """Elements up to which the words of an embedding are written as one-hot rows."""

    draw_elements: int = 2**20
    """Elements that the largest tensor of one vectorised pass over draws may hold.

    Measured on 1,000 draws of a network 10-50-1, one thread. 64 inputs: 0.046 s with 2**16, 0.019 to 0.025 s from 2**18
    on. 1,000 inputs: 0.74 s with 2**16, 0.21 s with 2**18, 0.12 s with 2**20, 0.20 s with 2**23.
    """

    density_elements: int = 2**25
    """Elements that one vectorised pass over draws of a density may hold: it keeps none of them."""

    guide_draws: int = 256
    """Draws of a guide that is not ours that are made in one vectorised pass."""

    gram_rows: int = 1024
    """Rows whose products are summed in their own dtype, before the sums are added up in float64."""

    gram_columns: int = 128
    """Columns of a block of the lower triangle, which is all of a symmetric product that is computed."""

    # --- what counts as small or large ---------------------------------------------------------

    small: int = 200
    """Coordinates up to which a program is small: its exact Hessian, and any dense form, cost next to nothing."""

    hessian_coordinates: int = 5_000
    """Coordinates up to which a dense exact Hessian of a likelihood is computed."""

    probed_coordinates: int = 2**13
    """Coordinates of a site from which on its gradient is verified by random probes, and not entry by entry."""

    form_coordinates: int = 2048
    """Coordinates up to which a block's covariance is kept as quadratic forms."""

    most_groups: int = 16
    """Groups of a grouped product up to which each is a product of its own."""

    progress_seconds: float = 2.0
    """Seconds that a pass lasts before it shows a progress bar."""

    # --- curvature ----------------------------------------------------------------------------

    mc_labels: int = 4
    """Labels that ``curvature="mc_fisher"`` draws for each datum."""

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

    # --- rounding ---------------------------------------------------------------------------------

    rounding: float = 1e3
    """Units of the dtype's eps up to which results that should agree may differ, after sums over thousands of terms."""

    probe_rounding: float = 1e2
    """The same of two products of a diagonal Hessian, which sum over nothing."""

    outer_rounding: float = 4.0
    """The same of a scale that is an outer product of two vectors: two multiplications and a division."""

    same_run: float = 1e-6
    """Relative difference of the log densities of two runs beyond which the program draws something on its own."""

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

    # --- the mode -----------------------------------------------------------------------------

    mode_decrement: float = 0.1
    """Newton decrement per sqrt(coordinate) up to which a point is a mode: a tenth of a posterior std."""

    fine_decrement: float = 0.01
    """The same where a search stops: well within what counts as a mode."""

    gauss_newton_steps: int = 20
    """Most Gauss-Newton steps with which `polish` ends."""

    sufficient_decrease: float = 1e-4
    """Share of the promised decrease that a backtracked step must make (Armijo's rule, Nocedal and Wright 2006)."""

    newton_steps: int = 500
    """Most steps of a search by Newton's method."""

    newton_damping: float = 1e40
    """Largest damping: a search that ran far out along a bounded site needs much of it to come back."""

    descent_steps: int = 1_000
    """Most iterations of a search by L-BFGS, which larger programs have in its place."""

    glance_steps: int = 20
    """Steps between looks at whether a scale collapses: the density grows for ever, and ever more slowly."""

    rough_steps: int = 50
    """Steps after which `fine_decrement` is good enough: quadratic convergence has failed to set in."""

    first_search_steps: int = 60
    """Steps of a small program's first search: Newton's method has converged by then, or runs to a border."""

    other_search_steps: int = 20
    """Steps of each further search: one that needs more started too far off to be worth its time."""

    negligible_nats: float = 5.0
    """Nats of log mass by which the first mode must be worse to be left: e^-5 of the posterior is under a percent."""

    search_draws: int = 8
    """Prior draws among which further searches choose their starts."""

    start_draws: int = 15
    """Prior draws whose median a site starts from: central, yet random enough to break a network's symmetry."""

    start_far: float = 20.0
    """Unconstrained coordinates beyond which a bounded or positive site does not start: exp(20) is 5e8."""

    small_training_steps: int = 300
    """Most training steps of a small program: they lead to where Newton's method begins, which does the rest."""

    window_steps: int = 100
    """Training steps (at least one pass) over which the loss is averaged before it is judged."""

    patience: int = 3
    """Windows without an improvement after which the step size falls, and in the end the training stops."""

    approach_steps: int = 50
    """L-BFGS iterations before the chains of NUTS start; the typical set is not at the mode."""

    collapse_shrunk: float = 1e-2
    """A scale that fell by this factor, or below `collapse_small` of its values, may have collapsed."""

    collapse_small: float = 1e-6
    """Share of its values below which a scale may have collapsed, however little it fell."""

    collapse_lost: float = 1e-8
    """A scale below this share of its values, which still falls, has collapsed wherever these values are."""

    collapse_close: float = 0.1
    """Mean squared distance to the location, in scales, below which values do not explain their scale."""

    collapse_rate: float = 0.1
    """Nats by which the log joint rises as the log of a collapsing scale falls by one."""

    # --- hyperparameters ------------------------------------------------------------------------

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

    # --- prediction and reports ----------------------------------------------------------------

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

    def __setattr__(self, name: str, value: Any) -> None:
        """Set one, checked.

        Raises:
            InvalidOption: for a name that there is not, or a value that is no positive number of its kind.
        """
        kinds = {field.name: type(field.default) for field in fields(Settings)}
        if name not in kinds:
            raise InvalidOption(f"settings has no {name!r}: it has {', '.join(sorted(kinds))}")
        allowed = int if kinds[name] is int else int | float
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < math.inf:
            what = "whole number" if kinds[name] is int else "number"
            raise InvalidOption(f"settings.{name}={value!r}: give a positive {what}")
        object.__setattr__(self, name, value)

    @contextmanager
    def using(self, **values: Any) -> Iterator["Settings"]:
        """Set some of them for a while.

        Args:
            **values: name to value.

        Yields:
            the settings; on leaving, all are what they were, exceptions included.

        Raises:
            InvalidOption: for a name that there is not, or a value that is no positive number of its kind.
        """
        before = dict(vars(self))
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            vars(self).update(before)


settings = Settings()
"""The settings in force."""
