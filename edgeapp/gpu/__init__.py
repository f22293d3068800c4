"""TensorRT on an NVIDIA GPU; the only folder, with bootstrap.py, that imports pycuda or tensorrt."""
