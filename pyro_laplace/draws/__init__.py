"""Draws of the latent sites from whatever holds a posterior, and a program read off at each of them.

Below both kinds of prediction, beside the guides.
"""
