"""The posterior as a guide: from a program, its data and its mode; of several modes; and with further data.

`fit` is the sentence that all of it comes down to.
"""
