"""The layers from which the native networks are composed."""
