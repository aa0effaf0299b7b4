"""resnet.py - the recipe in PyTorch: the network as published, the batch, the loss, the data.

Why: "it agrees with PyTorch" is only worth something against a PyTorch program that a reader can
check at a glance. This is that program. golden.py computes with it the numbers that `make check`
compares with, replay.py holds a run of ours against it step by step. Neither is needed to build, to
train or to check.

The network is ResNet-18 as usual for CIFAR-10 (He et al. 2016; a 3x3 stem, no max pool), with the
names of github.com/kuangliu/pytorch-cifar, so that state dictionaries go from one to the other.
`width` is the number of channels of the first stage: 64 gives the published 11,173,962 parameters.

How to run: import it; it needs only PyTorch. `python3 tests/resnet.py` prints the parameter counts.
"""

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

CLASSES = 10
SIDE = 32
PADDING = 4
IMAGE_BYTES = 3 * SIDE * SIDE
TRAIN_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]
TEST_FILES = ["test_batch.bin"]


# -- The network -----------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    def __init__(self, in_planes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )
        self.relu = nn.ReLU()

    def forward(self, x):  # [B][in_planes][H][W] -> [B][planes][H / stride][W / stride]
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self.stage(width, width, stride=1)
        self.layer2 = self.stage(width, 2 * width, stride=2)
        self.layer3 = self.stage(2 * width, 4 * width, stride=2)
        self.layer4 = self.stage(4 * width, 8 * width, stride=2)
        self.linear = nn.Linear(8 * width, CLASSES)
        self.relu = nn.ReLU()

    @staticmethod
    def stage(in_planes, planes, stride):
        return nn.Sequential(BasicBlock(in_planes, planes, stride), BasicBlock(planes, planes, 1))

    def forward(self, x):  # [B][3][32][32] -> logits [B][10]
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.avg_pool2d(out, 4).flatten(1))


# -- A batch ---------------------------------------------------------------------------------------


def augment(images, crop, flip):
    """Pads bytes [B][3][32][32] with zeros, crops at each (dy, dx) of 0..8, then flips where 1."""
    padded = F.pad(images, [PADDING] * 4)
    crops = [x[:, dy : dy + SIDE, dx : dx + SIDE] for x, (dy, dx) in zip(padded, crop)]
    return torch.stack([x.flip(2) if f else x for x, f in zip(crops, flip)])


def mixed_batch(images, labels, step, dtype):
    """The input and both labels of a step that a trace describes.

    images: bytes [N][3][32][32], labels: [N]. step["index"] are image numbers, step["partner"]
    positions in the batch: a partner brings its own crop and flip.
    """
    partner = step["partner"]
    x = augment(images[step["index"]], step["crop"], step["flip"]).to(dtype) / 255
    own = labels[step["index"]].long()
    return step["lambda"] * x + (1 - step["lambda"]) * x[partner], own, own[partner]


# -- The loss --------------------------------------------------------------------------------------


def smoothed_cross_entropy(logits, label, smoothing):
    """Mean over the batch. The true class gets 1 - s, each other s / (C - 1): not what PyTorch's
    own label_smoothing does, which gives every class s / C and the true one 1 - s besides."""
    target = torch.full_like(logits, smoothing / (CLASSES - 1))
    target.scatter_(1, label[:, None], 1 - smoothing)
    return -(target * F.log_softmax(logits, dim=1)).sum(1).mean()


def mixed_loss(logits, own, other, lam, smoothing):
    return lam * smoothed_cross_entropy(logits, own, smoothing) + (
        1 - lam
    ) * smoothed_cross_entropy(logits, other, smoothing)


def count_correct(logits, own, other, lam):
    """How many images of the batch the network gets right, each label counting by its weight."""
    best = logits.argmax(1)
    return lam * (best == own).sum().item() + (1 - lam) * (best == other).sum().item()


# -- A step ----------------------------------------------------------------------------------------


def make_optimiser(model, settings, momentum=None):
    """SGD as the recipe has it; momentum: name -> tensor to go on from, or None at the start."""
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=settings["lr"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    for name, parameter in model.named_parameters() if momentum else []:
        optimiser.state[parameter]["momentum_buffer"] = momentum[name].to(parameter.dtype).clone()
    return optimiser


def train_step(model, optimiser, images, labels, step, smoothing, bf16=False):
    """One step of the recipe; gradients stay in the parameters. Returns logits, loss, correct.
    bf16: the network under torch.autocast, weights and loss in float32."""
    model.train()
    x, own, other = mixed_batch(images, labels, step, model.conv1.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(x)
    logits = logits.to(x.dtype)
    loss = mixed_loss(logits, own, other, step["lambda"], smoothing)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    correct = count_correct(logits, own, other, step["lambda"])
    return logits.detach(), loss.item(), correct


def read_momentum(model, optimiser):
    """name -> the optimiser's velocity v."""
    return {n: optimiser.state[p]["momentum_buffer"] for n, p in model.named_parameters()}


# -- CIFAR-10's binary files -----------------------------------------------------------------------


def read_cifar(directory, names):
    """Images [N][3][32][32] and labels [N], bytes, of the files together, in order. A record is the
    label and then the red, the green and the blue plane; a file may have any number of them."""
    data = b"".join((Path(directory) / name).read_bytes() for name in names)
    if not data or len(data) % (1 + IMAGE_BYTES):
        raise ValueError(f"{directory}: {len(data)} bytes are not whole records of CIFAR-10")
    records = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, 1 + IMAGE_BYTES)
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0]


if __name__ == "__main__":
    for width in (8, 16, 64):
        count = sum(p.numel() for p in ResNet18(width).parameters())
        print(f"width {width}: {count:,} parameters")
