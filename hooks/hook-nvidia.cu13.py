"""CUDA 13's wheels share one folder; only the runtime library travels (hooks-contrib 2026.9 knows CUDA 12 only)."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("nvidia.cu13", search_patterns=["libcudart.so.*"])
bindepend_symlink_suppression = ["**/nvidia/cu13/lib/*.so*"]
