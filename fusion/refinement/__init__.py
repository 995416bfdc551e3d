"""A finished image -> the same image with invented detail, by one step of a diffusion model. An optional extra."""
