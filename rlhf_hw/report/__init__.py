"""Plots and the report of a run, drawn from what its run directory holds."""
