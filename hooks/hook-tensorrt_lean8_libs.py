"""TensorRT lean 8.6, put there by build.sh: a library without Python; TensorRT 10 loads it for plans of 8.6."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("tensorrt_lean8_libs", search_patterns=["*.so.*"])
