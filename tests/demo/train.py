"""Trains the demo's detector on drawn scenes and writes its ONNX file and model card.

    python train.py --out OUT_DIR --minutes 7

Needs PyTorch, ONNX, ONNX Runtime, NumPy and Pillow; no network. Scenes are drawn by all cores
while the GPU already trains on those that are done, and stay there as 8-bit pixels. The whole run,
drawing, training, export and checks, ends within ``--minutes``: the learning rate follows the
clock, not a number of steps.

The network is a small YOLOv8-like one (C2f blocks, PAN neck, anchor-free head, strides 8, 16 and
32). Boxes are learnt as distributions (https://arxiv.org/abs/2006.04388), truths are assigned by
task alignment (https://arxiv.org/abs/2108.07755).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import mmap
import multiprocessing
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import metrics
import numpy as np
import scenes
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PAD_VALUE = 114
CHUNK = 16  # scenes a worker draws at a time
BINS = 16  # a box side is at most BINS - 1 strides from its anchor point
STRIDES = (8, 16, 32)
TRAIN_SEED = 1_000_000
CHECK_SEED = 500_000_000  # far from any seed trained on
MAX_ONNX_BYTES = 3_000_000
STARTED = time.monotonic()  # the budget begins here, after the imports
RESERVE_S = 40.0  # kept at the end for the last validation, the export and its check


# --- data -------------------------------------------------------------------------------------


def letterbox(picture: np.ndarray, boxes: list[scenes.Box], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Fits a picture into the network's square as edgeapp does.

    Args:
        picture: uint8 (h, w, 3) RGB.
        boxes: (class_id, x0, y0, x1, y1) in the picture's pixels.
        side: The square's side in pixels.

    Returns:
        uint8 (side, side, 3), and float32 (MAX_PARTS, 5): class id and box in the square's
        pixels, class -1 in unused rows.
    """
    h, w = picture.shape[:2]
    ratio = min(side / w, side / h)
    new_w, new_h = round(w * ratio), round(h * ratio)
    left, top = round((side - new_w) / 2 - 0.1), round((side - new_h) / 2 - 0.1)
    square = np.full((side, side, 3), PAD_VALUE, dtype=np.uint8)
    fitted = Image.fromarray(picture).resize((new_w, new_h), Image.Resampling.BILINEAR)
    square[top : top + new_h, left : left + new_w] = np.asarray(fitted)
    rows = np.full((scenes.MAX_PARTS, 5), -1, dtype=np.float32)
    for k, (class_id, x0, y0, x1, y1) in enumerate(boxes):
        sx, sy = new_w / w, new_h / h
        rows[k] = (class_id, left + x0 * sx, top + y0 * sy, left + x1 * sx, top + y1 * sy)
    return square, rows


# Set before the workers are forked, which then write into the same memory.
_shared: np.ndarray | None = None


def _draw_chunk(task: tuple[int, list[int]]) -> tuple[int, np.ndarray]:
    """Draws scenes into the shared pictures from slot ``task[0]`` on; gives their boxes."""
    first, seeds = task
    assert _shared is not None
    rows = np.empty((len(seeds), scenes.MAX_PARTS, 5), dtype=np.float32)
    for k, seed in enumerate(seeds):
        picture, boxes = scenes.draw_scene(seed, scenes.scene_size(seed))
        _shared[first + k], rows[k] = letterbox(picture, boxes, _shared.shape[1])
    return first, rows


class Studio:
    """Draws scenes in worker processes and hands them over as they are done.

    Build it before CUDA is initialised: the workers are forked.

    Args:
        groups: Seeds, one scene each, drawn about in this order.
        side: Side of the letterboxed pictures in pixels.
        workers: Number of processes.
    """

    def __init__(self, groups: list[list[int]], side: int, workers: int) -> None:
        global _shared
        count = sum(map(len, groups))
        # Anonymous memory, not /dev/shm, which is often limited to 64 MB in a container.
        memory = mmap.mmap(-1, count * side * side * 3)
        _shared = np.frombuffer(memory, dtype=np.uint8).reshape(count, side, side, 3)
        self.pictures = _shared
        self._done: deque[tuple[int, np.ndarray]] = deque()
        self._failure: BaseException | None = None
        scenes.draw_scene(0, (96, 96))  # fills the noise bank once, for all workers
        self._pool = multiprocessing.get_context("fork").Pool(workers, initializer=_calm)
        tasks = []
        for seeds in groups:
            first = sum(len(chunk) for _, chunk in tasks)
            tasks += [(first + k, seeds[k : k + CHUNK]) for k in range(0, len(seeds), CHUNK)]
        self._results = self._pool.imap_unordered(_draw_chunk, tasks)
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        try:
            for result in self._results:
                self._done.append(result)
        except BaseException as error:  # raised again by take()
            self._failure = error

    def take(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Gives what is newly done.

        Returns:
            For each chunk the number of its first scene, counted over all groups, its pictures
            uint8 (n, side, side, 3) and its rows float32 (n, MAX_PARTS, 5).
        """
        if self._failure is not None:
            raise RuntimeError("a scene could not be drawn") from self._failure
        taken = []
        while self._done:
            first, rows = self._done.popleft()
            taken.append((first, self.pictures[first : first + len(rows)], rows))
        return taken

    def close(self) -> None:
        """Stops the workers."""
        self._pool.terminate()
        self._pool.join()


def _calm() -> None:
    # The process that feeds the GPU goes first.
    os.nice(5)


class Store:
    """Scenes on the training device.

    Attributes:
        pictures: uint8 (capacity, side, side, 3) RGB.
        rows: float32 (capacity, 14, 5): class id (-1: none), box in network pixels.
        count: How many are there.
    """

    def __init__(self, capacity: int, side: int, device: torch.device) -> None:
        self.pictures = torch.empty((capacity, side, side, 3), dtype=torch.uint8, device=device)
        self.rows = torch.empty((capacity, scenes.MAX_PARTS, 5), device=device)
        self.count = 0

    def add(self, pictures: np.ndarray, rows: np.ndarray) -> None:
        n = len(rows)
        self.pictures[self.count : self.count + n] = torch.from_numpy(pictures).to(self.pictures.device)
        self.rows[self.count : self.count + n] = torch.from_numpy(rows).to(self.rows.device)
        self.count += n

    def get(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Gives pictures uint8 (n, 3, side, side), channels last in memory, and their rows."""
        return self.pictures[index].permute(0, 3, 1, 2), self.rows[index]


def augment(picture: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Turns and mirrors a batch: a view from above has no up.

    Args:
        picture: uint8 (n, 3, s, s).
        rows: float32 (n, m, 5): class id, x0, y0, x1, y1 in pixels.

    Returns:
        The same two, each picture turned in its own way.
    """
    n, side = len(picture), picture.shape[-1]

    def coin() -> tuple[Tensor, Tensor]:
        heads = torch.rand(n, 1, device=picture.device) < 0.5
        return heads, heads[..., None, None]

    class_id, x0, y0, x1, y1 = rows.unbind(-1)
    heads, wide = coin()
    picture = torch.where(wide, picture.flip(3), picture)
    x0, x1 = torch.where(heads, side - x1, x0), torch.where(heads, side - x0, x1)
    heads, wide = coin()
    picture = torch.where(wide, picture.flip(2), picture)
    y0, y1 = torch.where(heads, side - y1, y0), torch.where(heads, side - y0, y1)
    heads, wide = coin()
    picture = torch.where(wide, picture.transpose(2, 3), picture)
    x0, y0 = torch.where(heads, y0, x0), torch.where(heads, x0, y0)
    x1, y1 = torch.where(heads, y1, x1), torch.where(heads, x1, y1)
    return picture, torch.stack([class_id, x0, y0, x1, y1], dim=-1)


def recolour(picture: Tensor) -> Tensor:
    """Changes saturation, contrast, brightness and white balance of a float batch 0..1."""
    n = len(picture)

    def between(low: float, high: float, channels: int = 1) -> Tensor:
        share = torch.rand(n, channels, 1, 1, device=picture.device, dtype=picture.dtype)
        return low + (high - low) * share

    grey = picture.mean(dim=1, keepdim=True)
    colourful = between(0.6, 1.4) * (between(0, 1) > 0.04)  # one in 25 loses all colour
    picture = grey + (picture - grey) * colourful
    middle = picture.mean(dim=(1, 2, 3), keepdim=True)
    picture = middle + (picture - middle) * between(0.8, 1.2)
    return (picture * (between(0.75, 1.25) * between(0.93, 1.07, 3))).clamp(0, 1)


# --- network ----------------------------------------------------------------------------------


class ConvUnit(nn.Module):
    """Convolution, batch normalisation, SiLU; input (n, c_in, h, w)."""

    def __init__(self, c_in: int, c_out: int, k: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.norm(self.conv(x)))

    def fold(self) -> None:
        """Puts the normalisation into the convolution; for the exported copy, after eval()."""
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


def depthwise(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(ConvUnit(c_in, c_in, 3, stride, groups=c_in), ConvUnit(c_in, c_out))


class Stage(nn.Module):
    """C2f: half of the channels go through ``n`` bottlenecks, every step is kept and mixed."""

    def __init__(self, c_in: int, c_out: int, n: int, shortcut: bool) -> None:
        super().__init__()
        half = c_out // 2
        self.half = half
        self.shortcut = shortcut
        self.enter = ConvUnit(c_in, 2 * half)
        self.steps = nn.ModuleList(nn.Sequential(ConvUnit(half, half, 3), ConvUnit(half, half, 3)) for _ in range(n))
        self.leave = ConvUnit((2 + n) * half, c_out)

    def forward(self, x: Tensor) -> Tensor:
        # split, not chunk: chunk would compute the channel count inside the exported graph.
        kept = list(self.enter(x).split((self.half, self.half), dim=1))
        for step in self.steps:
            y = step(kept[-1])
            kept.append(kept[-1] + y if self.shortcut else y)
        return self.leave(torch.cat(kept, dim=1))


class Pyramid(nn.Module):
    """SPPF: three 5x5 maxima in a row see 5, 9 and 13 cells wide."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.enter = ConvUnit(c, c // 2)
        self.leave = ConvUnit(c * 2, c)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.enter(x)]
        for _ in range(3):
            kept.append(functional.max_pool2d(kept[-1], 5, 1, 2))
        return self.leave(torch.cat(kept, dim=1))


class Detector(nn.Module):
    """The network. Input float (n, 3, side, side) 0..1 RGB.

    Gives raw box distributions (n, 4 * BINS, a) and class logits (n, classes, a) for the ``a``
    anchor points of all strides.

    Args:
        classes: Number of classes.
        side: Input side in pixels, a multiple of 32.
    """

    points: Tensor
    steps: Tensor
    ladder: Tensor

    def __init__(self, classes: int, side: int) -> None:
        super().__init__()
        self.classes, self.side = classes, side
        c1, c2, c3, c4, c5, n = 16, 32, 64, 96, 112, 64
        self.stem = nn.Sequential(ConvUnit(3, c1, 3, 2), ConvUnit(c1, c2, 3, 2), Stage(c2, c2, 1, True))
        self.stage3 = nn.Sequential(ConvUnit(c2, c3, 3, 2), Stage(c3, c3, 2, True))
        self.stage4 = nn.Sequential(ConvUnit(c3, c4, 3, 2), Stage(c4, c4, 2, True))
        self.stage5 = nn.Sequential(ConvUnit(c4, c5, 3, 2), Stage(c5, c5, 1, True), Pyramid(c5))
        self.up4 = Stage(c5 + c4, n, 1, False)
        self.up3 = Stage(n + c3, n, 1, False)
        self.down4 = depthwise(n, n, 2)
        self.out4 = Stage(n + n, n, 1, False)
        self.down5 = depthwise(n, n, 2)
        self.out5 = Stage(n + c5, n, 1, False)
        self.box_heads = nn.ModuleList()
        self.class_heads = nn.ModuleList()
        for stride in STRIDES:
            box = nn.Conv2d(n, 4 * BINS, 1)
            # Boxes begin about four strides wide; from much larger ones small parts, which they
            # hardly overlap, are learnt late or never.
            with torch.no_grad():
                box.bias.copy_(-0.4 * torch.arange(BINS).float().repeat(4))
            score = nn.Conv2d(n, classes, 1)
            # So that at first about five points per picture fire, not thousands.
            nn.init.constant_(score.bias, math.log(5 / classes / (side / stride) ** 2))
            self.box_heads.append(nn.Sequential(depthwise(n, n), depthwise(n, n), box))
            self.class_heads.append(nn.Sequential(depthwise(n, n), depthwise(n, n), score))
        points, steps = [], []
        for stride in STRIDES:
            axis = (torch.arange(side // stride) + 0.5) * stride
            y, x = torch.meshgrid(axis, axis, indexing="ij")
            points.append(torch.stack([x.flatten(), y.flatten()]))
            steps.append(torch.full((x.numel(),), float(stride)))
        self.register_buffer("points", torch.cat(points, dim=1), persistent=False)  # (2, a)
        self.register_buffer("steps", torch.cat(steps), persistent=False)  # (a,)
        self.register_buffer("ladder", torch.arange(BINS).float(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p3 = self.stage3(self.stem(x))
        p4 = self.stage4(p3)
        p5 = self.stage5(p4)
        up4 = self.up4(torch.cat([functional.interpolate(p5, scale_factor=2.0), p4], dim=1))
        out3 = self.up3(torch.cat([functional.interpolate(up4, scale_factor=2.0), p3], dim=1))
        out4 = self.out4(torch.cat([self.down4(out3), up4], dim=1))
        out5 = self.out5(torch.cat([self.down5(out4), p5], dim=1))
        boxes, scores = [], []
        for k, level in enumerate((out3, out4, out5)):
            # Sizes as plain numbers: the exported graph then computes no shapes.
            cells = (self.side // STRIDES[k]) ** 2
            boxes.append(self.box_heads[k](level).reshape(-1, 4 * BINS, cells))
            scores.append(self.class_heads[k](level).reshape(-1, self.classes, cells))
        return torch.cat(boxes, dim=2), torch.cat(scores, dim=2)

    def sides(self, boxes: Tensor) -> Tensor:
        """Gives the distances (n, 4, a) left, top, right, bottom in strides."""
        share = boxes.reshape(-1, 4, BINS, boxes.shape[2]).softmax(dim=2)
        return (share * self.ladder.reshape(1, 1, BINS, 1)).sum(dim=2)

    def corners(self, boxes: Tensor) -> Tensor:
        """Gives boxes (n, a, 4) x0 y0 x1 y1 in input pixels from raw distributions."""
        sides = self.sides(boxes) * self.steps
        low, high = self.points - sides[:, :2], self.points + sides[:, 2:]
        return torch.cat([low, high], dim=1).transpose(1, 2)


class Exported(nn.Module):
    """The network with its decoding: gives (n, 4 + classes, a) in the YOLOv8 layout."""

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        for module in self.network.modules():
            if isinstance(module, ConvUnit):
                module.fold()
        anchors = self.network.points.shape[1]
        self.anchors = anchors

    def forward(self, images: Tensor) -> Tensor:
        net = self.network
        boxes, scores = net(images)
        share = boxes.reshape(-1, 4, BINS, self.anchors).softmax(dim=2)
        sides = (share * net.ladder.reshape(1, 1, BINS, 1)).sum(dim=2) * net.steps
        before, after = sides[:, :2], sides[:, 2:]
        centre = net.points + (after - before) * 0.5
        return torch.cat([centre, before + after, scores.sigmoid()], dim=1)


# --- loss -------------------------------------------------------------------------------------


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Gives complete IoU (https://arxiv.org/abs/1911.08287) of boxes (..., 4), broadcasting."""
    eps = 1e-7
    ax0, ay0, ax1, ay1 = a.unbind(-1)
    bx0, by0, bx1, by1 = b.unbind(-1)
    aw, ah, bw, bh = ax1 - ax0, ay1 - ay0 + eps, bx1 - bx0, by1 - by0 + eps
    shared = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0) * (
        torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    ).clamp(min=0)
    iou = shared / (aw * ah + bw * bh - shared + eps)
    hull_w = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    hull_h = torch.maximum(ay1, by1) - torch.minimum(ay0, by0)
    apart = ((bx0 + bx1 - ax0 - ax1) ** 2 + (by0 + by1 - ay0 - ay1) ** 2) / 4
    shape = (4 / math.pi**2) * (torch.atan(bw / bh) - torch.atan(aw / ah)) ** 2
    with torch.no_grad():
        weight = shape / (shape - iou + 1 + eps)
    return iou - apart / (hull_w**2 + hull_h**2 + eps) - shape * weight


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, points: Tensor, rows: Tensor, best: int = 10) -> tuple[Tensor, Tensor]:
    """Chooses which anchor points answer for which truth.

    Args:
        scores: float32 (n, a, classes), 0..1.
        boxes: float32 (n, a, 4), predicted corners in pixels.
        points: float32 (2, a), anchor points in pixels.
        rows: float32 (n, m, 5), truths; class -1 where there is none.
        best: How many points answer for a truth at most.

    Returns:
        Wanted boxes float32 (n, a, 4) and wanted scores float32 (n, a, classes), all zero for
        points that answer for nothing.
    """
    _, a, classes = scores.shape
    real = rows[..., 0] >= 0  # (n, m)
    class_id = rows[..., 0].clamp(min=0).long()
    truth = rows[..., 1:]
    # A sliver between two points belongs to neither; it is widened for this test alone.
    middle = (truth[..., :2] + truth[..., 2:]) / 2
    reach = ((truth[..., 2:] - truth[..., :2]) / 2).clamp(min=STRIDES[0] * 0.6)
    offset = (points.t()[None, None] - middle[:, :, None]).abs()  # (n, m, a, 2)
    inside = (offset < reach[:, :, None]).all(dim=-1) & real[..., None]

    confidence = scores.transpose(1, 2).gather(1, class_id[..., None].expand(-1, -1, a))
    # Not below 0.05: a truth that no prediction fits yet still gets points that answer for it.
    overlap = ciou(truth[:, :, None], boxes[:, None]).clamp(min=0.05) * inside
    alignment = confidence.sqrt() * overlap.pow(6) * inside  # (n, m, a)

    top = alignment.topk(best, dim=2).indices
    chosen = torch.zeros_like(inside).scatter_(2, top, True) & inside
    # A point wanted by several truths goes to the one it overlaps most.
    wanted = torch.where(chosen, overlap, -1.0).argmax(dim=1)  # (n, a)
    chosen &= functional.one_hot(wanted, rows.shape[1]).transpose(1, 2).bool()
    used = chosen.any(dim=1)  # (n, a)

    alignment = alignment * chosen
    strongest = alignment.amax(dim=2, keepdim=True)
    closest = (overlap * chosen).amax(dim=2, keepdim=True)
    level = (alignment * closest / (strongest + 1e-12)).amax(dim=1)  # (n, a)

    wanted_boxes = truth.gather(1, wanted[..., None].expand(-1, -1, 4)) * used[..., None]
    wanted_class = class_id.gather(1, wanted)
    wanted_scores = functional.one_hot(wanted_class, classes) * (level * used)[..., None]
    return wanted_boxes, wanted_scores


def loss(network: Detector, raw: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """Gives the three losses, float32 (3,): box, class, distribution, each with its weight.

    Args:
        network: For its anchor points.
        raw: (n, 4 * BINS, a) box distributions.
        logits: (n, classes, a).
        rows: float32 (n, m, 5) truths.
    """
    raw, logits = raw.float(), logits.float().transpose(1, 2)
    boxes = network.corners(raw)
    goal, target = assign(logits.detach().sigmoid(), boxes.detach(), network.points, rows)
    weight = target.sum(dim=2)  # (n, a)
    total = weight.sum().clamp(min=1.0)

    # All points are computed and most weighted with zero: picking them out would make the
    # processor wait for the GPU at every step.
    box = ((1 - ciou(boxes, goal)) * weight).sum() / total
    score = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / total

    low = (network.points.t() - goal[..., :2]) / network.steps[:, None]
    high = (goal[..., 2:] - network.points.t()) / network.steps[:, None]
    far = torch.cat([low, high], dim=2).clamp(0, BINS - 1.01)  # (n, a, 4)
    lower = far.floor()
    share = (far - lower).transpose(1, 2)[:, :, None]  # (n, 4, 1, a)
    index = lower.long().transpose(1, 2)[:, :, None]
    logp = raw.reshape(len(raw), 4, BINS, -1).log_softmax(dim=2)
    spread = -(logp.gather(2, index) * (1 - share) + logp.gather(2, index + 1) * share)
    distribution = (spread.mean(dim=(1, 2)) * weight).sum() / total
    return torch.stack([7.5 * box, 0.5 * score, 1.5 * distribution])


# --- validation -------------------------------------------------------------------------------


@torch.no_grad()
def predict(model: nn.Module, store: Store, count: int, iou: float, batch: int = 125) -> list[np.ndarray]:
    """Gives what the exported layout holds after suppression, best 300 points a picture.

    Args:
        model: An ``Exported``.
        store: The pictures.
        count: How many of them, from the first.
        iou: Overlap above which the weaker of two boxes of one class is dropped.
        batch: Pictures at a time.

    Returns:
        For each picture float64 (k, 6): class id, score, x0, y0, x1, y1 in input pixels.
    """
    found: list[np.ndarray] = []
    device = store.pictures.device
    for start in range(0, count, batch):
        picture, _ = store.get(torch.arange(start, min(count, start + batch), device=device))
        output = model(picture.float() / 255)
        score, class_id = output[:, 4:].max(dim=1)
        score, order = score.topk(min(300, score.shape[1]), dim=1)
        class_id = class_id.gather(1, order)
        box = output[:, :4].gather(2, order[:, None].expand(-1, 4, -1)).transpose(1, 2)
        box = torch.cat([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], dim=2)
        a, b = box[:, :, None], box[:, None]
        size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0)
        shared = size.prod(dim=-1)
        area = (box[..., 2:] - box[..., :2]).prod(dim=-1)
        same = class_id[:, :, None] == class_id[:, None]
        clash = (shared > iou * (area[:, :, None] + area[:, None] - shared)) & same
        keep = score > 0.001
        for k in range(keep.shape[1] - 1):
            keep[:, k + 1 :] &= ~(clash[:, k, k + 1 :] & keep[:, k : k + 1])
        table = torch.cat([class_id[..., None].float(), score[..., None], box], dim=2)
        table_cpu, keep_cpu = table.cpu().double().numpy(), keep.cpu().numpy()
        found += [rows[kept] for rows, kept in zip(table_cpu, keep_cpu, strict=True)]
    return found


def validate(network: Detector, store: Store, count: int, iou: float) -> dict[str, Any]:
    """Gives the report of ``metrics.evaluate`` for the first ``count`` scenes of the store."""
    found = predict(Exported(network), store, count, iou)
    rows = store.rows[:count].cpu().double().numpy()
    truths = {str(k): [tuple(r) for r in rows[k] if r[0] >= 0] for k in range(count)}
    detections = {str(k): found[k] for k in range(count)}
    return metrics.evaluate(detections, truths, scenes.LABELS)


# --- export -----------------------------------------------------------------------------------


def export(network: Detector, path: Path) -> dict[str, Any]:
    """Writes the ONNX file and checks it against PyTorch with ONNX Runtime.

    Args:
        network: On any device; a copy is exported from the CPU in float32.
        path: File to write.

    Returns:
        ``onnx_bytes``, ``opset``, ``operators`` and ``largest_difference`` (scores and boxes).

    Raises:
        RuntimeError: The file is too large, holds an operator it should not, or disagrees.
    """
    import onnx
    import onnxruntime

    model = Exported(network).cpu().float().eval()
    dummy = torch.zeros(1, 3, network.side, network.side)
    torch.onnx.export(
        model,
        (dummy,),
        str(path),
        dynamo=False,
        opset_version=13,
        do_constant_folding=True,
        input_names=["images"],
        output_names=["output0"],
        dynamic_axes={"images": {0: "batch"}, "output0": {0: "batch"}},
    )
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph, full_check=True)
    operators = sorted({node.op_type for node in graph.graph.node})
    unwelcome = {"NonMaxSuppression", "If", "Loop", "Shape", "BatchNormalization"} & set(operators)
    if unwelcome:
        raise RuntimeError(f"the graph holds {sorted(unwelcome)}")
    size = path.stat().st_size
    if size > MAX_ONNX_BYTES:
        raise RuntimeError(f"{path} has {size} bytes, more than {MAX_ONNX_BYTES}")

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (1, 3):
        images = torch.rand(batch, 3, network.side, network.side)
        with torch.no_grad():
            expected = model(images).numpy()
        (actual,) = session.run(["output0"], {"images": images.numpy()})
        if actual.shape != expected.shape:
            raise RuntimeError(f"shape {actual.shape}, expected {expected.shape}")
        # Boxes are in pixels, some hundreds: their part is compared relative to that.
        gap = np.abs(actual - expected)
        gap[:, :4] /= network.side
        worst = max(worst, float(gap.max()))
    if not worst <= 1e-4:
        raise RuntimeError(f"ONNX Runtime differs from PyTorch by {worst}")
    return {
        "onnx_bytes": size,
        "opset": 13,
        "operators": operators,
        "largest_difference": worst,
    }


def model_card(side: int, score: float, iou: float) -> dict[str, Any]:
    """Gives the model card that edgeapp reads."""
    return {
        "schema": 1,
        "name": "parts",
        "task": "detect",
        "labels": list(scenes.LABELS),
        "size_wh": [side, side],
        "resize": "letterbox",
        "antialias": True,
        "color_order": "RGB",
        "layout": "NCHW",
        "scale": 0.00392156862745098,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "pad_value": PAD_VALUE,
        "head": "yolov8",
        "score_threshold": score,
        "iou_threshold": iou,
        "max_detections": 100,
    }


# --- training ---------------------------------------------------------------------------------


class Log:
    """Prints lines and keeps them in a file, each with the minutes since the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_text("", encoding="utf-8")

    def __call__(self, text: str) -> None:
        line = f"[{(time.monotonic() - STARTED) / 60:6.2f} min] {text}"
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as out:
            out.write(line + "\n")


class Average:
    """The network with its weights averaged over the last steps (EMA), faster at first.

    Attributes:
        network: The averaged network, in evaluation mode.
    """

    def __init__(self, network: Detector) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._slow = [t for t in self.network.state_dict().values() if t.is_floating_point()]
        self._fast = [t for t in network.state_dict().values() if t.is_floating_point()]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        decay = 0.9995 * (1 - math.exp(-step / 800))
        torch._foreach_lerp_(self._slow, self._fast, 1 - decay)


def train(args: argparse.Namespace) -> None:
    """Starts the drawing, then trains, validates and writes everything into ``args.out``."""
    args.out.mkdir(parents=True, exist_ok=True)
    log = Log(args.out / "train.log")
    drawn = list(range(TRAIN_SEED, TRAIN_SEED + args.scenes))
    kept = [] if args.overfit else list(range(CHECK_SEED, CHECK_SEED + args.check_scenes))
    workers = args.workers or max(1, len(os.sched_getaffinity(0)) - 1)
    # Before anything touches CUDA: a forked process must not inherit a CUDA context.
    studio = Studio([kept, drawn], args.side, workers)
    try:
        _train(args, log, studio, len(kept))
    finally:
        studio.close()


def _train(args: argparse.Namespace, log: Log, studio: Studio, kept: int) -> None:
    """Does the work of ``train`` while the workers draw.

    Args:
        args: The command line.
        log: Where progress goes.
        studio: Draws ``kept`` scenes for validation first, then ``args.scenes`` to train on.
        kept: 0: validate on the scenes trained on.
    """
    budget_s = args.minutes * 60
    deadline = STARTED + budget_s - min(RESERVE_S, budget_s * 0.3)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    # Half precision for the pixels alone: they hold 8 bits, and recolouring is bound by memory.
    number = torch.float16 if on_gpu else torch.float32
    gpu_name = torch.cuda.get_device_name(device) if on_gpu else "none (CPU)"
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    network = Detector(len(scenes.LABELS), args.side).to(device)
    if on_gpu:
        network = network.to(memory_format=torch.channels_last)
    average = Average(network)
    parameters = sum(p.numel() for p in network.parameters())
    log(f"{gpu_name}, torch {torch.__version__}, {parameters} parameters, side {args.side}")

    store = Store(args.scenes, args.side, device)
    check = Store(kept, args.side, device) if kept else store

    def fetch() -> None:
        for first, pictures, rows in studio.take():
            (check if first < kept else store).add(pictures, rows)

    enough = min(args.scenes, args.batch * 8)
    while store.count < enough or (kept and check.count < kept):
        fetch()
        time.sleep(0.05)
        if time.monotonic() > deadline:
            raise RuntimeError("the budget was over before enough scenes were drawn")
    log(f"first {store.count} scenes drawn, {check.count} to validate on; training starts")

    decayed = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.03}, {"params": plain, "weight_decay": 0.0}],
        lr=args.rate,
        betas=(0.9, 0.99),
        fused=on_gpu,
    )
    began = time.monotonic()
    span = max(1.0, deadline - began)
    step, seen, drawn_at = 0, 0, None
    history: list[dict[str, float]] = []
    marks = [0.25, 0.5, 0.75]
    spoke = began
    network.train()
    while True:
        progress = (time.monotonic() - began) / span
        if progress >= 1 and step:
            break
        rate = args.rate * min(1.0, (step + 1) / args.warmup)
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(store.count, (args.batch,), device=device)
        picture, rows = store.get(index)
        if args.overfit:
            picture = picture.to(number) / 255
        else:
            picture, rows = augment(picture, rows)
            picture = recolour(picture.to(number) / 255)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
            raw, logits = network(picture.contiguous(memory_format=torch.channels_last))
        parts = loss(network, raw, logits, rows)
        optimizer.zero_grad(set_to_none=True)
        parts.sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        step += 1
        seen += args.batch
        average.follow(step)

        if step % 20 == 0:
            # Waits for the GPU, so that the clock above tells the truth.
            box, score, spread = parts.tolist()
            if not math.isfinite(box + score + spread):
                raise RuntimeError(f"the loss is not finite at step {step}")
            if store.count < args.scenes:
                fetch()
                if store.count == args.scenes:
                    drawn_at = (time.monotonic() - STARTED) / 60
                    log(f"all {store.count} scenes drawn")
            if time.monotonic() - spoke > 10 or step == 20:
                spoke = time.monotonic()
                log(
                    f"step {step}, {progress:.0%}, {store.count} scenes, rate {rate:.2e}, "
                    f"box {box:.3f}, class {score:.3f}, distribution {spread:.3f}, "
                    f"{seen / (spoke - began):.0f} pictures/s"
                )
        if marks and progress > marks[0] and not args.overfit:
            marks.pop(0)
            report = validate(average.network, check, min(256, check.count), 0.6)
            history.append(
                {
                    "progress": round(progress, 3),
                    "step": step,
                    "mAP50_256_scenes": report["mAP50"],
                    "mAP50_95_256_scenes": report["mAP50_95"],
                }
            )
            log(f"on 256 scenes: mAP50 {report['mAP50']}, mAP50-95 {report['mAP50_95']}")

    trained_min = (time.monotonic() - began) / 60
    log(f"trained {step} steps, {seen / store.count:.1f} epochs of {store.count} scenes")
    reports = {iou: validate(average.network, check, check.count, iou) for iou in (0.5, 0.6, 0.7)}
    iou = max(reports, key=lambda k: reports[k]["mAP50_95"] or 0.0)
    report = reports[iou]
    for key, value in reports.items():
        log(f"suppression at IoU {key}: mAP50 {value['mAP50']}, mAP50-95 {value['mAP50_95']}")
    exported = export(average.network, args.out / "model.onnx")
    log(f"model.onnx: {exported}")
    # The threshold with the best F1, on a step of 0.05.
    score = min(0.6, max(0.2, round(report["best_f1_score"] * 20) / 20))
    card = model_card(args.side, score, iou)
    (args.out / "model.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    training = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "gpu": gpu_name,
        "torch": torch.__version__,
        "parameters": parameters,
        "side": args.side,
        "scenes": store.count,
        "scenes_drawn_at_min": drawn_at,
        "first_train_seed": TRAIN_SEED,
        "check_scenes": check.count,
        "first_check_seed": TRAIN_SEED if args.overfit else CHECK_SEED,
        "batch": args.batch,
        "steps": step,
        "epochs": round(seen / store.count, 2),
        "pictures_per_s": round(seen / trained_min / 60, 1),
        "train_min": round(trained_min, 3),
        "total_min": round((time.monotonic() - STARTED) / 60, 3),
        "mAP50": report["mAP50"],
        "mAP50_95": report["mAP50_95"],
        "best_f1": report["best_f1"],
        "best_f1_score": report["best_f1_score"],
        "per_class": report["per_class"],
        "history": history,
        **exported,
    }
    (args.out / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    for label, values in report["per_class"].items():
        log(f"{label:8s} AP50 {values['AP50']}, AP50-95 {values['AP50_95']}")
    log(f"mAP50 {report['mAP50']}, mAP50-95 {report['mAP50_95']}; written to {args.out}")


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description="Train the demo's detector on drawn scenes.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=7.0, help="budget for the whole run")
    parser.add_argument("--scenes", type=int, default=60_000, help="scenes to train on")
    parser.add_argument("--check-scenes", type=int, default=1_000, help="scenes to validate on")
    parser.add_argument("--side", type=int, default=416, help="network input side, times of 32")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=300, help="steps up to that rate")
    parser.add_argument("--workers", type=int, default=0, help="drawing processes; 0: cores - 1")
    parser.add_argument(
        "--overfit",
        action="store_true",
        help="validate on the scenes trained on, unaugmented: proves the training code",
    )
    args = parser.parse_args()
    if args.side % 32 or args.scenes < 1 or args.check_scenes < 1:
        parser.error("--side must be a multiple of 32, the counts at least 1")
    train(args)


if __name__ == "__main__":
    main()
