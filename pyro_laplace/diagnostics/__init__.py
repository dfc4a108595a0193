"""Whether a posterior is right, by draws weighed with the program itself: `diagnose`, `importance_resample`."""
