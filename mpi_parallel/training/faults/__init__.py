"""What can go wrong in a run, and what is done then: signals, time limits, bad numbers, hung ranks, dead ranks."""
