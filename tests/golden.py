"""golden.py - writes tests/golden.safetensors: one training step as PyTorch does it, three times.

Why: finite differences show that our backward pass belongs to our forward pass, not that either is
ResNet-18. These numbers do, and with them in the repository `make check` needs no PyTorch. They are
computed in double precision, so they are the truth to the last of the float32 digits stored.

How to run: `python3 tests/golden.py`, with torch, numpy and safetensors installed. It also prints
how far PyTorch's own float32 is from the truth: what a tolerance has to allow. The same machine and
versions give the same bytes; others may differ in a last digit, and in where the middle of the run
lies. The file is committed; there is no need to write it again.

What the file holds. All is F32 unless another type is named; tensors in PyTorch's layout.

    images   U8 [16][3][32][32]   smooth blobs and noise, made here; planes, as in CIFAR-10's files
    labels   U8 [16]

and for each case, B its batch, every name below after its prefix:

    initial8.    width 8,  B = 5    the first step of a run
    initial16.   width 16, B = 3    the same, wider, with settings far from the recipe's
    midrun8.     width 8,  B = 3    a step in the middle of a run, on a short batch

    samples    I32 [B][5]    image, partner (position in the batch), crop_y, crop_x, flip
    settings   [6]           lambda, learning_rate, momentum, weight_decay, smoothing, seed

  the state before the step. The initial cases start from network_initialise(seed) of run/layers.c,
  which is done again here, bit for bit; midrun8 from what is stored:

    before.<parameter>       digest of the initial weights (initial cases)
    weight.<parameter>       BF16, in full: bf16 is exact here, the weights were rounded to it
    momentum.<parameter>     BF16, in full
    statistics.<name>        running means and variances, in full

  the step:

    logits [B][10]           training mode, of the mixed batch
    loss F64 [1]             mean over the batch
    correct F64 [1]          images got right, each label counting by its weight
    gradient.<parameter>     digest; of the mean loss, without weight decay

  after it:

    after.<parameter>        digest of the weights
    momentum_after.<parameter>, statistics_after.<name>         digests
    evaluation [B][10]       logits in evaluation mode of the batch's images, uncropped and unmixed

The digest of a tensor t of n elements, flattened in PyTorch's order, is 40 numbers:

    [0]        sqrt(sum of t[i]^2)
    [k]        sum of t[i] cos(k (i + 0.5)),  k = 1 .. 7
    [8 + j]    t[floor(j n / 32)],            j = 0 .. 31

Every element takes part in the first eight, so that one wrong element, or two exchanged, show.
"""

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from resnet import ResNet18, augment, make_optimiser, read_momentum, train_step

OUTPUT = Path(__file__).resolve().parent / "golden.safetensors"
LABELS = [6, 2, 8, 4, 5, 9, 0, 1, 0, 5, 4, 7, 3, 2, 3, 8]
IMAGES = len(LABELS)
SETTINGS = ["lambda", "lr", "momentum", "weight_decay", "smoothing", "seed"]
RECIPE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "smoothing": 0.1}

# Between them: every edge of the crop, both flips, a partner of one's own, pairs and cycles.
CASES = {
    "initial8.": {
        "width": 8,
        "settings": {**RECIPE, "lambda": 0.3, "seed": 1},
        "samples": [
            [3, 2, 0, 0, 0],
            [11, 0, 8, 8, 1],
            [0, 1, 4, 4, 0],
            [15, 4, 2, 7, 1],
            [7, 3, 5, 1, 0],
        ],
    },
    "initial16.": {
        "width": 16,
        "settings": {
            "lambda": 0.85,
            "lr": 0.05,
            "momentum": 0.8,
            "weight_decay": 1e-2,
            "smoothing": 0.25,
            "seed": 20,
        },
        "samples": [[5, 0, 0, 8, 1], [12, 2, 8, 0, 0], [2, 1, 3, 6, 1]],
    },
    "midrun8.": {
        "width": 8,
        "settings": {**RECIPE, "lr": 0.01, "lambda": 0.6, "seed": 3},
        "samples": [[9, 1, 1, 5, 1], [14, 2, 7, 3, 0], [5, 0, 4, 0, 1]],
    },
}


# -- What we feed it -------------------------------------------------------------------------------


def make_images():
    """Images of four coloured blobs each on a colour, with noise."""
    random = np.random.Generator(np.random.Philox(key=10))
    y, x = np.mgrid[0:32, 0:32]
    images = np.empty((IMAGES, 3, 32, 32), np.uint8)
    for image in images:
        picture = random.uniform(0, 255, (3, 1, 1)) + random.normal(0, 12, (3, 32, 32))
        for _ in range(4):
            centre_y, centre_x = random.uniform(0, 32, 2)
            blob = np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / random.uniform(20, 120))
            picture += random.uniform(-255, 255, (3, 1, 1)) * blob
        image[:] = picture.clip(0, 255).round()
    return torch.from_numpy(images)


def philox(seed, counter):
    """random.c's philox for many counters at once: a list of four arrays of 32-bit words."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.broadcast_arrays(*[np.asarray(c, np.uint64) for c in counter])
    k0, k1 = np.uint64(seed) & low, np.uint64(seed) >> np.uint64(32)
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (product1 >> np.uint64(32)) ^ c1 ^ k0, product1 & low
        c2, c3 = (product0 >> np.uint64(32)) ^ c3 ^ k1, product0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return [c0, c1, c2, c3]


def draw_uniform(seed, position, count, fan_in):
    """run/layers.c's draw_uniform, in its float32 arithmetic; position: in the list of parameters."""
    blocks = philox(seed, [np.arange((count + 3) // 4), position, 0, 1])
    bits = np.stack(blocks, axis=1).reshape(-1)[:count]
    unit = (bits >> np.uint64(8)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(np.float32(1 / np.sqrt(fan_in)) * (2 * unit - 1))


def initialise(model, seed):
    """network_initialise. It draws filters as [Cout][R][S][Cin], PyTorch has [Cout][Cin][R][S]."""
    for position, (name, p) in enumerate(model.named_parameters()):
        if p.dim() == 4:
            out, channels, rows, columns = p.shape
            drawn = draw_uniform(seed, position, p.numel(), p.numel() // out)
            p.data = drawn.view(out, rows, columns, channels).permute(0, 3, 1, 2).contiguous()
        elif name.startswith("linear."):
            drawn = draw_uniform(seed, position, p.numel(), model.linear.in_features)
            p.data = drawn.view(p.shape)


# -- What we keep ----------------------------------------------------------------------------------


def digest(tensor):
    t = tensor.detach().double().contiguous().flatten()
    i = torch.arange(t.numel(), dtype=torch.double)
    waves = [(t * torch.cos(k * (i + 0.5))).sum() for k in range(1, 8)]
    return torch.cat([torch.stack([t.norm(), *waves]), t[torch.arange(32) * t.numel() // 32]])


def statistics(model):
    return {n: b for n, b in model.named_buffers() if not n.endswith("num_batches_tracked")}


def float32_settings(case):
    """The settings as the C program has them: exactly representable in float32."""
    return {name: float(np.float32(case["settings"][name])) for name in SETTINGS}


def measure(case, state, momentum, images, labels, dtype):
    """One step from state in the given precision -> the tensors that stand after "samples"."""
    settings = float32_settings(case)
    model = ResNet18(case["width"]).to(dtype)
    model.load_state_dict(state)
    optimiser = make_optimiser(model, settings, momentum)
    index, partner, y, x, flip = (list(column) for column in zip(*case["samples"]))
    step = {"lambda": settings["lambda"], "index": index, "partner": partner, "flip": flip}
    step["crop"] = list(zip(y, x))
    logits, loss, correct = train_step(
        model, optimiser, images, labels, step, settings["smoothing"]
    )
    top = logits.topk(2).values
    assert (top[:, 0] - top[:, 1]).min() > 1e-3, "a tie would make `correct` a matter of rounding"
    kept = {"logits": logits}
    kept["loss"], kept["correct"] = torch.tensor([[loss], [correct]], dtype=torch.double)
    velocity = read_momentum(model, optimiser)
    for name, p in model.named_parameters():
        kept["gradient." + name], kept["after." + name] = p.grad, p
        kept["momentum_after." + name] = velocity[name]
    kept |= {"statistics_after." + name: t for name, t in statistics(model).items()}
    model.eval()
    plain = augment(images[index], [(4, 4)] * len(index), [0] * len(index)).to(dtype) / 255
    kept["evaluation"] = model(plain)
    return {name: t.detach().double() for name, t in kept.items()}


def middle_of_a_run(case, images, labels, steps=40):
    """Trains from random weights; the state then, weights and momentum rounded to bf16. A small
    learning rate, so that rounding errors do not grow to another run on another machine."""
    random = np.random.Generator(np.random.Philox(key=11))
    settings = {**RECIPE, "lr": 0.02}
    model = ResNet18(case["width"])
    initialise(model, int(case["settings"]["seed"]))
    model.double()
    optimiser = make_optimiser(model, settings)
    for _ in range(steps):
        step = {"lambda": random.uniform(), "index": random.permutation(IMAGES)[:8]}
        step |= {"partner": random.permutation(8), "flip": random.integers(0, 2, 8)}
        step["crop"] = random.integers(0, 9, (8, 2))
        train_step(model, optimiser, images, labels, step, settings["smoothing"])
    for p in model.parameters():
        p.data = p.data.bfloat16().double()
    for b in statistics(model).values():
        b.data = b.data.float().double()
    velocity = {n: v.bfloat16() for n, v in read_momentum(model, optimiser).items()}
    return model, velocity


# -- The file --------------------------------------------------------------------------------------


def write(tensors):
    """safetensors writes the metadata in a random order; sorted, the bytes are always the same."""
    metadata = {"made_by": "tests/golden.py", "torch": torch.__version__}
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    raw = safetensors.torch.save(contiguous, metadata)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = metadata
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    OUTPUT.write_bytes(raw[:8] + text + raw[8 + length :])
    print(f"{OUTPUT.name}: {len(tensors)} tensors, {OUTPUT.stat().st_size} bytes")


def report(prefix, truth, single):
    """How far PyTorch's float32 is from the truth, for the worst tensor of each kind: norm of the
    difference / norm, and largest difference of a digest's numbers / norm."""
    worst = {}
    for name, t in truth.items():
        distance = ((single[name] - t).norm() / t.norm()).item()
        in_digest = ((digest(single[name]) - digest(t)).abs().max() / t.norm()).item()
        worst.setdefault(name.split(".")[0], []).append((distance, in_digest, name))
    for kind, found in worst.items():
        distance, _, name = max(found)
        in_digest = max(d for _, d, _ in found)
        print(f"  {prefix + kind:26} {distance:8.1e} {in_digest:8.1e}  {name}")


def main():
    torch.set_num_threads(1)
    images, labels = make_images(), torch.tensor(LABELS, dtype=torch.uint8)
    tensors = {"images": images, "labels": labels}
    print("PyTorch's float32 against float64: tensors, their digests, the worst tensor")
    for prefix, case in CASES.items():
        model, momentum = ResNet18(case["width"]), None
        kept = {"samples": torch.tensor(case["samples"], dtype=torch.int32)}
        kept["settings"] = torch.tensor([case["settings"][name] for name in SETTINGS])
        if prefix.startswith("initial"):
            initialise(model, case["settings"]["seed"])
            kept |= {"before." + n: digest(p).float() for n, p in model.named_parameters()}
        else:
            model, momentum = middle_of_a_run(case, images, labels)
            kept |= {"weight." + n: p.bfloat16() for n, p in model.named_parameters()}
            kept |= {"momentum." + n: v for n, v in momentum.items()}
            kept |= {"statistics." + n: b.float() for n, b in statistics(model).items()}
        state = {name: t.detach().clone() for name, t in model.state_dict().items()}
        truth = measure(case, state, momentum, images, labels, torch.double)
        report(prefix, truth, measure(case, state, momentum, images, labels, torch.float))
        for name, t in truth.items():
            full = {"loss": t, "correct": t, "logits": t.float(), "evaluation": t.float()}
            kept[name] = full[name] if name in full else digest(t).float()
        tensors |= {prefix + name: t for name, t in kept.items()}
    write(tensors)


if __name__ == "__main__":
    main()
