"""Which GPUs a compute capability stands for, by the names that people know.

Sources: NVIDIA, "CUDA GPU Compute Capability" (developer.nvidia.com/cuda-gpus) for what has a plug; for the Jetsons the
tegra*.inc files of meta-tegra. CUDA 12.8 called the GPU of Thor 10.1, CUDA 13 calls it 11.0.
"""

from __future__ import annotations

NAMES = {
    (5, 0): "GeForce GTX 750, Quadro K2200",
    (5, 2): "GeForce GTX 900, Tesla M40, M60",
    (5, 3): "Jetson Nano, TX1",
    (6, 0): "Tesla P100",
    (6, 1): "GeForce GTX 10, Tesla P4, P40",
    (6, 2): "Jetson TX2",
    (7, 0): "V100, TITAN V",
    (7, 2): "Jetson Xavier",
    (7, 5): "Turing: T4, GeForce GTX 16 and RTX 20",
    (8, 0): "A100, A30",
    (8, 6): "GeForce RTX 30, A2, A10, A16, A40, RTX A2000 to A6000",
    (8, 7): "Jetson Orin",
    (8, 9): "GeForce RTX 40, L4, L40, RTX Ada",
    (9, 0): "H100, H200, GH200",
    (10, 0): "B200, GB200",
    (10, 1): "Jetson Thor, as CUDA 12 numbers it",
    (10, 3): "B300, GB300",
    (11, 0): "Jetson Thor",
    (12, 0): "GeForce RTX 50, RTX PRO Blackwell",
    (12, 1): "GB10, DGX Spark",
}  # fmt: skip


def name_of(major: int, minor: int) -> str:
    """The GPUs of a compute capability, "Jetson Orin"; "" for one that is not in the table."""
    return NAMES.get((major, minor), "")


def described(major: int, minor: int) -> str:
    """A compute capability with its GPUs: "8.7 (Jetson Orin)"; the number alone where they are not known."""
    name = name_of(major, minor)
    return f"{major}.{minor} ({name})" if name else f"{major}.{minor}"
