"""The models as they run fastest in PyTorch, and as ONNX graphs for ONNX Runtime and OpenVINO."""
