"""Posteriors in files: `save`, `load`.

`file.py` is the file, its checksum and what may be wrong with it; `sites.py`, `blocks.py` and `records.py` say what of
a posterior is written down, and how it is made again.
"""
