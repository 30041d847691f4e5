"""What ties data, model and merging to a run: the step, the loop over epochs, the log, the trace."""
