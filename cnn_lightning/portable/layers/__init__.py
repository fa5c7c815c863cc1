"""The layers of a plan: each calls a formula forward, and the formula's backward below it.

A file has the name of the file of formulas in `cnn_lightning.ops`; `shape` has what only moves or adds numbers.
"""
