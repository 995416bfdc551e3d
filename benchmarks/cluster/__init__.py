"""What several machines and object storage cost and gain, measured on one machine."""
