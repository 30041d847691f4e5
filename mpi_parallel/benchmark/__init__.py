"""Measurements of this machine, a verb a file. Ratios hold within one run, as machines are shared and noisy."""
