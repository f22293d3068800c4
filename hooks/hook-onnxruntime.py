"""ONNX Runtime on the CPU (1.23 to 1.31): its Python module holds the runtime.

Without this hook hooks-contrib 2026.9 takes along the library for GPU providers too.
"""

binaries = []
