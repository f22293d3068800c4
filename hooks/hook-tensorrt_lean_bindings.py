"""TensorRT lean's Python module (10.x, 11.x) imports its libraries' package only if it is there."""

hiddenimports = ["tensorrt_lean_libs"]
excludedimports = ["tensorrt_lean_bindings.plugin"]  # plugins written in Python, compiled at run time
