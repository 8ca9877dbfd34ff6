"""Classes that a student never answers or seldom finds: by formula, in words, and cheap however many there are."""

from __future__ import annotations

import time
import tracemalloc

import pytest
import torch
from sklearn import metrics as by_scikit_learn

from stillroom.contracts import UNLABELLED
from stillroom.pipeline.classes import class_notes, classes_of
from stillroom.report.figures import draw
from stillroom.report.run_classes import PAIRS, confused
from stillroom.report.run_findings import lost_by_class
from stillroom.tasks import class_counts, confusions, measure


def logits(guess: torch.Tensor, classes: int) -> torch.Tensor:
    return 5 * torch.nn.functional.one_hot(guess, classes).float()


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_balanced_accuracy_and_macro_f1_are_those_of_scikit_learn(classes):
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, max(2, classes - 2), (300,), generator=generator)  # not every class has a row
    guess = torch.where(torch.rand(300, generator=generator) < 0.6, labels, torch.randint(classes, (300,)))
    hidden = torch.rand(300, generator=generator) < 0.2
    found = measure(logits(guess, classes), torch.where(hidden, UNLABELLED, labels), None)
    truth, answered = labels[~hidden].numpy(), guess[~hidden].numpy()
    assert found["macro_f1"] == pytest.approx(by_scikit_learn.f1_score(truth, answered, average="macro"))
    recall = by_scikit_learn.recall_score(truth, answered, average=None, labels=sorted(set(truth)))
    assert found["balanced_accuracy"] == pytest.approx(recall.mean())


def test_they_tell_what_accuracy_hides():
    """Ninety of one class and ten of another, and always the first as the answer."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    found = measure(logits(torch.zeros(100, dtype=torch.long), 2), labels, None)
    assert found["accuracy"] == 0.9 and found["balanced_accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 * 90 / (90 + 100)) / 2)


def test_counts_are_of_labelled_rows():
    labels = torch.tensor([0, 0, 1, 2, UNLABELLED])
    found = class_counts(logits(torch.tensor([0, 1, 1, 0, 2]), 4), labels)
    assert found.rows.tolist() == [2, 1, 1, 0] and found.answered.tolist() == [2, 2, 0, 0]
    assert found.right.tolist() == [1, 1, 0, 0]
    assert confusions([logits(torch.tensor([0, 1, 1, 0, 2]), 4)] * 2, labels) == [(0, 1, 2), (2, 0, 2)]


NAMES = ["earn", "acq", "grain", "ship", "trade"]
LABELS = torch.tensor([0] * 60 + [1] * 60 + [2] * 4 + [3] * 3 + [4] * 40)


def told(guess, teacher=None, names=NAMES, labels=LABELS):
    """Return the notes on one answer a seed."""
    parts = [logits(one, len(names)) for one in guess]
    return class_notes(classes_of(names, parts, None if teacher is None else logits(teacher, len(names)), labels))


def test_classes_that_are_never_answered_are_named_and_whether_the_teacher_finds_them():
    never = torch.where((LABELS == 2) | (LABELS == 3), 0, LABELS)
    assert told([never]) == ["The student never answers 'grain' and 'ship' (recall 0 %)."]
    assert told([never], LABELS) == told([never])
    assert told([never], never) == [
        "The student never answers 'grain' and 'ship' (recall 0 %; the teacher does not find them either)."
    ]
    assert told([never, LABELS]) == [], "another seed finds them"
    assert told([LABELS]) == []


def test_a_class_found_far_more_seldom_is_named_where_it_is_no_chance():
    seldom = LABELS.clone()
    seldom[130:160] = 0  # of 40 rows of 'trade', the last class, it finds ten or so
    recall = int((seldom[127:] == 4).sum()) / 40
    mean = (4 + recall) / 5
    assert told([seldom]) == [
        f"It finds 'trade' far more seldom than other classes (recall {100 * recall:.0f} %; the mean of the classes is "
        f"{100 * mean:.0f} %)."
    ]
    chance = LABELS.clone()
    chance[124:126] = 0  # one of three rows of 'ship': too few to say anything
    assert told([chance]) == []


def test_seldom_is_at_most_half_the_mean_beyond_the_chance_of_all_classes_together():
    """24 of 40 rows are above half the mean of the classes; one of four rows is within chance for one class of five."""
    above, few = LABELS.clone(), LABELS.clone()
    above[127:143] = 0
    assert told([above]) == []
    few[120:123] = 0  # one of the four rows of 'grain'; its exact 95 % interval ends at 80.6 %, the mean is 85 %
    assert told([few]) == []
    assert told([few, few]) == [], "seeds are the same rows, and no more of them"
    found = classes_of(NAMES, [logits(above, 5), logits(LABELS, 5)], logits(above, 5), LABELS)
    assert found["mean_recall"] == pytest.approx((4 + (0.6 + 1.0) / 2) / 5)


def test_classes_without_a_test_row_are_told():
    names = [*NAMES, "wheat", "corn"]
    assert told([LABELS], names=names) == ["No test example is of 'wheat' and 'corn', so nothing is known of them."]
    found = classes_of(names, [logits(LABELS, 7)], None, LABELS)
    assert found["mean_recall"] == 1.0 and found["untested"] == {
        "count": 2,
        "classes": [{"name": "wheat", "rows": 0}, {"name": "corn", "rows": 0}],
    }


def test_what_neither_finds_is_not_kept():
    """Two classes at 0 % for both: the teacher has nothing there that could be kept."""
    finding = lost_by_class(NAMES, [0.9, 0.8, 0.0, 0.0, 0.7], None, [0.9, 0.5, 0.0, 0.0, 0.7])
    assert "In 2 of 3 classes the student keeps the teacher's recall" in finding.sentence
    assert "Neither of them ever finds 'grain' and 'ship'." in finding.sentence


def test_the_confusion_matrix_is_by_row_and_column():
    finding = confused(["a", "b", "c"], [10, 5, 0], [7.0, 5.0, 0.0], [(0, 1, 2.0), (0, 2, 1.0)])
    said = "It takes 'a' for 'b' most often: in 2 of 10 test examples of that class (20 %, mean of the seeds)."
    assert finding.sentence == said
    assert finding.figure["kind"] == "matrix"
    assert finding.figure["values"] == [[70.0, 20.0, 10.0], [0.0, 100.0, 0.0], [None, None, None]]
    assert "Confusion matrix" in str(draw(finding.figure, {}))
    assert confused(["a"], [1], [1.0], []).sentence.startswith("Nothing")


def test_ten_thousand_classes_cost_neither_time_nor_room():
    """In the page and in memory nothing grows with the square of the classes: 10,000 squared would be 800 MB."""
    count = 10_000
    names = [f"class {number}" for number in range(count)]
    labels = torch.arange(20_000) % count
    guess = torch.where(torch.arange(20_000) % 3 == 0, (labels * 7 + 1) % count, labels)
    part = torch.zeros(20_000, count, dtype=torch.float16).scatter_(1, guess[:, None], 1.0)
    tracemalloc.start()
    begun = time.process_time()
    counts, pairs = class_counts(part, labels), confusions([part], labels)
    found = classes_of(names, [part], None, labels)
    finding = confused(names, counts.rows.tolist(), counts.right.tolist(), [(a, b, float(c)) for a, b, c in pairs])
    page = str(draw(finding.figure, {}))
    taken, (_, most) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(finding.figure["rows"]) == PAIRS and len(page) < 20_000
    assert all(len(found[kind]["classes"]) <= 50 for kind in ("never", "seldom", "untested"))
    assert taken < 20 and most < 100e6
