"""Watching a run: which operation of the program consumes which latent site, with its input and its output.

One table of operations, one mode that watches, one record of a run.
"""
