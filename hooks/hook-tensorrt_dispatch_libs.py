"""TensorRT's dispatch runtime (10.x, 11.x), which loads the lean runtime that a plan carries within itself."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("tensorrt_dispatch_libs", search_patterns=["*.so.*"])
bindepend_symlink_suppression = ["**/tensorrt_dispatch_libs/*.so*"]
