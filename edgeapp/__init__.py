"""Runs TensorRT plans on NVIDIA machines, and ONNX models on any CPU, from one frozen file."""

__version__ = "0.1.0"
