"""The maths of a network: layers, their gradients, their optimizers. It has never heard of MPI."""
