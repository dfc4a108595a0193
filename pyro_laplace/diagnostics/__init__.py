"""Whether a posterior is right, by draws weighed with the program itself: `diagnose`, `importance_resample`.

The few draws by which `fit_laplace` warns are `posterior/mass.py`, which is asked here too.
"""
