"""What the project promises, measured: every figure in docs/results. No room of the product imports this."""
