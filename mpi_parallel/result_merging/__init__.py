"""Module 3, result merging: the ranks' gradients, counts and metrics become one."""
