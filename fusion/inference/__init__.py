"""Any image and running experts -> a better image on disk, with what made it; knows tensors, files and callables."""
