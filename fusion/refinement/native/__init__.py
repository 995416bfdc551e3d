"""A small refiner of our own: one step of a flow from the fused image plus noise to a crisp one."""
