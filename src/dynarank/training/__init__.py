"""Training on PyTorch Lightning: the module, the callback that distributes ranks, and `run`."""
