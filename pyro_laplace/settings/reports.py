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

    whole_weight: float = 0.1
    """Weight of a mixture's component from which on it has all draws of eta; below, it has its share.

    The Monte Carlo error of the mixture's mean is then at most a third of that of a single posterior with as many
    draws. Measured, Student's t and 524 components: the mean of y is known to 0.003 of its deviations in place of
    0.0014, a call takes 4 s in place of 7, and `scores` 4 s in place of 15.
    """

    component_draws: int = 100
    """Draws of eta that each component has all the same: a variance of so few is one percent too small."""

    nonlinearity_step: float = 0.02
    """Fraction of a deviation over which a directional derivative is a difference quotient."""

    bisections: int = 64
    """Bisections after which an interval is 2**-64 of what it was, below the resolution of float64."""

    coverage_level: float = 0.9
    """Nominal coverage of the predictive intervals of `compare`."""

    tree_entries: int = 10_000
    """Numbers of a latent site beyond which a tree holds no draws of it unless asked: 1,000 of them are 40 megabytes.

    Of so many weights each by itself says nothing, and `arviz.summary` takes minutes over them.
    """

    distance_quantiles: int = 99
    """Quantiles by which the distance between two predictions of numbers is measured.

    By 99 of them the distance of two Normals with one mean and deviations 1 and 1.5 is 0.5 percent too small.
    """

    bad_k: float = 0.7
    """Pareto k above which an importance-sampled estimate is not reliable (Vehtari et al. 2024)."""

    fewest_draws: int = 30
    """Draws below which there is no tail to fit a Pareto distribution to."""

    equal_weights: float = 1e-9
    """Nats between the largest and the smallest log weight up to which they are equal but for rounding."""

    wrong_shift: float = 0.3
    """Corrected shift of a mean, in posterior standard deviations, from which on a posterior is wrong."""

    predictive_draws: int = 200
    """Draws by which the predictions of a program and of its linearised form are compared."""

    wrong_scale: float = 1.3
    """Factor between a corrected standard deviation and a posterior's own, from which on it is wrong."""

    least_effective: float = 0.05
    """Share of effective draws below which weights are not trusted, whatever their k-hat.

    Measured: 4,000 draws of a product of ten Normals for a posterior with correlations of 0.9 had a k-hat of 0.69 and
    141 effective ones, and its deviations at 0.6 of what they are.
    """

    good_share: float = 0.25
    """Share of effective draws from which on a correction by other draws has nothing to add."""

    matched_ess: float = 0.1
    """Share of draws that tempered weights leave effective, as moments are matched: a few draws have no covariance."""

    most_proposals: int = 64_000
    """Draws up to which `importance_resample` goes on by itself, four times as many each time."""

    verdict_errors: float = 2.0
    """Monte Carlo standard errors on either side of which a shift must be on one side of these bounds to be clear."""

    diagnose_draws: int = 1_000
    """Draws of the first look of `diagnose`; each further look doubles them."""

    clear_k: float = 1.0
    """Pareto k above which a second look is enough: such weights have no mean, and more draws do not help."""

    diagnose_elements: int = 2**31
    """Elements that the first draws of a `diagnose` may make in sum, some ten seconds; the rest is as much."""

    diagnose_most: int = 16_000
    """Draws up to which it goes on unless it is told how many: errors are a quarter of those of the first look."""

    diagnose_one_by_one: int = 2_000
    """The same where the program cannot be run on many at once, and a draw may take milliseconds."""

    held_elements: int = 2**27
    """Elements of all the draws of theta that are held at a time, one gigabyte."""

    dense_coordinates: int = 2_000
    """Coordinates up to which the eigenvalues of a precision are looked at."""

    flat_direction: float = 1e-4
    """Eigenvalue of the precision in units of its diagonal below which a direction is flat.

    The coordinates are then known a hundred times less well in that combination than each by itself.
    """

    proposal_df: int = 5
    """Degrees of freedom of the heavier-tailed half of the draws of `importance_resample`."""

    matched_share: float = 0.9
    """Share of the draws that come from matched moments; the rest keeps what these may have missed."""

    proposals: int = 4_000
    """Least number of draws that `importance_resample` chooses from."""

    match_rounds: int = 8
    """Most rounds of moment matching."""

    match_draws: int = 10
    """Effective draws for each coordinate from which on a whole covariance is matched, and not variances alone."""

    least_share: float = 1e-3
    """Share of the weight below which a part of a mixture is dropped as moments are matched."""

    expanded_ellipses: int = 10
    """Parts of a mixture from which on their squared distances are one product of matrices, and not each by itself.

    Measured, `diagnose` of nested posteriors, one thread: 503 parts in 70 coordinates 139 s alone and 11 s together,
    507 parts in 40 coordinates 66 s and 8 s, 29 parts in 73 coordinates 13 s and 5 s.
    """

    expanded_error: float = 1e-8
    """Rounding of such a squared distance up to which its terms may cancel: a hundred millionth of a nat."""

    plot_classes: int = 20
    """Integer labels up to which a calibration figure takes 0, 1, ... for classes."""

    plot_grid: int = 60
    """Points along each side of a predictive surface."""

    shown_names: int = 3
    """Names of buffers that an error shows."""
