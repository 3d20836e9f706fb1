"""What ONNX Runtime made of the integers that were written."""
