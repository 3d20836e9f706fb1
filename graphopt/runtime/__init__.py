"""ONNX Runtime: sessions, comparing outputs, paired timing."""
