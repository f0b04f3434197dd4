"""A small dense detector (FCOS, arXiv 1904.01355) that learns from scratch on CPU within minutes.

Anchor-free: every cell of three feature maps (strides 8, 16, 32) predicts class scores and the distances to the four
sides of a box. Positives are chosen by task alignment (TOOD, arXiv 2108.07755), the score learns the IoU of its own box
(varifocal loss, arXiv 2008.13367), and boxes learn by GIoU, so no centre-ness branch is needed.

Shape letters: B images, N target boxes (padded), A cells over all levels, C classes, S input side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (8, 16, 32)
TOP_K = 9  # positive cells a box at most
ALPHA, BETA = 0.5, 4.0  # exponents of score and IoU in the alignment metric
PRIOR = 0.01  # initial score of every class everywhere (RetinaNet, arXiv 1708.02002)
BOX_WEIGHT = 2.5


class Targets(NamedTuple):
    """What a batch should find; rows with label -1 are padding."""

    boxes: Tensor  # (B, N, 4) xyxy in [0, 1] of the input square
    labels: Tensor  # (B, N) int64, -1 where padded
    weights: Tensor  # (B, N) probability that the box is right, multiplies its loss
    ignore: Tensor  # (B, N) bool: neither a positive nor a negative; inside it nothing is learned


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if act else nn.Sequential(*layers)


class Residual(nn.Module):
    """Two dense 3x3 convolutions around a shortcut: on CPU they train and quantise better than depthwise ones."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, act=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNetBody(nn.Module):
    """Stem (stride 2) and four residual stages; returns the maps of strides 8, 16 and 32."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stem = conv_bn(3, widths[0], 3, 2)
        self.stages = nn.ModuleList()
        for index, depth in enumerate(depths):
            width = widths[index + 1]
            blocks = [Residual(widths[index] if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
        self.channels = tuple(widths[2:])

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]


class MobileNetBody(nn.Module):
    """torchvision's MobileNetV3-small cut at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v3_small

        features = mobilenet_v3_small().features
        self.stages = nn.ModuleList([features[:4], features[4:9], features[9:12]])
        self.channels = (24, 48, 96)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Tower(nn.Module):
    """Convolutions shared by the three levels, each level with its own batch statistics (as in NAS-FPN's heads)."""

    def __init__(self, width: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(convs)])
        self.norms = nn.ModuleList([nn.ModuleList([nn.BatchNorm2d(width) for _ in STRIDES]) for _ in range(convs)])

    def forward(self, x: Tensor, level: int) -> Tensor:
        for conv, norms in zip(self.convs, self.norms, strict=True):
            x = F.relu(norms[level](conv(x)))  # type: ignore[index]
        return x


class Fcos(nn.Module):
    """Backbone, top-down pyramid and a head shared by the three levels.

    Args:
        body: returns three maps of strides 8, 16, 32 and tells their `channels`.
        classes: number of classes C.
        width: channels of pyramid and head.
        convs: convolutions of each of the two head towers.

    The side S of its images may be any multiple of 32, from call to call.
    """

    def __init__(self, body: nn.Module, classes: int, width: int, convs: int) -> None:
        super().__init__()
        self.body = body
        self.lateral = nn.ModuleList([conv_bn(c, width, 1, act=False) for c in body.channels])  # type: ignore[union-attr]
        self.smooth = nn.ModuleList([conv_bn(width, width) for _ in STRIDES])
        self.class_tower = Tower(width, convs)
        self.box_tower = Tower(width, convs)
        self.class_out = nn.Conv2d(width, classes, 1)
        self.box_out = nn.Conv2d(width, 4, 1)
        self.scale = nn.Parameter(torch.zeros(len(STRIDES), 4))
        nn.init.normal_(self.class_out.weight, std=0.01)
        nn.init.constant_(cast("Tensor", self.class_out.bias), -torch.logit(torch.tensor(1 - PRIOR)).item())
        nn.init.normal_(self.box_out.weight, std=0.01)
        nn.init.constant_(cast("Tensor", self.box_out.bias), 0.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S) in [0, 1] -> logits (B, A, C), boxes (B, A, 4) xyxy in [0, 1] units, cells (A, 3)."""
        # 4 x - 1.8 centres ordinary pixels and gives them a deviation of about one.
        maps = [lateral(m) for lateral, m in zip(self.lateral, self.body(images * 4.0 - 1.8), strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2.0, mode="nearest")
        logits, distances = [], []
        for level in range(len(STRIDES)):
            x = self.smooth[level](F.relu(maps[level]))
            logits.append(self.class_out(self.class_tower(x, level)).flatten(2).transpose(1, 2))
            raw = self.box_out(self.box_tower(x, level)).flatten(2).transpose(1, 2).float()
            # Bounded, so that a wild cell cannot overflow.
            distances.append((raw + self.scale[level]).clamp(-6, 6))
        cells = torch.cat([cell_centres(m.shape[-1], images.device) for m in maps])
        reach = torch.cat(distances, 1).exp() * (2 * cells[:, 2:])  # twice the cell's side at the start
        centres = cells[:, :2]
        boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], -1)
        return torch.cat(logits, 1).float(), boxes, cells

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes, _ = self(images)
        return boxes.clamp(0, 1), logits.sigmoid()


def cell_centres(count: int, device: torch.device) -> Tensor:
    """Centres of a `count` x `count` grid -> (count², 3): x, y and the cell's side, all in [0, 1] units."""
    line = (torch.arange(count, dtype=torch.float32, device=device) + 0.5) / count
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten(), torch.full_like(x, 1.0).flatten() / count], 1)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of boxes (..., 4) that broadcast against each other."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    area = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    union = area - overlap + 1e-9
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1) + 1e-9
    return overlap / union, overlap / union - (hull - union) / hull


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, cells: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Which target each cell should learn.

    Returns:
        matched (B, A) index of the target, quality (B, A) in [0, 1] (0 where the cell is background), and
        silent (B, A) True where a background cell lies in an ignored box.
    """
    live = (targets.labels >= 0) & ~targets.ignore  # (B, N)
    low, high = targets.boxes[:, :, None, :2], targets.boxes[:, :, None, 2:]
    centre, half = (low + high) / 2, (high - low) / 2
    # A box smaller than a cell would hold no centre: it is seen at least one cell wide.
    reach = torch.maximum(half, cells[:, 2:] * 0.55)
    inside = ((cells[:, :2] - centre).abs() < reach).all(-1)  # (B, N, A)
    silent = (inside & targets.ignore[:, :, None]).any(1)
    classes = targets.labels.clamp(min=0)[:, None, :].expand(-1, logits.shape[1], -1)
    score = logits.sigmoid().gather(2, classes).transpose(1, 2)  # (B, N, A)
    iou = iou_and_giou(boxes[:, None], targets.boxes[:, :, None])[0]
    # The nearness term breaks the ties of an untrained net, whose boxes all overlap poorly.
    nearness = 1 - ((cells[:, :2] - centre).abs() / reach).amax(-1).clamp(max=1)
    metric = (score**ALPHA * (iou + 0.05 * nearness) ** BETA + 1e-12) * (inside & live[:, :, None])
    cut = metric.topk(min(TOP_K, metric.shape[2]), dim=2).values[..., -1:]
    metric = metric * (metric >= cut)
    best, matched = metric.max(1)  # a cell wanted by two boxes goes to the better aligned one
    won = (best > 0)[:, None] & (matched[:, None] == torch.arange(live.shape[1], device=best.device)[:, None])
    metric = metric * won
    # Per target, the best cell's quality is its IoU and the others follow in proportion (TOOD, eq. 4).
    peak = metric.amax(2, keepdim=True)
    quality = metric / (peak + 1e-12) * (iou * won).amax(2, keepdim=True).clamp(min=0.05)
    return matched, quality.amax(1) * (best > 0), silent


def fcos_loss(logits: Tensor, boxes: Tensor, cells: Tensor, targets: Targets) -> Tensor:
    """Varifocal classification plus GIoU, both weighted by target and by quality; a scalar."""
    if targets.boxes.shape[1] == 0:
        return (logits.sigmoid().square() * F.softplus(logits)).sum() * 0.75
    matched, quality, silent = assign(logits, boxes, cells, targets)
    positive = quality > 0
    labels = targets.labels.gather(1, matched)
    weights = targets.weights.gather(1, matched)
    wanted = torch.zeros_like(logits).scatter_(2, labels.clamp(min=0)[..., None], (quality * positive)[..., None])
    focus = torch.where(wanted > 0, wanted * weights[..., None], 0.75 * logits.detach().sigmoid().square())
    focus = focus * ~(silent & ~positive)[..., None]
    total = quality.sum().clamp(min=1)
    classification = (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * focus).sum() / total
    rows = positive.nonzero(as_tuple=True)
    goal = targets.boxes.gather(1, matched[..., None].expand(-1, -1, 4))[rows]
    giou = iou_and_giou(boxes[rows], goal)[1]
    return classification + BOX_WEIGHT * ((1 - giou) * quality[rows] * weights[rows]).sum() / total
