"""Measurements of this machine; ratios hold within one run, as machines are shared and noisy."""
