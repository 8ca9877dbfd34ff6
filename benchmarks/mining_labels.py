"""Which search finds wrong labels, in a network that has learnt little of them and in one that knows them by heart?

A twentieth of the training labels of digits and of Fashion-MNIST's sample (its first 5,000 training rows) is exchanged,
each for another class at random. A perceptron of 128 and 64 units learns from them for few or many steps. Then rows are
put in order of doubt by:

* loss: the network's own loss on its training label
* gradient: the squared gradient of that loss at the last layer, which is self-influence by TracIn (Pruthi et al. 2020,
  https://arxiv.org/abs/2002.08484) at one checkpoint
* left out: how doubtful the label is to a layer on the network's features that has not seen the row
* untrained: the same on random features of the inputs, which no label has touched
* panel: what `stillroom mine` takes of these two

Told is which part of the first twentieth is wrong (chance: 0.05), means over seeds with Student's t interval; and how
many suspects the panel has, and how many of these are wrong. The same without any exchanged label: then there should be
no suspects. And what it is worth to leave the suspects out: test accuracy of the same network learnt anew, as often,
without them, without as many at random, and without every wrong one.

    PYTHONPATH=src python benchmarks/mining_labels.py --out benchmarks/records/DATE-mining-labels/result.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.data.arrays import ArraySource
from stillroom.mining import Subject
from stillroom.mining.examples.left_out import fitted
from stillroom.mining.examples.mislabels import better, doubt
from stillroom.mining.examples.untrained import untrained
from stillroom.statistics import over_seeds

NOISE, CLASSES, MARK = 0.05, 10, 0.6
STEPS = {"digits": (300, 2500), "fashion": (300, 5000)}


Part = tuple[Tensor, Tensor]


def data(name: str) -> tuple[Part, Part]:
    """Return inputs (N, D) of 0..1 and labels (N), to learn from and to be judged on."""
    from stillroom.data.images import digits, fashion_mnist_sample

    source = digits() if name == "digits" else fashion_mnist_sample()
    train, test = (
        (source.inputs[rows].flatten(1).float() / 255, source.labels[rows])
        for rows in (source.splits["train"][:5000], source.splits["test"])
    )
    return train, test


def taught(inputs: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Sequential:
    """Return a perceptron that has learnt from labels."""
    torch.manual_seed(seed)
    wide = inputs.shape[1]
    net = nn.Sequential(nn.Linear(wide, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    for _ in range(steps):
        part = torch.randint(len(inputs), (64,))
        loss = F.cross_entropy(net(inputs[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def exchanged(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return labels of which a share is wrong, and which ones are (N, bool)."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    wrong[torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]] = True
    shift = torch.randint(1, CLASSES, labels.shape, generator=generator)
    return torch.where(wrong, (labels + shift) % CLASSES, labels), wrong


def one(train: Part, test: Part, steps: int, share: float, seed: int) -> dict[str, float]:
    """Return the precision of each search in one network, and what leaving out its suspects is worth."""
    inputs, truth = train
    labels, wrong = exchanged(truth, share, seed)
    net = taught(inputs, labels, steps, seed)
    with torch.no_grad():
        features = net[:-1](inputs)
        logits = net[-1](features)
    everyone = torch.arange(len(labels))
    source = ArraySource(inputs, labels, splits={"train": everyone, "validation": everyone[:0], "test": everyone[:0]})
    learnt, other = (
        doubt(fitted(one, labels, CLASSES).left_out, labels)
        for one in (features, untrained(Subject(source, net, seed=seed), everyone))
    )
    found = {"learnt": learnt, "untrained": other}[better(learnt, other)]
    told = {
        "untrained taken": float(found is other),
        "given back": float((logits.argmax(1) == labels).double().mean()),
        "share told": found.share,
        "suspects": float(len(found.suspects)),
    }
    if share == 0:
        return told
    rest = (logits.softmax(1) - F.one_hot(labels, CLASSES)).square().sum(1)
    order = {
        "loss": F.cross_entropy(logits, labels, reduction="none"),
        "gradient": rest * (features.square().sum(1) + 1),
        "left out": learnt.wrong,
        "untrained": other.wrong,
        "panel": found.wrong,
    }
    count = int(wrong.sum())
    for name, value in order.items():
        told[name] = float(wrong[value.argsort(descending=True, stable=True)[:count]].double().mean())
    told["suspects that are wrong"] = float(wrong[found.suspects].sum())
    told["wrong"] = float(count)
    at_random = torch.zeros_like(wrong)
    at_random[
        torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 + seed))[: len(found.suspects)]
    ] = True
    suspected = torch.zeros_like(wrong)
    suspected[found.suspects] = True
    right = {"all": right_on(net, test)}
    for name, gone in (("without suspects", suspected), ("without as many", at_random), ("without wrong ones", wrong)):
        right[name] = right_on(taught(inputs[~gone], labels[~gone], steps, seed), test)
    told |= {f"test, {name}": value for name, value in right.items()}
    told["gain"] = right["without suspects"] - right["all"]
    told["gain over as many"] = right["without suspects"] - right["without as many"]
    return told


def right_on(net: nn.Module, test: Part) -> float:
    """Return test accuracy."""
    with torch.no_grad():
        return float((net(test[0]).argmax(1) == test[1]).double().mean())


def main() -> None:
    """Print and keep all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began, kept = time.monotonic(), {}
    for name, lengths in STEPS.items():
        train, test = data(name)
        for steps in lengths:
            for share in (NOISE, 0.0):
                runs = [one(train, test, steps, share, seed) for seed in range(chosen.seeds)]
                told: dict[str, Any] = {key: over_seeds([run[key] for run in runs]).plain() for key in runs[0]}
                kept[f"{name}, {steps} steps, {100 * share:.0f} % wrong"] = {"summary": told, "runs": runs}
                means = {key: round(one["mean"], 3) for key, one in told.items()}
                print(name, steps, share, means, flush=True)
                if share:
                    value = told["panel"]["mean"]
                    print(f"  precision {value:.2f} (mark {MARK}): {'met' if value >= MARK else 'MISSED'}")
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        whole = {"seconds": round(time.monotonic() - began, 1), "results": kept}
        chosen.out.write_text(json.dumps(whole, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
