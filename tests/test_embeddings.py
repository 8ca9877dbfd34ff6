"""Static embeddings: what they are made of, what a text becomes, and the folder, which needs NumPy alone."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import stillroom
from stillroom.embeddings import StaticEmbeddings, static_embeddings
from stillroom.errors import ModelError
from stillroom.models.text_encode import WordEncode
from stillroom.utf8 import pack

PIECES = ["good", "bad", "film", "don't", "好", ".", "fine", "poor"]


class Bag(torch.nn.Module):
    """A classifier of ours: the features of a text are the mean of its words' rows."""

    def __init__(self, width=6):
        super().__init__()
        self.table = torch.nn.Embedding(len(PIECES) + 2, width)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(width, 2)

    def forward(self, ids, mask):
        real = mask.unsqueeze(-1).float()
        return self.head(self.drop((self.table(ids) * real).sum(dim=1) / real.sum(dim=1)))


@pytest.fixture
def bag():
    torch.manual_seed(0)
    return Bag().train(), WordEncode(PIECES)


def components(answers, kept):
    """The definition of a PCA, by the singular values; the sign of a component is nobody's."""
    centred = answers - answers.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return np.abs(centred @ directions[:kept].T)


# --- making --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_vectors_are_the_components_of_the_answers_times_the_weights(bag, batch):
    told = []
    made = static_embeddings(*bag, PIECES, dimensions=3, batch=batch, progress=lambda *now: told.append(now))
    answers = bag[0].table.weight[2:].detach().double().numpy()
    zipf = np.array([1 / rank for rank in range(2, len(PIECES) + 2)])
    weights = 1e-4 / (1e-4 + zipf / zipf.sum())
    np.testing.assert_allclose(np.abs(made.vectors), components(answers, 3) * weights[:, None], rtol=1e-4, atol=1e-9)
    assert made.vectors.dtype == np.float32 and told[-1] == (8, 8) and len(told) == math.ceil(8 / batch)
    assert 0 < made.notes["explained"] < 1 and made.notes["frequencies"] == "Zipf"
    assert bag[0].training, "the teacher is left as it was"


def test_counts_take_the_place_of_zipfs_law_and_no_weights_are_no_weights(bag):
    counts = {piece: 100 - 10 * number for number, piece in enumerate(PIECES)} | {"unheard": 5000}
    plain = static_embeddings(*bag, PIECES, sif=None, dimensions=4)
    made = static_embeddings(*bag, PIECES, counts=counts, sif=0.01, dimensions=4)
    shares = np.array([counts[piece] for piece in PIECES]) / sum(counts[piece] for piece in PIECES)
    expected = plain.vectors * (0.01 / (0.01 + shares))[:, None]
    np.testing.assert_allclose(made.vectors, expected, rtol=1e-5)
    assert made.notes["frequencies"] == "counted" and plain.notes["frequencies"] is None


def test_no_more_dimensions_than_there_are(bag):
    assert static_embeddings(*bag, PIECES, dimensions=100).dimensions == 6
    assert static_embeddings(*bag, PIECES[:3], dimensions=100).dimensions == 3


def test_special_tokens_of_a_transformer_are_left_out():
    pytest.importorskip("transformers", reason="the extra [text] is not installed")
    from test_hugging_face import stillroom_encode, tiny

    model, encode = tiny(), stillroom_encode()
    pieces = ["good", "cafes", "film", "a", "bad"]
    made = static_embeddings(model, encode, pieces, dimensions=3, sif=None, batch=2)
    rows = []
    with torch.no_grad():
        for piece in pieces:
            states = model.eval().body(**encode(pack([piece]))).last_hidden_state[0]
            rows.append(states[1:-1].mean(dim=0).double().numpy())
    assert len(encode(pack(["cafes"]))["input_ids"][0]) == 5, "one word of several tokens"
    np.testing.assert_allclose(np.abs(made.vectors), components(np.stack(rows), 3), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "'dimensions'"),
        ({"batch": 0}, "'batch'"),
        ({"sif": 1}, "between 0 and 1"),
        ({"counts": {"unheard": 3}}, "none above 0"),
        ({"unit": "letter"}, "Unknown unit"),
        ({"vocabulary": ["good"]}, "at least 2"),
        ({"vocabulary": ["good", "good", "bad"]}, "2 of them different"),
    ],
)
def test_what_cannot_be_made_says_why(bag, options, message):
    with pytest.raises(ModelError, match=message):
        static_embeddings(*bag, options.pop("vocabulary", PIECES), **options)


def test_answers_that_are_not_finite_are_refused(bag):
    with torch.no_grad():
        bag[0].table.weight[3, 0] = math.nan
    with pytest.raises(ModelError, match="NaN"):
        static_embeddings(*bag, PIECES)


# --- reading -------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    return StaticEmbeddings(["a", "don't", "好"], np.array([[3, 4], [1, 0], [-3, -4]]), notes={"teacher": "none"})


def test_a_text_is_the_mean_of_what_is_known_of_it(small):
    found = small.encode(["A a", "Don’t, unknown!", "a don't", "a好", "", "x"])
    expected = [[0.6, 0.8], [1, 0], np.array([4, 4]) / math.hypot(4, 4), [0, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-6)
    assert found.dtype == np.float32 and small.encode([]).shape == (0, 2)
    with pytest.raises(ModelError, match=r"encode\(\[text\]\)"):
        small.encode("a")


def test_many_texts_are_each_read_alone(small):
    texts = ["a", "don't", "a don't"] * 700
    np.testing.assert_array_equal(small.encode(texts), np.tile(small.encode(texts[:3]), (700, 1)))


def test_the_nearest_words_come_first(small):
    assert [word for word, _ in small.similar("A")] == ["don't", "好"]
    assert small.similar("a", 1)[0][1] == pytest.approx(0.6)
    with pytest.raises(ModelError, match="Did you mean 'don't'"):
        small.similar("dont")


def test_what_was_saved_is_what_is_loaded(small, tmp_path):
    small.save(tmp_path / "kept")
    again = StaticEmbeddings.load(tmp_path / "kept")
    assert again.vocabulary == small.vocabulary and again.unit == small.unit and again.notes == small.notes
    assert np.array_equal(again.vectors, small.vectors)
    before = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    again.save(tmp_path / "kept")
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    assert set(before) == {"vectors.npy", "embeddings.json"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "vectors.npy").unlink(), "holds no embeddings"),
        (lambda folder: (folder / "embeddings.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "embeddings.json").write_text("[]"), "does not describe embeddings"),
        (lambda folder: change(folder, format=9), "format 1"),
        (lambda folder: change(folder, vocabulary=["a"]), "do not belong together"),
        (lambda folder: (folder / "vectors.npy").write_bytes(b"x"), "another checksum"),
        (lambda folder: pickled(folder), "cannot be read"),
    ],
)
def test_a_spoilt_folder_is_refused(small, tmp_path, spoil, message):
    small.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message):
        StaticEmbeddings.load(tmp_path)


def change(folder, **values):
    about = json.loads((folder / "embeddings.json").read_text())
    (folder / "embeddings.json").write_text(json.dumps({**about, **values}))


def pickled(folder):
    """An array of objects, whose bytes could run anything, under the right checksum."""
    import hashlib

    np.save(folder / "vectors.npy", np.array([[{}, {}]], dtype=object), allow_pickle=True)
    change(folder, sha256=hashlib.sha256((folder / "vectors.npy").read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.zeros((2, 2)), "vectors"), (np.zeros(3), "vectors"), (np.full((3, 1), np.inf), "finite")],
)
def test_numbers_that_do_not_fit_are_refused(vectors, message):
    with pytest.raises(ModelError, match=message):
        StaticEmbeddings(["a", "b", "c"], vectors)


def test_reading_needs_numpy_alone(small, tmp_path):
    small.save(tmp_path)
    code = (
        "import sys\n"
        "from stillroom.embeddings import StaticEmbeddings\n"
        f"found = StaticEmbeddings.load({str(tmp_path)!r})\n"
        "assert found.encode(['a']).tolist()[0][0] > 0 and found.similar('a')\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'pyarrow', 'transformers', 'pandas'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(next(iter(stillroom.__path__))) + "/.."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
