"""replay.py - does PyTorch do what ./train did? Replays a traced run, each step from equal states.

Why not train both and compare the curves: training is chaotic. Two runs of PyTorch itself that
differ in nothing but memory format, and so in the order of their sums, agree in the first loss to
seven digits and after ten steps to one or two. So this program loads the state before step k as
./train left it, does step k on the images, crops, partners and lambda of the trace, and compares
what comes out with what ./train had after step k. An error can then neither grow nor hide.

What is compared, for every step of which the states before and after were kept:

    loss         relative difference
    correct      equal, but for images whose two best logits differ by rounding only
    momentum     every tensor: norm of the difference / norm. With zero momentum before it this is
                 the gradient and weight decay; later it is nine parts old, one part new
    weights      every tensor: norm of the difference / norm of the step's change, and / norm
    update       every tensor against its old self - lr * ./train's own new momentum, / norm:
                 exact but for rounding
    statistics   running means and variances, as weights; and num_batches_tracked

and after an epoch test_loss and test_accuracy. Differences are printed with a yardstick in
brackets: how far PyTorch is from itself when it does the step in the memory format channels_last.

A correct program may be further away, because of ReLU's edge: an activation so close to zero that
rounding decides its sign lets a gradient through or stops it, and one such path can change a small
tensor by a percent. So the step is done twice more, with all of these paths open and with all of
them shut, and what lies between is no error. Loss and statistics have no such edge, the forward
pass being continuous. The first steps have the widest edges: replay ten or more, later steps show
an error of a part in a thousand.

A device that keeps activations in bf16 (cuda, simt, cpu-bf16) has its own yardstick: PyTorch with weights,
activations and their gradients rounded to bf16 where the device rounds them. Rounding is no error,
but may not move a result further from float32's than it moves PyTorch's, times YARDSTICKS.

How to run, with torch and safetensors installed; at width 16 about two seconds a step:

    ./train --device cpu --width 16 --epochs 1 --train-images 5120 \\
        --checkpoint /tmp/run --keep-every 1 --trace /tmp/run.jsonl
    python3 tests/replay.py /tmp/run.jsonl /tmp/run

    python3 tests/replay.py TRACE CHECKPOINT_DIR [--data DIR] [--init FILE] [--steps N]

--init is the file that ./train was given as its --init: the state before step 1, which is otherwise
left out. --data overrides the trace's directory. Exit status 1 if anything differs by more than the
limits below, or if there was nothing to compare.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from resnet import (
    TEST_FILES,
    TRAIN_FILES,
    ResNet18,
    make_optimiser,
    read_cifar,
    read_momentum,
    smoothed_cross_entropy,
    train_step,
)

LOSS_LIMIT = 1e-5
LIMITS = {"momentum": 1e-3, "weights": 1e-3, "statistics": 1e-4}
YARDSTICKS = 3  # ... or so many yardsticks, where that is more
SPANS = 1.5  # ... or so many times from all paths on the edge open to all shut
EDGE = 5e-5  # activations this close to zero, relative to their tensor's rms, are on the edge
TIE = 1e-4  # two logits this close, relative to the largest, may change places


# -- States ----------------------------------------------------------------------------------------


def load_state(directory, step, init, width):
    """{"weights", "statistics", "momentum"}: name -> tensor after that step; None if not kept."""
    path = directory / f"step-{step:06d}.safetensors"
    resume = directory / f"step-{step:06d}.resume.safetensors"
    if step == 0 and init:
        path, resume = init, None
    elif not (path.exists() and resume.exists()):
        return None
    model = ResNet18(width)
    model.load_state_dict(load_file(path), strict=True)  # exactly PyTorch's names and shapes
    momentum = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    if resume:
        stored = load_file(resume)
        momentum = {n: stored["momentum." + n] for n in momentum}
    return state_of(model, momentum)


def state_of(model, momentum):
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters()}
    statistics = {n: b.float() for n, b in model.named_buffers()}
    return {"weights": weights, "statistics": statistics, "momentum": momentum}


class EdgeReLU(torch.nn.Module):
    """ReLU, but its gradient passes where x is above `edge` instead of above zero."""

    def __init__(self, edge):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        passes = x > self.edge * x.detach().square().mean().sqrt()
        return x.relu().detach() + passes * (x - x.detach())


class Round(torch.autograd.Function):
    """To bf16 and back, forward; and its gradient, backward."""

    @staticmethod
    def forward(_, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(_, gradient):
        return gradient.bfloat16().float()


def round_model(model):
    """Rounds where a bf16 device stores: inputs and outputs of convolutions and the linear layer,
    their weights (whose gradients stay float), outputs of ReLU and of a shortcut's norm."""

    def rounded(weight):
        return weight + (weight.bfloat16().float() - weight).detach()

    def convolve(m):
        return lambda x: Round.apply(
            F.conv2d(Round.apply(x), rounded(m.weight), None, m.stride, m.padding)
        )

    for name, m in model.named_modules():
        if isinstance(m, torch.nn.Conv2d):
            m.forward = convolve(m)
        elif isinstance(m, torch.nn.Linear):
            m.forward = lambda x, m=m: F.linear(Round.apply(x), rounded(m.weight), m.bias)
        elif isinstance(m, torch.nn.ReLU) or name.endswith("shortcut.1"):
            m.register_forward_hook(lambda _, inputs, output: Round.apply(output))


def torch_model(state, width, rounded=False):
    model = ResNet18(width)
    model.load_state_dict({**state["weights"], **state["statistics"]})
    if rounded:
        round_model(model)
    return model


def torch_step(before, step, width, data, memory_format=torch.contiguous_format, edge=None,
               rounded=False):
    """Step by PyTorch from that state -> the state after it, logits, loss, correct."""
    model = torch_model(before, width, rounded).to(memory_format=memory_format)
    for module in model.modules():
        if edge and hasattr(module, "relu"):
            module.relu = EdgeReLU(edge)
    optimiser = make_optimiser(model, step, before["momentum"])
    outcome = train_step(model, optimiser, *data, step, step["smoothing"])
    momentum = {n: v.contiguous() for n, v in read_momentum(model, optimiser).items()}
    return state_of(model, momentum), *outcome


# -- Comparing -------------------------------------------------------------------------------------


class Record:
    """What was compared: by kind, (difference, yardstick, where); and what was over its limit."""

    def __init__(self):
        self.seen = {}
        self.failures = 0
        self.bf16 = False  # the device's format

    def note(self, kind, difference, yardstick, where):
        self.seen.setdefault(kind, []).append((float(difference), float(yardstick), where))

    def demand(self, ok, text):
        if not ok:
            self.failures += 1
            print("  DIFFERS:", text)

    def print(self):
        print("\nlargest difference of each kind (yardstick), and the one most times its yardstick")
        for kind, seen in self.seen.items():
            print(f"  {kind:15} {show(largest(seen))}")
            print(f"  {'':15} {show(max(seen, key=times))}")
        # How often did the edges have to explain a difference? Without them, these would not agree.
        seen = self.seen.get("momentum", [])
        beyond = [one for one in seen if one[0] > LIMITS["momentum"]]
        edges = [one for one in beyond if not one[0] <= YARDSTICKS * one[1]]
        print(
            f"\n{len(seen)} momentum tensors: {len(beyond)} differ by more than "
            f"{LIMITS['momentum']}, {len(edges)} of them by more than {YARDSTICKS} yardsticks"
        )


def largest(seen):
    return max(seen, key=lambda one: math.inf if math.isnan(one[0]) else one[0])


def times(one):
    return one[0] / one[1] if one[1] else 0.0  # no yardstick to measure with


def show(one):
    difference, yardstick, where = one
    return f"{difference:7.1e} ({yardstick:7.1e}, {times(one):6.2f} times)  {where}"


def compare_tensors(record, kind, label, before, ours, torchs, variants):
    """Every tensor of a kind, ours against PyTorch's. Returns the largest difference."""
    for name, t in torchs[kind].items():
        other, opened, shut = (variant[kind][name] for variant in variants)
        norm, error = t.norm(), (ours[kind][name] - t).norm()
        yardstick, span = (other - t).norm(), (opened - shut).norm()
        scale = norm if kind == "momentum" else (t - before[kind][name]).norm()
        limit = max(LIMITS[kind] * scale, YARDSTICKS * yardstick, SPANS * span)
        limit += 2**-23 * norm  # both programs rounded when they added the change
        where = f"{label} {name}"
        text = f"{kind} of {where}: {error / scale:.1e}, limit {limit / scale:.1e}"
        record.demand(error <= limit, text)
        record.note(kind, error / scale, yardstick / scale, where)
        if kind == "weights":
            record.note("weights / norm", error / norm, yardstick / norm, where)
    return largest(record.seen[kind][-len(torchs[kind]) :])


def compare_update(record, label, lr, before, ours):
    """The optimiser's last line, w -= lr v, on ./train's own v: no edge to hide behind."""
    for name, new in ours["weights"].items():
        change = lr * ours["momentum"][name].double()
        error = (new - (before["weights"][name].double() - change)).norm()
        where = f"{label} {name}"
        limit = 2**-23 * (new.norm() + change.norm())  # a product and a sum, each rounded once
        record.demand(error <= limit, f"update of {where}: {error:.1e}, limit {limit:.1e}")
        record.note("update", error / new.norm(), 0, where)


def near_ties(logits, other):
    """How many images' best class is a matter of rounding, of which `other` is an example."""
    top, edge = logits.topk(2).values, YARDSTICKS * (logits - other).abs().max()
    return (top[:, 0] - top[:, 1] < max(TIE * logits.abs().max(), edge)).sum().item()


def compare_step(record, step, width, data, before, ours):
    label = f"step {step['step']}"
    torchs, logits, loss, correct = torch_step(before, step, width, data)
    other, other_logits, other_loss, _ = torch_step(
        before, step, width, data, torch.channels_last, rounded=record.bf16
    )
    variants = [other] + [
        torch_step(before, step, width, data, edge=edge)[0] for edge in (-EDGE, EDGE)
    ]
    error, yardstick = abs(step["loss"] - loss) / loss, abs(other_loss - loss) / loss
    record.note("loss", error, yardstick, label)
    line = f"{label:10} lambda {step['lambda']:.4f}  loss {loss:.5f} {error:.1e} ({yardstick:.1e})"
    for kind in LIMITS:
        worst = compare_tensors(record, kind, label, before, ours, torchs, variants)
        line += f"  {kind} {worst[0]:.1e} ({worst[1]:.1e})"
    print(line, flush=True)
    compare_update(record, label, step["lr"], before, ours)
    same = abs(step["correct"] - correct) <= near_ties(logits, other_logits) + 1e-4
    record.demand(same, f"correct of {label}: {step['correct']:.6f}, PyTorch {correct:.6f}")


def compare_epoch(record, line, step, width, test, state):
    """test_loss and test_accuracy of an epoch's line against PyTorch in evaluation mode; `step` is its last."""
    images, labels = test

    def evaluate(rounded):
        model = torch_model(state, width, rounded).eval()
        with torch.no_grad():
            logits = torch.cat([model(batch.float() / 255) for batch in images.split(100)])
        return logits, smoothed_cross_entropy(logits, labels.long(), step["smoothing"]).item()

    logits, loss = evaluate(False)
    other, other_loss = evaluate(True) if record.bf16 else (logits, loss)
    correct = (logits.argmax(1) == labels).sum().item()
    error, mine = abs(line["test_loss"] - loss) / loss, line["test_accuracy"] * len(labels)
    where = f"epoch {line['epoch']}"
    record.note("loss", error, abs(other_loss - loss) / loss, where + " test")
    text = f"loss {line['test_loss']:.9g}, PyTorch {loss:.9g} ({error:.1e}); "
    text += f"correct {mine:.2f}, PyTorch {correct}, of {len(labels)}"
    print(f"{where:11} test {text}", flush=True)
    same = abs(mine - correct) <= near_ties(logits, other) + 0.01
    record.demand(same, f"test of {where}: {text}")


def compare_losses(record):
    """At the end: one loss's own yardstick may be small by chance, so all have the largest."""
    seen = record.seen.get("loss", [])
    limit = max([LOSS_LIMIT] + [YARDSTICKS * yardstick for _, yardstick, _ in seen])
    for difference, _, where in seen:
        record.demand(difference <= limit, f"loss of {where}: {difference:.1e}, limit {limit:.1e}")


# -- The run ---------------------------------------------------------------------------------------


def replay(arguments):
    with open(arguments.trace) as file:
        settings, *lines = [json.loads(line) for line in file]
    directory, folder = arguments.data or settings["data"], arguments.checkpoints
    data = [t[: settings["train_images"]] for t in read_cifar(directory, TRAIN_FILES)]
    test = [t[: settings["test_images"]] for t in read_cifar(directory, TEST_FILES)]
    record, replayed, number, after, width = Record(), 0, 0, None, settings["width"]
    for line in lines:
        if "test_loss" in line:
            if after:
                compare_epoch(record, line, step, width, test, after)
            continue
        if replayed == arguments.steps:
            break
        before = after if line["step"] == number + 1 else None
        step, number = line, line["step"]
        record.bf16 = step["activations"] == "bf16"
        before = before or load_state(folder, number - 1, arguments.init, width)
        after = load_state(folder, number, None, width)
        if before and after:
            compare_step(record, step, width, data, before, after)
            replayed += 1
    compare_losses(record)
    record.demand(replayed > 0, "nothing was compared: no two states in a row (--keep-every 1)")
    record.print()
    verdict = f"{record.failures} differences over the limit" if record.failures else "agrees"
    print(f"\n{replayed} steps replayed: {verdict}")
    return not record.failures


def main():
    parser = argparse.ArgumentParser(description="Replays a run of ./train in PyTorch.")
    parser.add_argument("trace", help="the run's --trace file")
    parser.add_argument("checkpoints", type=Path, help="its --checkpoint directory")
    parser.add_argument("--data", help="CIFAR-10's binary files [where the trace says]")
    parser.add_argument("--init", help="the file that the run was started from")
    parser.add_argument("--steps", type=int, help="replay no more than so many")
    try:
        sys.exit(0 if replay(parser.parse_args()) else 1)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        sys.exit(f"replay.py: {problem}")


if __name__ == "__main__":
    main()
