"""An ensemble -> one small network."""
