"""TensorRT lean 11, put there by build.sh beside lean 10; opened by a path made up at run time."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("tensorrt_lean11_libs", search_patterns=["*.so.*"])
bindepend_symlink_suppression = ["**/tensorrt_lean11_libs/*.so*"]  # found in their folder, not at the root
