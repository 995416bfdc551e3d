"""The native experts: cost, the gain of folded convolutions, quality on degraded images."""
