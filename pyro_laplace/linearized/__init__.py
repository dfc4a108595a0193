"""Prediction with the program linearised at the mode: as a Pyro program, and in closed form.

How rows of its Jacobian are had is decided once, when a predictive is built.
"""
