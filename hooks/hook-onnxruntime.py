"""ONNX Runtime on the CPU (1.23 to 1.31): its Python module holds the runtime.

The bridge to GPU providers (15 kB) is opened by a path at import and warned about when it is missing;
libonnxruntime.so is for C programs, and hooks-contrib 2026.9 would take it along (29 MB).
"""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = [
    entry for entry in collect_dynamic_libs("onnxruntime") if "libonnxruntime_providers_shared.so" in entry[0]
]
