"""Steps and tolerances of the search for the mode."""

from dataclasses import dataclass


@dataclass
class ModeSearch:
    """Of the search for the mode."""

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

    crept_nats: float = 2e-3
    """Nats that a search must gain between looks where it is damped by `crept_damping`: along a kink it gains less."""

    crept_damping: float = 1.0
    """Damping, in units of the Hessian's diagonal, at which steps are far shorter than Newton's."""

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

    start_steep: float = 1e3
    """Times by which minus the log joint falls on the way to half a start, beyond which it does not start there.

    No polynomial of degree below ten falls so; an overflowing exponential does, and Newton's method walks it a unit a
    step.
    """

    start_halvings: int = 60
    """Halvings of a start, until it is feasible: 2**-60 of a prior scale of 1e18 is 1."""

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

    update_slope: float = 1e-8
    """Squared Newton decrement per coordinate at which the steps of `update` end."""

    update_halvings: int = 12
    """Times that a Newton step of `update` is halved before it is given up."""

    affine_told: float = 1e-2
    """Share of its move that rounding of a predictor may be where it is told whether it is affine."""

    affine_lines: int = 2
    """Random lines along which that is asked: one alone may miss a kink at the origin in a coordinate or two."""

    many_sites: int = 50
    """Sample statements of data, or of single numbers, beyond which a search says what they cost: a run is a loop."""
