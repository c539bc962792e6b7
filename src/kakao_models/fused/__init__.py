"""The models as they run fastest in PyTorch, and as ONNX and OpenVINO graphs."""
