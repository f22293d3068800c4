"""cuDNN 8: libcudnn.so.8 opens the others when they are used; inference needs none of those for training."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("nvidia.cudnn", search_patterns=["libcudnn.so.*", "libcudnn_*_infer.so.*"])
bindepend_symlink_suppression = ["**/nvidia/cudnn/lib/*.so*"]
