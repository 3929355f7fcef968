"""Search over hyperparameters: trials are steps of the store, workers are calls of any launcher."""
