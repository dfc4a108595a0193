"""Densities of theta to draw from and to weigh draws by: ellipses, with heavier tails, and mixtures of many.

`Blend` of `blend.py` is what others ask for; its parts are `Ellipse`s.
"""
