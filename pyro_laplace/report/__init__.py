"""Posteriors for people to look at: ArviZ's `DataTree`, and a table of several beside one another.

It reads posteriors and changes nothing.
"""
