"""learn.py - does PyTorch learn as well as ./train, from the same weights and on the same batches?

replay.py holds single steps against PyTorch, from equal states, where an error cannot hide. This is about
what they add up to: a device may be right in each step within its rounding and still learn worse, if
its errors lean to one side. So PyTorch trains in float32 from the same initial weights, on the images,
crops, partners and lambdas of a traced run, and is tested after the same epochs. The curves do not agree in
their digits, since training is chaotic; their losses and accuracies should. How far two runs of PyTorch
itself lie apart, from two seeds, is the measure for what may differ.

How to run, with torch and safetensors installed:

    python3 tests/learn.py init --width 16 --seed 1 /tmp/init.safetensors
    ./train --device cpu-bf16 --init /tmp/init.safetensors --epochs 10 --milestones 5,8 --seed 1 \\
        --checkpoint /tmp/run --trace /tmp/run.jsonl
    python3 tests/learn.py follow /tmp/run.jsonl /tmp/init.safetensors --state /tmp/torch.pt

--state keeps PyTorch's run after each epoch; the same command goes on from there. --bf16 lets PyTorch use
bf16 (torch.autocast), and --losses FILE.csv gets a row for each step.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from resnet import TEST_FILES, TRAIN_FILES, ResNet18, make_optimiser, read_cifar, train_step


def make_init(arguments):
    """PyTorch's own initial weights, as a file for ./train --init."""
    torch.manual_seed(arguments.seed)
    state = ResNet18(arguments.width).state_dict()
    save_file({name: t.contiguous() for name, t in state.items()}, arguments.file)


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch.float() / 255) for batch in images.split(100)])
    return (logits.argmax(1) == labels).float().mean().item()


def mean_loss(steps, losses):
    """Over the epoch's images: its last batch may be a short one."""
    images = [len(step["index"]) for step in steps]
    return sum(n * loss for n, loss in zip(images, losses)) / sum(images)


def epochs_of(lines):
    """The trace's lines as pairs: an epoch's steps, and the line with its test."""
    steps = []
    for line in lines:
        if "test_loss" in line:
            yield steps, line
            steps = []
        else:
            steps.append(line)


def train_epoch(model, optimiser, train, steps, arguments):
    """The steps' losses."""
    losses = []
    for step in steps:
        for name in ("lr", "momentum", "weight_decay"):
            optimiser.param_groups[0][name] = step[name]
        result = train_step(model, optimiser, *train, step, step["smoothing"], arguments.bf16)
        losses.append(result[1])
    if arguments.losses:
        with arguments.losses.open("a") as file:
            for step, loss in zip(steps, losses):
                print(step["step"], loss, sep=",", file=file)
    return losses


def follow(arguments):
    with open(arguments.trace) as file:
        settings, *lines = [json.loads(line) for line in file]
    directory = arguments.data or settings["data"]
    train = [t[: settings["train_images"]] for t in read_cifar(directory, TRAIN_FILES)]
    test = [t[: settings["test_images"]] for t in read_cifar(directory, TEST_FILES)]
    model = ResNet18(settings["width"]).to(memory_format=torch.channels_last)  # faster on a CPU
    model.load_state_dict(load_file(arguments.init), strict=True)
    optimiser, rows = make_optimiser(model, lines[0]), []
    if arguments.state and arguments.state.exists():
        kept = torch.load(arguments.state)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        rows = kept["rows"]
    of_torch = "bf16" if arguments.bf16 else "float32"
    print(f"(./train with activations in {lines[0]['activations']}, PyTorch in {of_torch})")
    print("epoch  training loss: ./train PyTorch  test accuracy, %: ./train PyTorch")
    for epoch, (steps, line) in enumerate(epochs_of(lines)):
        if epoch >= len(rows):
            losses = train_epoch(model, optimiser, train, steps, arguments)
            ours = mean_loss(steps, [step["loss"] for step in steps])
            tests = [100 * line["test_accuracy"], 100 * accuracy(model, *test)]
            rows.append([ours, mean_loss(steps, losses), *tests])
            kept = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "rows": rows}
            if arguments.state:
                torch.save(kept, arguments.state)
        print("{:5d} {:22.4f} {:7.4f} {:25.2f} {:7.2f}".format(epoch, *rows[epoch]), flush=True)


def main():
    parser = argparse.ArgumentParser(description="PyTorch on the batches of a run of ./train.")
    commands = parser.add_subparsers(required=True)
    init = commands.add_parser("init", help="write PyTorch's initial weights")
    init.add_argument("file", type=Path)
    init.add_argument("--width", type=int, default=64)
    init.add_argument("--seed", type=int, default=1)
    init.set_defaults(run=make_init)
    of_trace = commands.add_parser("follow", help="train on a trace's batches")
    of_trace.add_argument("trace", help="the run's --trace file")
    of_trace.add_argument("init", help="the file that it was given as its --init")
    of_trace.add_argument("--data", help="CIFAR-10's binary files [where the trace says]")
    of_trace.add_argument("--bf16", action="store_true", help="PyTorch under torch.autocast")
    of_trace.add_argument("--losses", type=Path, help="gets a row step,loss for each step")
    of_trace.add_argument("--state", type=Path, help="where PyTorch's run is kept")
    of_trace.set_defaults(run=follow)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as problem:
        sys.exit(f"learn.py: {problem}")


if __name__ == "__main__":
    main()
