"""Prediction by draws through a program: Pyro's `Predictive`, vectorised.

It takes the nonlinear program and the linearised one alike.
"""
