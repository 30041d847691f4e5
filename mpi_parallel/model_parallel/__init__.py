"""Module 2, model-parallel processing: every rank has a part of the model, a slice of its layers or some of them."""
