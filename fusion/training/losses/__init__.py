"""Prediction and target in [0, 1] -> one number: one loss per file, all listed in registry.py."""
