"""The ground floor: image files, resizing, metrics, and the few habits all rooms share. Imports no other room."""
