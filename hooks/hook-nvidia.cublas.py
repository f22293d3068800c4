"""cuBLAS 12: what TensorRT 8.6's plugins need, not libnvblas, which stands in for the BLAS of the CPU."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("nvidia.cublas", search_patterns=["libcublas*.so.*"])
bindepend_symlink_suppression = ["**/nvidia/cublas/lib/*.so*"]
