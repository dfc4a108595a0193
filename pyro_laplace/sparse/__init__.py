"""Sparse symmetric matrices: their entries, read off products with vectors where these are all there is, and factors.

Nothing here knows of programs. Who measures a curvature is `reading`, and what is made of it is `structure`.
"""
