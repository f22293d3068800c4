"""ONNX Runtime on the CPU (1.23 to 1.31): its Python module holds the runtime.

Of the other libraries in its folder, which hooks-contrib 2026.9 takes all, only the 15 kB travel
whose absence it warns about; libonnxruntime.so, 29 MB, is for programs in C.
"""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("onnxruntime", search_patterns=["libonnxruntime_providers_shared.so"])
