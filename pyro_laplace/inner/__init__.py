"""Inner problems: Laplace's approximation over most sites of a program, at each value of the few others.

How it is solved, by dense or sparse exact Hessians or by the package's own passes. Which sites are the few, and what
becomes of them, is up to `nested`.
"""
