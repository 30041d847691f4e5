"""MPI-native training of image classifiers; start reading at train.py."""

__version__ = "0.1.0"
