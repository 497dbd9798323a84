"""What survives a run's end: checkpoints, the state they hold, signals, and the folder's lock."""
