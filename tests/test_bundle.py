"""A bundle answers like the model it was made of, is whole or refused, and never runs code by its name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from stillroom import tensors, utf8
from stillroom.errors import ModelError, UserError
from stillroom.models.bundle import CONFIG, WEIGHTS, Deployed, load, save_bundle
from stillroom.models.encode import ImageEncode
from stillroom.models.text_encode import WordEncode
from stillroom.models.zoo import build

SHAPE = (1, 12, 12)
CLASSES = ["coat", "bag", "boot"]


def a_student(name: str = "cnn", **options) -> nn.Module:
    torch.manual_seed(5)
    model = build(name, shape=SHAPE, classes=len(CLASSES), **options)
    model(torch.randn(8, *SHAPE))  # moves the statistics of BatchNorm away from where they start
    return model


def a_config(name: str = "cnn", **options) -> dict:
    return {
        "model": {"use": name, "options": options},
        "shape": list(SHAPE),
        "input": {"dtype": "uint8", "shape": list(SHAPE)},
        "classes": CLASSES,
        "score": {"accuracy": 0.9},
    }


ENCODE = ImageEncode([0.3], [0.25])
IMAGES = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name, options",
    [
        ("net", {"hidden": 8}),
        ("mlp", {"hidden": [8, 4], "dropout": 0.5}),
        ("cnn", {"width": 4}),
        ("resnet", {"depth": 8}),
    ],
)
def test_a_model_of_the_zoo_comes_back_by_itself(tmp_path, name, options):
    model = a_student(name, **options)
    save_bundle(tmp_path, model, encode=ENCODE, config=a_config(name, **options))
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS]
    state = torch.random.get_rng_state()
    loaded = load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state), "loading drew from the caller's generator"
    assert loaded.classes == CLASSES and not loaded.training and loaded.config["score"] == {"accuracy": 0.9}
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), Deployed(model, ENCODE).eval()(IMAGES))


def test_equal_weights_give_equal_bytes_and_a_bundle_can_be_saved_again(tmp_path):
    model = a_student()
    save_bundle(tmp_path / "a", model, encode=ENCODE, config=a_config())
    save_bundle(tmp_path / "b", model.to(memory_format=torch.channels_last), encode=ENCODE, config=a_config())
    again = load(tmp_path / "a")
    kept = {key: again.config[key] for key in ("model", "shape", "input", "classes", "score")}
    save_bundle(tmp_path / "c", again, config=kept)
    for name in (WEIGHTS, CONFIG):
        assert len({(tmp_path / place / name).read_bytes() for place in "abc"}) == 1


def test_no_path_of_the_machine_is_in_a_bundle(tmp_path):
    save_bundle(tmp_path, a_student(), encode=ENCODE, config=a_config())
    whole = b"".join((tmp_path / name).read_bytes() for name in (WEIGHTS, CONFIG))
    assert str(tmp_path).encode() not in whole and os.getcwd().encode() not in whole


class Foreign(nn.Module):
    def __init__(self, outputs: int = 3):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.out = nn.Linear(4, outputs)

    def forward(self, ids):
        return OrderedDict(hidden=self.words(ids), logits=self.out(self.words(ids).mean(1)))


FOREIGN = {"shape": [6], "input": {"dtype": "int64", "shape": [6]}}


def test_a_foreign_model_is_handed_in_and_its_logits_found(tmp_path):
    model, ids = Foreign(), torch.randint(0, 9, (2, 6))
    config = save_bundle(tmp_path, model, config=FOREIGN)
    assert config["model"]["class"].endswith("Foreign")
    with pytest.raises(ModelError, match=r"model=\.\.\..*never runs code"):
        load(tmp_path)
    with pytest.raises(ModelError, match=r"out.weight.*\(3, 4\).*\(5, 4\)"):
        load(tmp_path, model=Foreign(5))
    loaded = load(tmp_path, model=Foreign())
    assert loaded.classes is None
    assert torch.equal(loaded(ids), model(ids)["logits"])


def test_a_foreign_encode_is_handed_in(tmp_path):
    class Halve(nn.Module):
        def forward(self, inputs):
            return inputs.float() / 2

    save_bundle(tmp_path, a_student(), encode=Halve(), config=a_config())
    with pytest.raises(ModelError, match=r"Halve.*encode=\.\.\."):
        load(tmp_path)
    assert load(tmp_path, encode=Halve())(IMAGES).shape == (4, 3)


def test_several_arguments_can_be_encoded(tmp_path):
    class Masked(nn.Module):
        def forward(self, ids, mask):
            return (ids * mask).sum(1, keepdim=True).float()

    rows = torch.tensor([[1, 2, 0], [3, 0, 0]])
    as_names = Deployed(Masked(), encode=_Encode(lambda ids: {"mask": ids > 0, "ids": ids}))
    as_tuple = Deployed(Masked(), encode=_Encode(lambda ids: (ids, ids > 0)))
    assert as_names(rows).tolist() == as_tuple(rows).tolist() == [[3.0], [3.0]]


class _Encode(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, rows):
        return self.act(rows)


def rewrite(folder, **changes):
    content = json.loads((folder / CONFIG).read_text())
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    (folder / CONFIG).write_text(json.dumps(content))


def flip(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda at: (at / CONFIG).unlink(), "without config.json"),
        (lambda at: (at / WEIGHTS).unlink(), "does not exist"),
        (lambda at: (at / CONFIG).write_text("{"), "not valid JSON"),
        (lambda at: (at / CONFIG).write_text("[]"), "a dictionary"),
        (lambda at: rewrite(at, format=2), "Upgrade Stillroom"),
        (lambda at: rewrite(at, shape=None), "shape: Field required"),
        (lambda at: rewrite(at, clases=[]), "did you mean 'classes'"),
        (lambda at: rewrite(at, model={"use": "cnm", "options": {}}), "Did you mean 'cnn'"),
        (lambda at: rewrite(at, model={"use": "cnn", "options": {"wide": 3}}), "wide"),
        (lambda at: rewrite(at, model={"use": "cnn", "options": {"width": 3}}), r"does not fit|not those"),
        (lambda at: rewrite(at, model={"use": "mlp", "options": {}}), "weights without 'model.layers.0.bias'"),
        (lambda at: rewrite(at, classes=["a", "b"]), r"model\.head"),
        (lambda at: rewrite(at, classes=None), "how many logits"),
        (lambda at: rewrite(at, encode={"kind": "smell"}), "kind"),
        (lambda at: rewrite(at, encode={"kind": "image", "mean": "x", "std": [1]}), "encode in"),
        (lambda at: flip(at), "another checksum"),
        (lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:100]), "cut short"),
        (lambda at: torch.save({}, at / WEIGHTS), "a pickle"),
    ],
)
def test_a_damaged_bundle_says_what_is_wrong(tmp_path, harm, words):
    save_bundle(tmp_path, a_student(), encode=ENCODE, config=a_config())
    harm(tmp_path)
    with pytest.raises(ModelError, match=words):
        load(tmp_path)


def test_a_model_of_texts_without_its_vocabulary_is_refused(tmp_path):
    model = build("textmlp", shape=(9,), classes=2, embedding=4, hidden=4)
    words = WordEncode(["a", "b", "c", "d", "e", "f", "g"], longest=8)
    text = {"dtype": "text", "shape": []}
    about = {
        "model": {"use": "textmlp", "options": {"embedding": 4, "hidden": 4}},
        "shape": [9],
        "classes": ["no", "yes"],
    }
    save_bundle(tmp_path, model, encode=words, config=about | {"input": text})
    assert load(tmp_path)(["a b"]).shape == (1, 2)
    rewrite(tmp_path, encode=None)
    with pytest.raises(ModelError, match=r"nothing turns them into tokens: got no 'encode'.*Export the model again"):
        load(tmp_path)
    assert load(tmp_path, encode=words)(["a b"]).shape == (1, 2)


def test_no_folder_and_a_folder_of_something_else(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"input": None}, "input: Field required"),
        ({"classes": [1, 2, 3]}, "classes.0"),
        ({"score": {"accuracy": float("nan")}}, "finite numbers"),
        ({"score": {"accuracy": torch.ones(2)}}, "lists first"),
        ({"modle": 1}, "did you mean 'model'"),
        ({"classes": []}, "how many logits"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_written(tmp_path, change, words):
    config = {key: value for key, value in (a_config() | change).items() if value is not None}
    with pytest.raises(ModelError, match=words):
        save_bundle(tmp_path / "out", a_student(), config=config)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_neither_written_nor_answered_with(tmp_path):
    model = a_student()
    save_bundle(tmp_path, model, encode=ENCODE, config=a_config())
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="model.head.weight"):
        save_bundle(tmp_path / "out", model, encode=ENCODE, config=a_config())
    packed = tensors.pack(tensors.state_of(Deployed(model, ENCODE)))
    (tmp_path / WEIGHTS).write_bytes(packed)
    import hashlib

    rewrite(tmp_path, weights={"bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest()})
    with pytest.raises(ModelError, match="model.head.weight"):
        load(tmp_path)


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Could not write"):
        save_bundle(tmp_path / "file" / "out", a_student(), config=a_config())


def test_killed_between_its_two_files_a_bundle_is_refused_not_mixed(tmp_path):
    save_bundle(tmp_path, a_student("net"), config=a_config("net"))
    script = (
        "import torch; from stillroom.models.bundle import save_bundle; from stillroom.models.zoo import build\n"
        f"save_bundle({str(tmp_path)!r}, build('net', shape={SHAPE}, classes=3), config={a_config('net')!r})"
    )
    environment = os.environ | {"STILLROOM_FAULT": "bundle:weights", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ModelError, match="two exports were mixed"):
        load(tmp_path)


class Bytes(nn.Module):
    outside = True

    def forward(self, inputs):
        return {"ids": inputs.long()}


class ByByte(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 3, padding_idx=0)

    def forward(self, ids):
        return self.embedding(ids).sum(1)


def test_texts_are_given_as_strings_or_bytes_and_nothing_else():
    deployed = Deployed(ByByte(), Bytes()).eval()
    texts = ["a fine film", "", "味道不错"]
    assert deployed.reads_text and torch.equal(deployed(texts), deployed(utf8.pack(texts)))
    assert torch.equal(deployed("a fine film"), deployed(texts[:1]))
    for wrong, words in [
        (torch.zeros(2, 3), "float32 of shape"),
        (IMAGES, "uint8 of shape"),
        ([], "an empty list"),
        (["a", 3], "with int in it"),
    ]:
        with pytest.raises(ModelError, match=words):
            deployed(wrong)
    pictures = Deployed(a_student(), ENCODE, config=a_config())
    with pytest.raises(ModelError, match=r"does not take texts.*uint8"):
        pictures(["a fine film"])


class ByWord(nn.Module):
    def __init__(self, words=5):
        super().__init__()
        self.embedding = nn.Embedding(words, 2)

    def forward(self, ids, mask):
        return (self.embedding(ids) * mask.unsqueeze(2)).sum(1)


def test_a_tokenizer_is_in_the_bundle_and_must_be_the_models_own(tmp_path):
    encode = WordEncode(["fine", "dull", "好"], longest=4)
    config = {"shape": [5], "input": {"dtype": "text", "shape": []}, "classes": ["bad", "good"]}
    model = ByWord()
    save_bundle(tmp_path, model, encode=encode, config=config)
    loaded = load(tmp_path, model=ByWord())
    assert loaded.reads_text and loaded.encode.vocabulary == encode.vocabulary
    texts = ["fine dull", "", "好 fine fine fine fine fine"]
    assert torch.equal(loaded(texts), Deployed(model, encode)(texts))
    with pytest.raises(ModelError, match="two models"):
        save_bundle(tmp_path / "out", ByWord(), encode=WordEncode([*"abcdef"]), config=config)
    assert not (tmp_path / "out").exists()
    described = encode.describe()
    rewrite(tmp_path, encode=described | {"vocabulary": [*described["vocabulary"], "more"]})
    with pytest.raises(ModelError, match=r"6 ids of the tokenizer and the shape \[5\]"):
        load(tmp_path, model=ByWord())
    rewrite(tmp_path, encode=described | {"vocabulary": ["fine", "fine"]})
    with pytest.raises(ModelError, match="cannot be built"):
        load(tmp_path, model=ByWord())
