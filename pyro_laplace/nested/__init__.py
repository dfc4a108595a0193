"""Nested Laplace: the many latent sites integrated out at each value of the few that they depend on.

`laplace_marginal` makes the program over the few, `fit_nested_laplace` the posterior of all. What a joint Laplace
approximation is stays in `posterior`; hyperparameters that are `pyro.param`s, and have no posterior, in `evidence`.
"""
