"""TensorRT lean 11's Python module, put there by build.sh: edgeapp opens the libraries before it imports this."""

hiddenimports = ["tensorrt_lean11_libs"]
excludedimports = ["tensorrt_lean11_bindings.plugin", "tensorrt_lean_libs"]
