"""A weights file, found or fetched and verified -> a frozen network of the right architecture."""
