"""Many training runs within a time budget -> the best file of each in one folder."""
