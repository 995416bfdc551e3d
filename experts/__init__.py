"""Experts: a low-resolution image -> one frozen model's super-resolved image and inner features."""
