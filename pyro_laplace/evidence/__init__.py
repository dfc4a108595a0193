"""The evidence as a function of the hyperparameters, and the hyperparameters of its maximum.

A `Surface` is that function around one sum over data; `rounds` climbs it, and finds the mode again.
"""
