"""TensorRT lean's libraries (10.x, 11.x) are opened by a name made up at run time."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("tensorrt_lean_libs", search_patterns=["*.so.*"])
bindepend_symlink_suppression = ["**/tensorrt_lean_libs/*.so*"]  # found in their folder, not at the root
