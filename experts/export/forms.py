"""The forms that an expert can be exported to, and how each form's file ends."""

from __future__ import annotations

from typing import Literal

Form = Literal["onnx", "ncnn", "safetensors"]
ENDINGS: dict[Form, str] = {"onnx": ".onnx", "ncnn": ".param", "safetensors": ".safetensors"}
