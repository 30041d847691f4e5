"""Weights to and from other programs: a file for each format, `registry` finds it by the file's name."""
