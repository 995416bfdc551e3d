"""Results, caches and runs -> the HTML of the page and its tabs."""
