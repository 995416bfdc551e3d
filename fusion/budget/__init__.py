"""A share of the experts' cost -> which experts run on which tile, by a model learned from cached images."""
