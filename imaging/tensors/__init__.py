"""Files of named tensors <-> memory: pickled ones and safetensors, refused before anything large or odd is made."""
