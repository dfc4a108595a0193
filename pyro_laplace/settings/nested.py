"""Steps, tolerances and sizes of nested Laplace approximations."""

from dataclasses import dataclass


@dataclass
class Nested:
    """Of the inner modes, and of the points at which they are searched for."""

    tame: float = 2.0
    """Largest unconstrained coordinate of a point that is near the origin: a scale of e^2, a logit of 2."""

    inner_steps: int = 60
    """Most steps of one inner search: Newton's method from a neighbour's mode takes two to five."""

    inner_steps_single: int = 12
    """The same of undamped steps at one point: where these do not do, they are damped."""

    inner_steps_network: int = 300
    """The same in a network, whose density has ridges."""

    inner_damping: float = 1e-3
    """Least damping, in unit-free coordinates: what is smaller is none."""

    inner_floor: float = 1e-4
    """Least of the eigenvalues by which a saddle is left, relative to the largest: no direction is taken for flat."""

    inner_decrement: float = 1e-4
    """Newton decrement at which an inner search that gains no more has ended: rounding is all that is left."""

    inner_memory: int = 512
    """Inner modes that are remembered, to begin the next searches with."""

    inner_draws: int = 32
    """Points around the start from which the first of a network's inner modes is searched for."""

    inner_starts: int = 8
    """Modes known from which a network's inner mode is searched for, at each hyper point."""

    hyper_coordinates: int = 6
    """Coordinates up to which `hyper="auto"` takes a site for a hyper site: four scales' correlations are six."""

    hyper_step: float = 1e-3
    """Step, in unconstrained hyper coordinates, of differences of gradients."""

    hyper_compass: float = 0.1
    """Shortest step of a search by values alone: a grid need not begin at the very mode."""

    hyper_broad: float = 1.0
    """Sd in a hyper coordinate that is believed of a quadratic through values, at most."""

    hyper_step_rough: float = 0.25
    """The same of differences of values, and in single precision."""

    hyper_steps: int = 60
    """Most Newton steps to the hyper sites' mode."""

    hyper_decrement: float = 1e-2
    """Newton decrement at which they end: a hundredth of a posterior sd from the mode is where a grid may lie."""

    hyper_flat: float = 1e-4
    """Curvature below which the hyper sites' posterior is flat: its sd would be 100, in the logarithm of a scale."""

    hyper_reach: float = 3.0
    """Longest step in a hyper coordinate."""

    hyper_far: float = 60.0
    """Distance from the start, in the logarithm of a scale, beyond which a hyper site has run away."""

    hyper_look: float = 1.5
    """Move of each hyper coordinate, from the start, at which is looked for a better one where that is cheap."""

    grid_coordinates: int = 3
    """Hyper coordinates up to which there is a grid: over four it has a thousand points."""

    grid_step: float = 0.3
    """Step of a grid in posterior sd, for each hyper coordinate: at three the trapezoid rule is still right to 1e-8."""

    grid_drop: float = 7.0
    """Nats below the highest point up to which a grid goes on."""

    grid_drop_line: float = 16.0
    """The same along a single coordinate, where points are few: the evidence is then right to 1e-6."""

    grid_kept: float = 9.0
    """Nats below the highest point beyond which a point is let go."""

    grid_points: int = 700
    """Points within `grid_drop` beyond which a grid is made coarser."""

    grid_most: int = 3_000
    """Points at which a grid ends."""

    grid_fewest: int = 9
    """Points within `grid_drop` along one coordinate below which a grid is made finer; threefold for each further."""

    grid_again: int = 4
    """Times that a grid may be made."""

    grid_kernel: float = 0.5
    """Sd of the kernel around a grid's points, in steps: their sum is then flat to 1.4%."""

    grid_lost: float = 1e-3
    """Share of the posterior at points without an inner mode from which it is told: less is not to be seen."""

    design_points: int = 512
    """Quasi-random points of a round, over more coordinates than a grid is for."""

    design_rounds: int = 8
    """Most rounds."""

    design_error: float = 0.04
    """Standard error of means, in posterior sd, and of the logarithms of sds, at which the rounds end."""

    design_doubt: float = 0.15
    """The same beyond which the points are doubted, and a warning says so: some four times what was asked for."""

    design_freedom: float = 4.0
    """Degrees of freedom of their density, in each coordinate: its tails hold out against exponential ones."""

    design_look: float = 1.5
    """Distance from the mode, in posterior sd, at which the drop on each side first tells the density's scale there."""

    design_looks: int = 4
    """Such distances, each twice the one before: at 12 sd the logarithm of a scale is in its exponential tail."""

    design_scale: float = 8.0
    """Largest of these scales, in sd by the curvature, and one over the least."""

    design_kept: int = 512
    """Points of all rounds that are kept, each with an inner approximation: these take the most time."""

    design_balance: int = 8
    """Newton steps to weights with which these have the means and sds of all points; four are as good."""

    design_balance_most: float = 1.5
    """Factor at most by which the effective number of points may fall for that."""

    correction_draws: int = 2**16
    """Draws of the inner Gaussians at all points of a grid together, by which their weights are corrected."""

    correction_most: int = 2**10
    """Most of them at one point."""

    correction_fewest: int = 64
    """Number at one point below which none are made."""

    correction_elements: int = 2**27
    """Data that all draws of a grid may pass over: loops."""

    correction_rows: int = 2**12
    """Draws that are evaluated together."""

    correction_share: float = 0.1
    """Effective share of the draws at the highest point below which they are not believed."""

    correction_least: float = 1e-3
    """Largest logarithm of the draws' weights there up to which the inner problem is Gaussian."""

    correction_error: float = 0.15
    """Sd of the corrections' error in nats up to which they are believed; what moves by e^0.15 moves no mean far."""

    outer_points: int = 256
    """Points of `outer="laplace"` and `outer="nuts"` that the guide keeps."""

    outer_elements: int = 2**24
    """Entries of inner precisions that a guide may hold in all."""

    outer_fewest: int = 30
    """Points that it holds all the same."""

    outer_draws: int = 1_000
    """Draws of `outer="nuts"`."""

    outer_warmup: int = 300
    """Draws before these."""

    particles: int = 400
    """Of `outer="smc"`: means are right to a twentieth of a sd, and a batch of so many costs what ten do."""

    particle_work: int = 2**21
    """Numbers, those of all data for each weight of the last layer and each particle, up to which a network is small
    enough that `outer="auto"` takes "smc": of seconds to two minutes, where a network of more takes many."""

    particle_share: float = 0.5
    """Effective share of them that a step from the prior to the posterior leaves."""

    particle_moves: int = 2
    """Moves after each such step."""

    particle_settling: int = 10
    """Moves of a round under the posterior, before any are kept."""

    particle_rounds: int = 6
    """Most of these rounds: they go on while the density rises."""

    particle_rising: float = 3.0
    """Standard errors from which its mean is taken to rise in a round."""

    particle_kept: int = 1
    """Moves under the posterior whose particles are all kept."""

    particle_path: float = 1.2
    """Length of a move's path, in sd of the cloud: what lies a quarter turn away is independent, at 1.6."""

    particle_leaps: int = 32
    """Most steps of one path."""

    particle_jitter: float = 0.3
    """By which share the steps of single particles are longer or shorter, so that no path is a full turn for all."""

    particle_lost: float = 100.0
    """Nats of the density that a path may fall by, and still come back."""

    particle_accepted: float = 0.8
    """Share of accepted moves that the step aims at."""

    particle_rate: float = 1.0
    """How fast it follows: the logarithm's change for a share that is off by one."""

    particle_kernel: float = 2e-3
    """Sd of the kernel around each, in sd of all: enough for a density, and nothing beside the spread."""

    kernel_most: float = 0.5
    """Most of the hyper sites' variance, in any direction, that is that of the kernel around the points."""

    shift_most: float = 0.3
    """Largest distance of the inner mean from the mode, in sd a coordinate, up to which that formula holds."""

    one_loop_coordinates: int = 100
    """Inner coordinates up to which their means and sds are of the next order: third derivatives at two points each."""

    one_loop_points: int = 12
    """Hyper points, spread by their weights, at which they are; the others take those of the nearest."""

    one_loop_elements: int = 2**26
    """Entries that their third derivatives may take in all, beyond which they are computed at fewer points: loops."""

    one_loop_step: float = 0.1
    """Step of differences of these, in sd."""

    one_loop_most: float = 2.0
    """Largest factor by which an inner sd so grows or shrinks: beyond, the series says nothing."""
