"""Prediction and target in [0, 1] -> one number: the losses, all listed in registry.py, and their curriculum."""
