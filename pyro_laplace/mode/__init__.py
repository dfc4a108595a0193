"""Searches for the posterior mode: training an AutoDelta, Newton's method, L-BFGS.

Each moves theta; what is refused (a scale that collapses) is refused here.
"""
