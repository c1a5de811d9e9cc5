"""The networks and their training in numpy: layers with hand-written gradients, the loss, the optimiser, ONNX."""
