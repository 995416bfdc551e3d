"""torch modules -> one ONNX graph of free height and width, checked against what it was made from."""
