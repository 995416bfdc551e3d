"""Experts -> files of other programs: ONNX, ncnn, safetensors."""
