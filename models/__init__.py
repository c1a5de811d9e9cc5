"""The networks and their training in numpy: layers with hand-written gradients, losses, the optimiser, ONNX export."""
