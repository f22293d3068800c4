"""TensorRT's Python module (9 and newer) imports its libraries' package only if it is there."""

hiddenimports = ["tensorrt_libs"]
excludedimports = ["tensorrt_bindings.plugin"]  # plugins written in Python, compiled at run time
