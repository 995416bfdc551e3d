"""A source of batches and a network -> trained weights, tested against what they replace. Imports no expert."""
