"""The base that fusion starts from: the least-squares blend, pulled onto the LR image, fitted in one pass."""
