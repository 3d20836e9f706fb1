"""The intermediate representation: onnx-graphsurgeon's graph, read and written without loss."""
