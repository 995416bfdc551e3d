"""Files for other programs: written from real parts, opened by the programs\x27 own packages."""
