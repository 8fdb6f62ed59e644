"""What can run a trained network: torch itself, ONNX Runtime or OpenVINO."""
