"""The Python module of TensorRT's dispatch runtime (10.x, 11.x), as hook-tensorrt_lean_bindings.py."""

hiddenimports = ["tensorrt_dispatch_libs"]
excludedimports = ["tensorrt_dispatch_bindings.plugin"]
