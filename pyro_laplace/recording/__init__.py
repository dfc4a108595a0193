"""A function of one tensor as the list of operations that it runs, to be run again without the Python around them.

What is recorded, and when it is, is up to the rooms that ask: they know what is evaluated often enough.
"""
