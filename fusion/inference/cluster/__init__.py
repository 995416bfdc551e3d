"""A request -> the same images, made by the workers of a Ray cluster."""
