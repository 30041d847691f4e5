"""Module 1, data-parallel processing: every rank has the whole model and a part of the data."""
