"""A source of batches and a network -> trained weights, proved against what they replace. Imports no expert."""
