"""The three steps one after another, each a process of its own: what `train.py` does. Imports no torch."""
