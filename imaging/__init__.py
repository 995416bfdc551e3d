"""The ground floor: image files, resizing, metrics, tiles, devices, settings. Imports no other room."""
