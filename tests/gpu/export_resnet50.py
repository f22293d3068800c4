"""Write ResNet-50 with random weights for the benchmark (PyTorch with torchvision): OUT.onnx"""

from __future__ import annotations

import sys

import torch
import torchvision

torch.manual_seed(0)
net = torchvision.models.resnet50().eval()
torch.onnx.export(
    net, torch.zeros(1, 3, 224, 224), sys.argv[1], input_names=["images"], output_names=["logits"],
    dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17, dynamo=False,
)  # fmt: skip
