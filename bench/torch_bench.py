"""torch_bench.py - the same training and evaluation steps in PyTorch, timed on request.

Why: "fast" is a ratio. bench.c starts this program beside its own worker and asks both in turn: a
line "train 3" or "eval 3" on standard input is answered by the seconds that so many steps took, on
the clock and of the processors.

A step is what PyTorch users write: forward, smoothed and mixed cross-entropy, backward, SGD. It gets
its images mixed and ready in memory, where the other side also gathers, crops and mixes them.

    --choose MODE  tries the settings for this device at training ("train") or evaluation ("eval"), and
                   prints the fastest one's name
    --setting S    answers requests with that one

Settings: eager or compiled (torch.compile), NHWC ("channels_last") or NCHW memory; beside `cuda` and
`cpu-bf16` always bfloat16 autocast, and on CUDA the compiled ones record CUDA graphs (that part is
untested so far).

How to run: make bench PYTHON=python3 (any Python that can import torch 2.x).
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from resnet import ResNet18  # noqa: E402

SETTINGS = {
    "cpu": ["eager, channels_last", "eager, NCHW", "compiled, channels_last"],
    "cpu-bf16": ["eager, channels_last", "compiled, channels_last"],
    "cuda": ["eager, channels_last", "compiled, channels_last", "max-autotune, channels_last"],
}
COMPILE_MODES = {"cpu": {"compiled": "default"},
                 "cpu-bf16": {"compiled": "default"},
                 "cuda": {"compiled": "reduce-overhead", "max-autotune": "max-autotune"}}


class Bench:
    def __init__(self, setting, device, width, batch):
        kind, layout = setting.split(", ")
        self.device = "cuda" if device == "cuda" else "cpu"
        self.autocast = {"dtype": torch.bfloat16, "enabled": device != "cpu",
                         "device_type": self.device}
        torch.manual_seed(1)
        memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.net = ResNet18(width).to(self.device, memory_format=memory)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9,
                                         weight_decay=2e-4, fused=True)
        self.x = torch.rand(batch, 3, 32, 32, device=self.device).contiguous(memory_format=memory)
        self.a = torch.randint(0, 10, (batch,), device=self.device)
        self.b = torch.randint(0, 10, (batch,), device=self.device)
        self.forward = self.net
        if kind != "eager":
            self.forward = torch.compile(self.net, mode=COMPILE_MODES[device][kind])

    def train_step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(**self.autocast):
            logits = self.forward(self.x)
            loss = 0.3 * F.cross_entropy(logits, self.a, label_smoothing=0.1)
            loss = loss + 0.7 * F.cross_entropy(logits, self.b, label_smoothing=0.1)
        loss.backward()
        self.optimizer.step()

    def eval_step(self):
        with torch.inference_mode(), torch.autocast(**self.autocast):
            F.cross_entropy(self.forward(self.x), self.a)

    def seconds(self, mode, steps):
        self.net.train(mode == "train")
        step = self.train_step if mode == "train" else self.eval_step
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, time.process_time() - start_cpu


def choose(arguments):
    best, fastest = None, float("inf")
    for setting in SETTINGS[arguments.device]:
        try:
            bench = Bench(setting, arguments.device, arguments.width, arguments.batch)
            bench.seconds(arguments.choose, 2)
            # On a shared machine, what the processors worked says more than the clock.
            clock = 0 if arguments.device == "cuda" else 1
            steps = 50 if arguments.device == "cuda" else 1
            took = min(bench.seconds(arguments.choose, steps)[clock] for _ in range(3))
        except Exception as error:  # a setting may not work here, a missing compiler for one
            print(f"{setting}: {type(error).__name__}", file=sys.stderr)
            continue
        if took < fastest:
            best, fastest = setting, took
    if best is None:
        sys.exit("torch_bench.py: none of these settings works")
    print(best)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=sorted(SETTINGS))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--choose", choices=["train", "eval"])
    parser.add_argument("--setting", default="eager, channels_last")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.choose:
        choose(arguments)
        return
    bench = Bench(arguments.setting, arguments.device, arguments.width, arguments.batch)
    print(f"PyTorch {torch.__version__}", flush=True)
    for line in sys.stdin:
        mode, steps = line.split()
        print(*bench.seconds(mode, int(steps)), flush=True)


if __name__ == "__main__":
    main()
