"""The libraries of TensorRT 9 and newer from wheels; hooks-contrib 2026.9 would take the builder's, too: 2 GB."""

import os

from PyInstaller.utils.hooks import collect_dynamic_libs

LIBRARIES = ["libnvinfer.so.*", "libnvinfer_plugin.so.*", "libnvonnxparser.so.*"]
if os.environ.get("EDGEAPP_BUILDER") == "1":
    LIBRARIES.append("libnvinfer_builder_resource*.so.*")

binaries = collect_dynamic_libs("tensorrt_libs", search_patterns=LIBRARIES)
bindepend_symlink_suppression = ["**/tensorrt_libs/*.so*"]
