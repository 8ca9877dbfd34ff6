"""Make the sample of Fashion-MNIST that ships with Stillroom, from the Debian package dataset-fashion-mnist.

8,000 training and 1,000 validation images from the official training file, 5,000 test images from the
official test file; as many of each class, no image twice. The same input gives the same bytes.

    PYTHONPATH=src python scripts/make_fashion_sample.py [folder of the four IDX files]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from stillroom.data.idx import encode_idx, read_idx
from stillroom.data.splits import choose, distinct
from stillroom.files import write_bytes
from stillroom.randomness import row_hashes

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).parents[1] / "src" / "stillroom" / "data" / "samples" / "fashion-mnist"
SIZES = {"train": 8000, "validation": 1000, "test": 5000}
SEED = 0

NOTICE = """\
A sample of Fashion-MNIST
=========================

14,000 of the 70,000 images of Fashion-MNIST (28 x 28, grey, 10 classes), unchanged, by Han Xiao, Kashif Rasul and
Roland Vollgraf, Zalando Research: "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", https://arxiv.org/abs/1708.07747, https://github.com/zalandoresearch/fashion-mnist.
Taken from the Debian package dataset-fashion-mnist by scripts/make_fashion_sample.py: train (8,000) and validation
(1,000) from the official training file, test (5,000) from the official test file, as many of each class, no image
twice.

Fashion-MNIST is published under the MIT licence:

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def main(source: Path = SOURCE, target: Path = TARGET) -> None:
    """Choose the rows and write the six files and the notice."""
    images = [read_idx(source / f"{part}-images-idx3-ubyte.gz", axes=3) for part in ("train", "t10k")]
    labels = [read_idx(source / f"{part}-labels-idx1-ubyte.gz", axes=1).astype(np.int64) for part in ("train", "t10k")]
    hashes = [row_hashes(part) for part in images]
    none = np.empty(0, np.uint64)
    test = choose(labels[1], distinct(np.arange(len(images[1])), hashes[1], none), SIZES["test"], SEED, "sample")
    rows = distinct(np.arange(len(images[0])), hashes[0], hashes[1])
    both = choose(labels[0], rows, SIZES["train"] + SIZES["validation"], SEED, "sample")
    validation = choose(labels[0], both, SIZES["validation"], SEED, "sample validation")
    chosen = {"train": (0, np.setdiff1d(both, validation)), "validation": (0, validation), "test": (1, test)}
    for name, (part, members) in chosen.items():
        write_bytes(target / f"{name}-images-idx3-ubyte.gz", encode_idx(images[part][members]))
        write_bytes(target / f"{name}-labels-idx1-ubyte.gz", encode_idx(labels[part][members].astype(np.uint8)))
        print(name, len(members), np.bincount(labels[part][members]).tolist())
    write_bytes(target / "NOTICE", NOTICE.encode())


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
