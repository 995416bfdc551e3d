"""What the loop trains: one expert, or the fusion of experts."""
