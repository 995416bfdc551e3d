"""What lies on disk: the names, types, bytes and checksums of items, and the folder that holds them."""
