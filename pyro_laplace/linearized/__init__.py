"""Prediction with the program linearised at the mode: as a Pyro program, and in closed form.

How rows of its Jacobian are had is a route, chosen by what a run shows and kept as long as the program has that form;
what y then is, its family says.
"""
