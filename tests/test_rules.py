"""Rules find what was planted, say when nothing was, and are the same as text, JSON, Python and tree."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.data.arrays import ArraySource
from stillroom.data.tables import TableSource
from stillroom.data.texts import TextSource
from stillroom.errors import DataError
from stillroom.mining import Budget, Panel, Subject
from stillroom.mining.rules import rules, soft_tree
from stillroom.mining.rules.asking import ask
from stillroom.mining.rules.queries import sampler
from stillroom.mining.rules.sizes import agreement, grow_all
from stillroom.mining.rules.tree import grow, shortest
from stillroom.mining.rules.writing import rules_of
from stillroom.randomness import row_hashes
from stillroom.report.figures import draw, names
from stillroom.report.svg import slots

LONG = 600.0  # seconds: what a test expects must not depend on how busy the machine is


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sure(top: np.ndarray, classes: int = 2) -> Tensor:
    """Logits of who is sure of ``top``."""
    return 8.0 * torch.eye(classes)[torch.from_numpy(np.asarray(top, np.int64))]


def running(panel: Panel):
    """``predict`` of the standalone Python, which may import nothing."""
    source = panel.files["rules.py"].decode()
    assert "import" not in source.replace("Nothing is needed", "")
    space: dict = {}
    exec(compile(source, "rules.py", "exec"), space)
    return space["predict"]


def drawn(panel: Panel) -> None:
    for finding in panel.findings:
        figure = finding.figure
        assert finding.sentence.endswith(".") and finding.control
        assert draw(figure, slots(names(figure))) or not panel.numbers["useful"]


# --- the planted rule and its null twin ---------------------------------------------------------------------


def rule(rows: np.ndarray) -> np.ndarray:
    a, b, c, d = (rows[:, number] > 0.5 for number in range(4))
    return (a & b) | (~c & d)


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_rule_is_recovered_over_its_whole_domain(seed):
    rows = (generator(seed).random((400, 6)) > 0.5).astype(np.float32)
    noisy = rule(rows) ^ (generator(seed).random(400) < 0.1)  # labels are not as good as the teacher
    data = TableSource(rows, noisy.astype(np.int64), names=list("abcdef"), classes=["no", "yes"])
    panel = rules(Subject(data, answer=lambda inputs: sure(rule(inputs.numpy())), seed=seed), Budget(LONG), fidelity=1)
    predict = running(panel)
    domain = np.array(list(itertools.product((0, 1), repeat=6)))
    assert [predict(row.tolist())[0] == "yes" for row in domain] == rule(domain).tolist()
    assert panel.numbers["fidelity"] == panel.numbers["fidelity_queries"] == 1 and panel.numbers["reached_on_choice"]
    text = panel.files["rules.txt"].decode()
    assert not any(f"{name} is" in text for name in "ef"), "what plays no part is not spoken of"
    assert panel.numbers["rules"] <= 8 and "say what the model answers" in panel.findings[0].sentence
    drawn(panel)


@pytest.mark.parametrize("seed", range(3))
def test_random_answers_have_no_rules_and_the_sentence_says_so(seed):
    rows = generator(seed).normal(size=(600, 5)).astype(np.float32)
    data = ArraySource(rows, (rows[:, 0] > 0).astype(np.int64), classes=["no", "yes"])
    subject = Subject(data, answer=lambda inputs: sure(row_hashes(inputs.numpy()) % 2), seed=seed)
    panel = rules(subject, Budget(LONG))
    assert not panel.numbers["reached_on_choice"] and max(panel.numbers["curve"]["fidelity"]) < 0.75
    assert abs(panel.numbers["fidelity"] - 0.5) < 0.2
    assert panel.findings[0].title.startswith("No short list") and "No tree of up to 16" in panel.findings[0].sentence
    assert len(panel.findings) == 1 and not panel.findings[0].figure and not panel.files, "nothing useless is offered"
    assert not panel.numbers["useful"] and "not shown" in panel.findings[0].sentence
    drawn(panel)


def test_what_is_said_follows_from_where_the_rules_were_good_enough():
    rows = generator(3).random((900, 6)).astype(np.float32)
    data = ArraySource(rows, (rows[:, 0] > 0.5).astype(np.int64), classes=["no", "yes"])
    odd = rows[:, 1] > 0.9

    def told(where: list[str]) -> Panel:
        """The rule is column 0; in the splits named a tenth of the rows is answered against it, by no rule."""
        wrong = {rows[one].tobytes() for split in where for one in data.splits[split].tolist() if odd[one]}

        def answer(inputs: Tensor) -> Tensor:
            flipped = np.array([one.tobytes() in wrong for one in inputs.numpy()])
            return sure((inputs[:, 0].numpy() > 0.5) ^ flipped)

        return rules(Subject(data, answer=answer), Budget(LONG), fidelity=0.99, leaves=2)

    titles = {tuple(where): told(where).findings[0] for where in ([], ["test"], ["validation"], ["validation", "test"])}
    assert "say what the model answers" in titles[()].sentence
    assert "2 rules were enough where their number was chosen" in titles["test",].sentence
    assert "at the edge" in titles["validation",].sentence and "near" in titles["validation",].title
    assert titles["validation", "test"].sentence.startswith("No tree of up to 2 rules")


def test_a_model_of_one_answer_needs_no_rules():
    rows = generator().normal(size=(300, 3)).astype(np.float32)
    data = ArraySource(rows, (rows[:, 0] > 0).astype(np.int64), classes=["no", "yes"])
    panel = rules(Subject(data, answer=lambda inputs: sure(np.ones(len(inputs)))), Budget(LONG))
    assert panel.numbers["rules"] == 1 and "hardly needs rules" in panel.findings[0].sentence
    assert len(panel.findings) == 1 and not panel.files, "a constant answer is no student"
    drawn(panel)


def test_few_leaves_with_queries_answer_like_a_network_on_breast_cancer():
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import RepeatedStratifiedKFold
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, labels = load_breast_cancer(return_X_y=True)
    rows, found = rows.astype(np.float32), []
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=4, random_state=0)
    for number, (train, held) in enumerate(folds.split(rows, labels)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = MLPClassifier((64,), alpha=1e-3, max_iter=80, random_state=number)
            teacher = make_pipeline(StandardScaler(), network).fit(rows[train], labels[train])

        def answer(inputs: Tensor, teacher=teacher) -> Tensor:
            return torch.from_numpy(np.log(teacher.predict_proba(inputs.numpy()) + 1e-12)).float()

        splits = {"train": train[1:], "validation": train[:1], "test": held}
        subject = Subject(ArraySource(rows, labels, classes=["bad", "good"], splits=splits), answer=answer, seed=number)
        ground = ask(subject, Budget(LONG))
        grown, _ = grow_all(ground, most=48, seed=number)
        trees = [one.largest(16) for one in (grown.both, grown.labels)]
        assert all(len(tree.leaves) <= 16 for tree in trees)
        found.append([agreement(tree, ground.held) for tree in trees])
    queries, hard = np.mean(found, 0)
    assert queries >= 0.95, f"fidelity {queries:.3f}"
    assert queries - hard >= 0.01, f"{queries:.3f} with queries, {hard:.3f} on labels"


# --- the tree -------------------------------------------------------------------------------------------------


def test_a_tree_that_was_cut_is_the_tree_that_would_have_been_grown():
    from sklearn.tree import DecisionTreeRegressor

    rows = generator().normal(size=(500, 4)).astype(np.float32).astype(float)
    answers = generator(1).dirichlet(np.ones(3), 500) * 0.2 + 0.8 * np.eye(3)[(rows[:, :2] > 0).sum(1)]
    tree = grow(rows, answers, leaves=40)
    for leaves in (2, 3, 5, 9, 17, 40):
        other = DecisionTreeRegressor(max_leaf_nodes=leaves, random_state=0).fit(rows, answers)
        assert np.array_equal(tree.cut(leaves).answer(rows), other.predict(rows).argmax(1))
        assert len(tree.cut(leaves).leaves) == tree.cut(leaves).size <= leaves
    assert np.allclose(tree.probabilities(rows), other.predict(rows))
    assert tree.cut(1).leaves == [0]


def test_what_shares_an_answer_under_one_question_becomes_one_rule():
    rows = np.arange(8.0)[:, None]
    answers = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0, 1], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    tree = grow(rows, answers, leaves=8)
    assert len(tree.leaves) == 8 and len(tree.cut(8).leaves) == 2
    assert np.array_equal(tree.cut(8).answer(rows), tree.answer(rows))
    assert np.allclose(tree.cut(8).probabilities(rows)[0], [0.85, 0.15])


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(100, 141, 120), (0, 1, 0.5), (0.1234, 0.1239, 0.1236), (-3, -2, -2), (119, 120, 120), (1e6, 1.5e6, 1.2e6)],
)
def test_a_threshold_has_no_more_digits_than_it_needs(low, high, wanted):
    assert low < shortest(low, high) <= high
    assert shortest(low, high) == pytest.approx(wanted)


def test_a_threshold_lies_between_neighbours_however_close():
    values = generator().normal(size=(300, 2)) * 10.0 ** generator(1).integers(-30, 30, (300, 1))
    for low, high in np.sort(values, 1):
        assert low < shortest(low, high) <= high
    low = 0.1
    assert shortest(low, np.nextafter(low, 1)) == np.nextafter(low, 1)


# --- what is written --------------------------------------------------------------------------------------------


def table(rows: int = 600) -> TableSource:
    random = generator()
    values = np.stack([random.normal(size=rows), random.integers(0, 3, rows), random.integers(0, 40, rows)], 1)
    labels = ((values[:, 1] == 1) & (values[:, 2] >= 20)) | (values[:, 0] > 1)
    return TableSource(
        values.astype(np.float32),
        labels.astype(np.int64),
        names=["size", "colour", "age"],
        categories={"colour": ["red", 'bl"ue\n', "green"]},
        classes=["no", "it's\nyes"],
    )


def answers_of_table(inputs: Tensor) -> Tensor:
    size, colour, age = inputs.T
    return torch.stack([torch.zeros(len(inputs)), 4.0 * ((colour == 1) & (age >= 20) | (size > 1)) - 2], 1)


def test_text_json_and_python_are_the_tree():
    data = table()
    subject = Subject(data, answer=answers_of_table)
    panel = rules(subject, Budget(LONG), fidelity=0.98)
    assert panel.numbers["fidelity"] >= 0.98
    predict, plain = running(panel), json.loads(panel.files["rules.json"])
    ground = ask(subject, Budget(LONG))
    grown, _ = grow_all(ground, seed=subject.seed)
    tree = grown.both.smallest([ground.choice, ground.rows], 0.98, 16)
    every = torch.arange(len(data))
    inputs = subject.inputs(every)
    wanted = tree.probabilities(ground.reading(inputs))

    def walked(numbers: np.ndarray) -> dict:
        node = plain["tree"]
        while "leaf" not in node:
            one = plain["features"][node["feature"]]
            value = numbers[one["place"][0]]
            value = float(value == one["place"][1]) if one["kind"] == "category" else value
            node = node["then" if value < node["below"] else "else"]
        return node

    for row, shares in zip(inputs.numpy().astype(float), wanted, strict=True):
        top, told = predict(row.tolist())
        assert top == data.classes[int(shares.argmax())] == walked(row)["leaf"]
        assert np.allclose(told, shares, atol=1e-4) and walked(row)["shares"] == told
    assert predict([2.0, "red", 3])[0] == predict([2.0, 0, 3])[0] == data.classes[1]
    said = {text for one in panel.numbers["each"] for text in one["if"]}
    assert any(text.startswith("colour is ") for text in said) and any("age" in text for text in said)
    assert sum(one["coverage"] for one in panel.numbers["each"]) == pytest.approx(1)
    assert len(rules_of(tree, ground.reading, data.classes)) == panel.numbers["rules"] == len(plain["rules"])
    json.dumps(panel.numbers, allow_nan=False)
    again = rules(subject, Budget(LONG), fidelity=0.98)
    assert again.files == panel.files and again.numbers == panel.numbers
    drawn(panel)


def test_queries_keep_to_what_a_column_can_hold():
    subject = Subject(table(), answer=answers_of_table)
    inputs = subject.inputs(subject.data.splits["train"])
    sample = sampler(subject, inputs)
    made = sample(inputs, inputs.flip(0), 1)
    assert set(made[:, 1].tolist()) == {0.0, 1.0, 2.0} and torch.equal(made[:, 2], made[:, 2].round())
    assert (made >= inputs.amin(0)).all() and (made <= inputs.amax(0)).all()
    assert torch.equal(made, sample(inputs, inputs.flip(0), 1)) and not torch.equal(made, sample(inputs, inputs, 2))


# --- pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 30)])
def test_rules_of_pictures_name_their_pixels(channels, side):
    pixels = generator().integers(0, 256, (400, channels, side, side), dtype=np.uint8)
    bright = pixels[:, -1, 4:6, 6:8].mean((1, 2)) > 120
    pixels[bright, -1, 3:6, 6:9] = 250
    data = ArraySource(pixels, bright.astype(np.int64), classes=["dark", "bright"])

    def answer(inputs: Tensor) -> Tensor:
        return sure(inputs[:, -1, 4:6, 6:8].float().mean((1, 2)).numpy() > 120)

    subject = Subject(data, answer=answer)
    panel = rules(subject, Budget(4.0), fidelity=0.9)
    soft = [one for one in panel.findings if "soft tree" in one.title]
    assert len(soft) == ("soft_tree.safetensors" in panel.files) or any("soft tree" in note for note in panel.notes)
    text = panel.files["rules.txt"].decode()
    assert ("row 4, column" in text or "row 5, column" in text) if side == 8 else "blue of rows" in text
    predict, ground = running(panel), ask(subject, Budget(LONG))
    grown, _ = grow_all(ground)
    tree = next(one for one in grown.both.trees if len(one.leaves) == panel.numbers["rules"])
    few = torch.arange(100)
    told = tree.answer(ground.reading(subject.inputs(few)))
    assert [predict(one.tolist())[0] for one in subject.inputs(few)] == [data.classes[one] for one in told.tolist()]
    drawn(panel)


def digits() -> tuple[Tensor, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8), labels


def test_a_soft_tree_answers_like_a_network_on_digits_and_like_chance_on_nothing():
    from sklearn.neural_network import MLPClassifier

    pixels, labels = digits()
    order = generator().permutation(len(labels))
    train, held = order[:1300], order[1300:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = MLPClassifier((64,), max_iter=60, random_state=0).fit(pixels[train].flatten(1) / 16, labels[train])

    def answer(inputs: Tensor) -> Tensor:
        return torch.from_numpy(network.predict_proba(inputs.flatten(1).numpy() / 16)).float()

    noisy = pixels[np.tile(train, 2)]
    noisy = (noisy + 0.15 * 16 * torch.from_numpy(generator().normal(size=noisy.shape)).float()).clamp(0, 16)
    both = torch.cat([pixels[train], noisy])
    tree = soft_tree.train(both, answer(both), steps=800, depth=6, seed=0)
    wanted = answer(pixels[held]).argmax(1).numpy()
    fidelity = (tree.answer(pixels[held]) == wanted).mean()
    assert fidelity >= 0.93, f"{fidelity:.3f}"
    drawn_ = soft_tree.filters(tree)
    assert len(drawn_) == 63 and all(one.shape == (8, 8, 3) and one.dtype == np.uint8 for one in drawn_)
    nothing = torch.eye(10)[torch.from_numpy(generator().integers(0, 10, len(train)))]
    blind = soft_tree.train(pixels[train], nothing, steps=800, depth=6, seed=0)
    assert (blind.answer(pixels[held]) == wanted).mean() < 0.3


def test_the_paths_of_a_soft_tree_share_out_each_example():
    torch.manual_seed(0)
    tree = soft_tree.SoftTree(5, 3, 3)
    inputs = torch.randn(20, 5)
    reached, levels = tree.paths(inputs)
    assert reached.shape == (20, 8) and torch.allclose(reached.sum(1), torch.ones(20))
    right = torch.sigmoid(tree.steepness * tree.filters(inputs))
    wanted = (1 - right[:, 0]) * right[:, 1] * (1 - right[:, 4])  # left, right, left: leaf 0b010
    assert torch.allclose(reached[:, 2], wanted) and [len(turned[0]) for _, turned in levels] == [1, 2, 4]
    answers = torch.softmax(torch.randn(20, 3), 1)
    tree.loss(inputs, answers).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in tree.parameters())


# --- texts, closed models, little time -----------------------------------------------------------------------------


def test_rules_of_texts_speak_of_words():
    random = generator()
    words = np.array("the a plot was film it's very long, don't see story of one évènement".split())
    texts = []
    for number in range(500):
        said = [*random.choice(words, 6), *(["good"] if number % 2 else []), *(["Not"] if number % 3 == 0 else [])]
        texts.append(" ".join(random.permutation(said)))

    def truth(found: list[str]) -> np.ndarray:
        return np.array([("good" in one) and ("not" not in one.lower()) for one in found])

    from stillroom.utf8 import unpack

    data = TextSource(texts, truth(texts).astype(np.int64), classes=["bad", "fine"])
    subject = Subject(data, answer=lambda inputs: sure(truth(unpack(inputs))))
    panel = rules(subject, Budget(LONG))
    assert panel.numbers["fidelity"] == 1 and panel.numbers["rules"] == 3
    said = {text for one in panel.numbers["each"] for text in one["if"]}
    assert said == {'has "good"', 'has no "good"', 'has "not"', 'has no "not"'}
    predict = running(panel)
    assert [predict(text)[0] == "fine" for text in texts] == truth(texts).tolist()
    assert predict(["good"])[0] == "fine" and predict("It's NOT good.")[0] == "bad"
    drawn(panel)


def texts_of_many_words(seed: int) -> tuple[list[str], np.ndarray]:
    """Texts of ten of sixty words, each of which weighs a little for or against."""
    random = generator(seed)
    weights = random.normal(size=60)
    drawn_ = [random.choice(60, 10, replace=False) for _ in range(3000)]
    texts = [" ".join(f"w{number}" for number in one) for one in drawn_]
    return texts, np.array([weights[one].sum() for one in drawn_])


def test_points_for_words_say_what_single_words_cannot():
    texts, sums = texts_of_many_words(0)
    data = TextSource(texts, (sums > 0).astype(np.int64), classes=["bad", "fine"])

    def answer(inputs: torch.Tensor) -> torch.Tensor:
        weights = generator(0).normal(size=60)
        from stillroom.utf8 import unpack

        held = [sum(weights[int(word[1:])] for word in text.split()) for text in unpack(inputs)]
        return sure(np.array(held) > 0)

    panel = rules(Subject(data, answer=answer), Budget(LONG))
    assert panel.numbers["fidelity"] > 0.85 and panel.numbers["rules"] <= 4
    finding = panel.findings[1]
    assert finding.title == "What words are worth" and finding.number > 0.85
    chance = float(finding.control.split("at random: ")[1].split(" %")[0])
    assert chance < 75, finding.control
    points = panel.numbers["points"][0]["points"]
    weights = generator(0).normal(size=60)
    wanted = [weights[int(word[1:])] for word in points]
    assert np.corrcoef(list(points.values()), wanted)[0, 1] > 0.95
    assert any("points for 'fine'" in text for one in panel.numbers["each"] for text in one["if"])
    predict, tree = running(panel), panel.numbers["fidelity"]
    test = data.splits["test"].tolist()
    same = np.mean([(predict(texts[row])[0] == "fine") == (sums[row] > 0) for row in test])
    assert same == pytest.approx(tree)
    drawn(panel)


def test_answers_at_random_leave_words_without_worth():
    texts, _ = texts_of_many_words(1)
    told = dict(zip(texts, generator(2).integers(0, 2, len(texts)).tolist(), strict=True))

    def answer(inputs: torch.Tensor) -> torch.Tensor:
        from stillroom.utf8 import unpack

        return sure(np.array([told.get(text, len(text)) % 2 for text in unpack(inputs)]) > 0)

    data = TextSource(texts, generator(3).integers(0, 2, len(texts)), classes=["bad", "fine"])
    panel = rules(Subject(data, answer=answer), Budget(LONG))
    assert panel.numbers["fidelity"] < 0.6
    worth = [one for one in panel.findings if one.title == "What words are worth"]
    assert all(one.number < 0.6 for one in worth)


@pytest.mark.parametrize("unit", ["word", "character"])
def test_the_written_python_cuts_texts_as_the_house_does(unit):
    from stillroom.mining.rules.reading import Feature, Reading
    from stillroom.mining.rules.writing import as_python
    from stillroom.models.vocabulary import split

    tree = grow(np.array([[0.0], [1.0]]), np.eye(2), leaves=2)
    space: dict = {}
    exec(as_python(tree, Reading("text", (Feature("word", "x", value="x"),), unit), ["a", "b"], "about"), space)
    for text in (
        "It’s 5 o'clock -- don't! 'quoted' a_b",
        "这部电影very好看。2025年",
        "Füße naïve ÉTÉ",
        "",
        "rock 'n' roll's'",
    ):
        assert space["cut"](text) == split(text, unit), text


def test_without_labels_or_time_there_are_rules_all_the_same():
    rows = generator().normal(size=(300, 4)).astype(np.float32)
    data = ArraySource(rows, classes=["no", "yes"])
    subject = Subject(data, answer=lambda inputs: sure(inputs[:, 0].numpy() > 0))
    panel = rules(subject, Budget(0.0))
    assert panel.numbers["labels_same_size"] is None and panel.numbers["fidelity"] > 0.9
    assert "no labels are known" in panel.findings[0].control
    assert any("queries: more would not fit" in note for note in panel.notes)
    drawn(panel)


def test_rows_are_kept_back_where_nothing_is_held_out():
    rows = generator().normal(size=(300, 4)).astype(np.float32)
    data = ArraySource(rows, (rows[:, 0] > 0).astype(np.int64), classes=["no", "yes"], splits={"train": np.arange(300)})
    ground = ask(Subject(data, answer=lambda inputs: sure(inputs[:, 0].numpy() > 0)), Budget(LONG))
    assert len(ground.rows) + len(ground.choice) + len(ground.held) == 300 and ground.split == "held-out training"
    assert not {row.tobytes() for row in ground.held.rows} & {row.tobytes() for row in ground.rows.rows}


@pytest.mark.parametrize("options", [{"fidelity": 0}, {"fidelity": 1.5}, {"leaves": 1}, {"leaves": 500}])
def test_what_cannot_be_asked_for_is_said(options):
    subject = Subject(table(), answer=answers_of_table)
    with pytest.raises(DataError, match="Allowed"):
        rules(subject, Budget(LONG), **options)
