"""Bounds of memory and work."""

from dataclasses import dataclass


@dataclass
class Work:
    """Of memory, and of what counts as small."""

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

    noise_work: int = 10
    """Multiplications, in small products, that take the time of one normal random number: 6 to 17 ns, one thread."""

    density_elements: int = 2**25
    """Elements that one vectorised pass over draws of a density may hold: it keeps none of them."""

    guide_draws: int = 256
    """Draws of a guide that is not ours that are made in one vectorised pass."""

    gram_rows: int = 1024
    """Rows whose products are summed in their own dtype, before the sums are added up in float64."""

    gram_columns: int = 128
    """Columns of a block of the lower triangle, which is all of a symmetric product that is computed."""

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

    dense_degree: int = 16
    """Entries of a sparse matrix's row up to which it is never taken for a dense one, which is eliminated last."""

    dense_degree_root: float = 10.0
    """The same in square roots of the matrix's size, as AMD takes them (Amestoy, Davis, Duff 2004)."""

    supernode_columns: int = 32
    """Columns that a block of a sparse factor may have where it stores zeros: long chains then are few steps.

    Selected inverse of a random walk over 10,000 steps, one thread: 0.52 s without such blocks, 0.03 s with them.
    """

    supernode_zeros: int = 2
    """Further zeros that a column may store for the sake of such a block."""

    products_per_second: int = 10**10
    """Multiplications a second in matrix products, for the rough times that errors tell.

    Measured, one thread, sizes 128 to 1,024: 7 to 20 times 10**9 in float64, 13 to 42 in float32.
    """

    told_rows: int = 10_000
    """Rows (data times outputs) that these times are told of: the data are not counted where memory is refused."""

    progress_seconds: float = 2.0
    """Seconds that a pass lasts before it shows a progress bar."""
