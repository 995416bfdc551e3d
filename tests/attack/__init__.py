"""A standing attack: thousands of damaged and hostile inputs through every reader, counted by `make attack`."""
