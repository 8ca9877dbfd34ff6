"""The time map: steps of two tokenizers meet where they stand for the same bytes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.data.arrays import ArraySource
from stillroom.errors import LossError
from stillroom.learner import Learner
from stillroom.losses import attention_relations, forward_kl, memory, memory_prefix
from stillroom.models.text_encode import HuggingFaceEncode, WordEncode
from stillroom.objectives import match
from stillroom.objectives.timing import mean_by_overlap, overlap, rows_of, states_by_overlap
from stillroom.record import record
from stillroom.settings import Training
from stillroom.teachers import Live
from stillroom.train import train
from stillroom.utf8 import pack

TEXTS = ["a wonderful film", "bad", "très émouvant, vraiment", "好 film"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def word_pieces() -> HuggingFaceEncode:
    """Word pieces of at most three letters between [CLS] and [SEP]."""
    tokenizers = pytest.importorskip("tokenizers")
    starts = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", "a", "won", "fil", "bad", "trè", "émo", "vra", "好"}
    rest = {"##der", "##ful", "##m", "##s", "##uva", "##nt", "##ime"}
    vocabulary = {piece: number for number, piece in enumerate([*sorted(starts), *sorted(rest)])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return HuggingFaceEncode(made)


def cut(unit: str) -> tuple[Tensor, Tensor]:
    """Mask and spans of the texts in this unit."""
    encode = word_pieces() if unit == "pieces" else WordEncode(["film"], unit=unit)
    return encode.steps(pack(TEXTS))


UNITS = ["word", "character", "pieces"]


def spans_of(*rows: list[tuple[int, int]]) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [(0, 0)] * (longest - len(row)) for row in rows], dtype=torch.int32)


# --- the map itself ----------------------------------------------------------------------------------------------


def test_overlap_by_hand():
    student = spans_of([(0, 5), (6, 9)], [(0, 2)])
    teacher = spans_of([(0, 0), (0, 3), (3, 7), (7, 9), (0, 0)], [(0, 0), (0, 2), (0, 0)])
    expected = [[[0, 3, 2, 0, 0], [0, 0, 1, 2, 0]], [[0, 2, 0, 0, 0], [0, 0, 0, 0, 0]]]
    assert overlap(student, teacher).tolist() == expected


@pytest.mark.parametrize("theirs", UNITS)
@pytest.mark.parametrize("ours", UNITS)
def test_steps_meet_as_a_loop_over_bytes_says(ours, theirs):
    (mask, mine), (_, spans) = cut(ours), cut(theirs)
    shared, tokens = overlap(mine, spans), drawn(len(TEXTS), spans.shape[1], 3)
    states = drawn(len(TEXTS), spans.shape[1], 2, 2, 3, seed=1)
    mapped, moved = mean_by_overlap(tokens, shared), states_by_overlap(states, shared)
    met = 0
    for row, text in enumerate(TEXTS):
        for step in range(mine.shape[1]):
            wanted = set(range(*mine[row, step].tolist()))
            common = [len(wanted & set(range(*span))) for span in spans[row].tolist()]
            assert shared[row, step].tolist() == common
            found = [place for place, count in enumerate(common) if count]
            if not found:
                assert not mapped[row, step].any()
                continue
            assert mask[row, step] and text.encode()[min(wanted) : max(wanted) + 1].decode()
            met += 1
            mean = sum(tokens[row, place] * common[place] for place in found) / sum(common)
            assert torch.allclose(mapped[row, step], mean, atol=1e-6)
            assert torch.equal(moved[row, step, :, 0], states[row, found[-1], :, 0])
            assert torch.equal(moved[row, step, :, 1], states[row, found[0], :, 1])
    assert met >= 10


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_steps_on_both_sides_are_the_identity_to_the_last_bit(unit, dtype):
    mask, spans = cut(unit)
    tokens, states = drawn(*mask.shape, 5).to(dtype), drawn(*mask.shape, 2, 2, 3, seed=1).to(dtype)
    shared = overlap(spans, spans)
    used = (shared > 0).any(2)
    assert torch.equal(used, mask & (spans[..., 1] > spans[..., 0])) and used.any()
    assert torch.equal(mean_by_overlap(tokens, shared)[used], tokens[used].float())
    assert torch.equal(states_by_overlap(states, shared)[used], states[used])


def test_rows_without_a_step_give_one_row_of_zeros():
    values = drawn(2, 3, 4).requires_grad_()
    found = rows_of(values, torch.zeros(2, 3, dtype=torch.bool))
    assert found.shape == (1, 4) and not found.any()
    found.sum().backward()
    assert not values.grad.any()


# --- through an objective ------------------------------------------------------------------------------------------


def sides(ours: str, theirs: str, *shape: int, width: int = 6, owner: str = "") -> tuple[dict, dict]:
    (mask, spans), (their_mask, their_spans) = cut(ours), cut(theirs)
    student = {"a": drawn(*mask.shape, *shape, width), "a.mask": mask, "spans": spans, "spans.mask": mask}
    teacher = {"b": drawn(*their_mask.shape, *shape, width, seed=1), "b.mask": their_mask}
    teacher |= {"spans": their_spans, "spans.mask": their_mask}
    return student, {f"{owner}{name}": value for name, value in teacher.items()}


def by_hand(student: dict, teacher: dict, owner: str = "") -> tuple[Tensor, Tensor]:
    """The teacher's values in the student's time, and which steps count."""
    shared = overlap(student["spans"], teacher[f"{owner}spans"])
    values = teacher[f"{owner}b"]
    return (states_by_overlap if values.dim() == 5 else mean_by_overlap)(values, shared), (shared > 0).any(2)


@pytest.mark.parametrize("owner", ["", "big/"])
@pytest.mark.parametrize("theirs", UNITS)
def test_relations_cross_tokenizers(theirs, owner):
    student, teacher = sides("word", theirs, owner=owner)
    target, used = by_hand(student, teacher, owner)
    value = match("attention_relations", "a", f"{owner}b")(student, teacher, {})
    assert torch.equal(value, attention_relations(student["a"], target, student["a.mask"], used))


def test_token_logits_cross_tokenizers_and_still_need_equal_classes():
    student, teacher = sides("word", "pieces")
    target, used = by_hand(student, teacher)
    objective = match("forward_kl", "a", "b")
    assert torch.equal(objective(student, teacher, {}), forward_kl(student["a"], target, student["a.mask"], used))
    with pytest.raises(LossError, match=r"needs equal shapes: got the student's 'a' \(4, 4, 6\).*\(4, 4, 5\)"):
        objective(student, teacher | {"b": teacher["b"][..., :5]}, {})


@pytest.mark.parametrize("width", [6, 9])
def test_a_hint_on_tokens_is_taken_step_by_step(width):
    student, teacher = sides("word", "pieces")
    teacher["b"] = drawn(*teacher["b"].shape[:2], width, seed=2)
    objective = match("hint", "a", "b")
    objective.size(student, teacher, {})
    assert [tuple(weight.shape) for weight in objective.parameters()] == ([] if width == 6 else [(9, 6)])
    target, used = by_hand(student, teacher)
    ours = student["a"] if width == 6 else objective.connectors["0"](student["a"])
    assert torch.allclose(objective(student, teacher, {}), F.mse_loss(ours[used], target[used]), rtol=1e-6)
    spoiled = student | {"a": student["a"].masked_fill(~used[..., None], 1e6)}
    assert torch.equal(objective(spoiled, teacher, {}), objective(student, teacher, {}))


@pytest.mark.parametrize("loss", ["memory", "memory_prefix"])
@pytest.mark.parametrize("ours", ["word", "character"])
def test_memories_cross_tokenizers(ours, loss):
    student, teacher = sides(ours, "pieces", 2, 2)
    if loss == "memory_prefix":
        teacher["b"] = teacher["b"][:, :, 0, 0]
    target, used = by_hand(student, teacher)
    objective = match(loss, "a", "b")
    objective.size(student, teacher, {})
    function = memory if loss == "memory" else memory_prefix
    assert torch.equal(objective(student, teacher, {}), function(student["a"], target, student["a.mask"], used))
    (mask, _), (own, _) = cut(ours), cut(ours)
    assert mask.shape != teacher["b"].shape[:2] and torch.equal(mask, own)


def test_the_same_tokens_on_both_sides_give_the_plain_loss():
    student, teacher = sides("word", "word", 1, 1)
    objective = match("memory", "a", "b")
    objective.size(student, teacher, {})
    plain = memory(student["a"], teacher["b"], student["a.mask"], teacher["b.mask"])
    assert torch.equal(objective(student, teacher, {}), plain)


def test_what_nothing_stands_for_neither_counts_nor_pulls():
    """The teacher was cut after its first tokens: the student's later words have no target."""
    student, teacher = sides("word", "pieces", 1, 1)
    keep = 3
    for name in ("b", "b.mask", "spans", "spans.mask"):
        teacher[name] = teacher[name][:, :keep]
    states = student["a"].requires_grad_()
    objective = match("memory", "a", "b")
    objective.size(student, teacher, {})
    objective(student, teacher, {}).backward()
    _, used = by_hand(student, teacher)
    assert not used.all() and used.any()
    assert not states.grad[~used].any() and states.grad[used].any()


def test_padding_that_claims_bytes_is_left_out():
    student, teacher = sides("word", "pieces", 1, 1)
    wrong = teacher | {"spans": torch.where(teacher["spans.mask"][..., None], teacher["spans"], torch.tensor([0, 99]))}
    objective = match("memory", "a", "b")
    objective.size(student, teacher, {})
    assert torch.equal(objective(student, wrong, {}), objective(student, teacher, {}))


def test_without_spans_tokens_are_pooled_and_states_refused():
    student, teacher = sides("word", "pieces", 1, 1)
    del teacher["spans"]
    with pytest.raises(LossError, match=r"States are compared step by step: got the student's \(4, 4, 1, 1, 6\)"):
        match("memory", "a", "b").size(student, teacher, {})
    student, teacher = sides("word", "pieces")
    del student["spans"]
    objective = match("hint", "a", "b")
    objective.size(student, teacher, {})
    pooled = [(side[k] * side[f"{k}.mask"][..., None]).sum(1) for side, k in ((student, "a"), (teacher, "b"))]
    counts = [side[f"{k}.mask"].sum(1, keepdim=True) for side, k in ((student, "a"), (teacher, "b"))]
    assert torch.allclose(objective(student, teacher, {}), F.mse_loss(pooled[0] / counts[0], pooled[1] / counts[1]))


# --- cells at borders ------------------------------------------------------------------------------------------------


def test_borders_are_never_mapped():
    (mask, spans), (_, other) = cut("word"), cut("pieces")
    rows, steps = mask.shape
    shown = {"m@c": drawn(rows, steps, 1, 1, 4), "m@c.mask": mask, "spans": spans, "spans.mask": mask}
    more = {"m@c": drawn(rows, other.shape[1], 1, 1, 4, seed=1)}
    with pytest.raises(LossError, match=r"Cells are read at borders \('memory@c/8'\), which must be as many.*memory@h"):
        match("memory_cells", "m@c", "m@c").size(shown, more, {})
    told = {"m@c": drawn(rows, steps, 1, 1, 4, seed=1), "spans": spans}
    objective = match("memory_cells", "m@c", "m@c")
    objective.size(shown, told, {})
    assert objective(shown, told, {}) > 0
    wider = {"spans": F.pad(spans, (0, 0, 0, 2)), "spans.mask": F.pad(mask, (0, 2))}
    assert torch.equal(objective(shown, told | wider, {}), objective(shown, told, {})), "padding stands for nothing"


@pytest.mark.parametrize("tap", ["m@c", "m@segments.h/1"])
def test_borders_of_other_tokens_are_refused(tap):
    """After as many steps two tokenizers stand at other words, which equal numbers of borders would hide."""
    (mask, spans), (_, other) = cut("word"), cut("pieces")
    rows, steps = mask.shape
    shown = {tap: drawn(rows, steps, 1, 1, 4), f"{tap}.mask": mask, "spans": spans, "spans.mask": mask}
    theirs = "m@c" if tap == "m@c" else "m@h"
    for strange in (spans + 1, F.pad(spans, (0, 0, 0, 1), value=3), other):
        told = {theirs: drawn(rows, steps, 1, 1, 4, seed=1), "spans": strange}
        with pytest.raises(LossError, match="stand for different bytes of the same texts.*one encode"):
            match("memory_cells", tap, theirs).size(shown, told, {})


def test_borders_of_another_spacing_are_refused():
    """Four borders of 28 steps, by 7 and by 8: equal shapes, other steps."""
    shown, told = ({"m@c": drawn(2, 4, 1, 1, 6, seed=seed)} for seed in (0, 1))
    match("memory_cells", "m@c/7", "m@c/7").size(shown, told, {})
    with pytest.raises(LossError, match="'m@c/7' of the student and 'm@c/8' of the teacher.*same number behind"):
        match("memory_cells", "m@c/7", "m@c/8").size(shown, told, {})


def test_states_and_cells_meet_in_one_direction_only():
    told = {"m@c": drawn(2, 5, 1, 2, 4)}
    for directions, fits in ((1, True), (2, False)):
        shown = {"m@h": drawn(2, 5, 1, directions, 4)}
        objective = match("memory_cells", "m@h", "m@c")
        if fits:
            objective.size(shown, told, {})
            continue
        with pytest.raises(LossError, match="order of the text and cells in the order of reading"):
            objective.size(shown, told, {})


def test_a_gru_has_no_cell():
    with pytest.raises(LossError, match=r"'m@c'.*A GRU has no cell: read '@h'"):
        match("memory_cells", "m@c", "m@c").size({"m@h": drawn(2, 5, 1, 1, 4)}, {"m@c": drawn(2, 5, 1, 1, 4)}, {})


# --- two real models with tokens of their own -----------------------------------------------------------------------


class Words(nn.Module):
    """A small recurrent reader of texts, which shows its inner tokens too."""

    def __init__(self, vocabulary: int, width: int, seed: int, **options) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(vocabulary, width)
            self.memory = nn.LSTM(width, width, batch_first=True, **options)
            self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 2)

    def forward(self, ids: Tensor | None = None, mask: Tensor | None = None, **named: Tensor) -> Tensor:
        ids = named["input_ids"] if ids is None else ids
        return self.head(self.memory(self.embed(ids))[0].mean(1))


def test_two_tokenizers_train_live_and_from_a_store(tmp_path):
    texts = [text * (1 + row % 3) for row, text in enumerate(TEXTS * 3)]
    splits = {"train": torch.arange(12), "validation": torch.arange(0), "test": torch.arange(0)}
    data = ArraySource(pack(texts), torch.arange(12) % 2, splits=splits, name="texts")
    encode, theirs = WordEncode(["film", "bad"], unit="word"), word_pieces()
    taps = ["logits", "embed", "memory@h"]
    teacher = Live(Words(theirs.size, 8, 1, bidirectional=True), taps, encode=theirs)
    store = record(teacher, data, tmp_path, taps=taps, fingerprints={"teacher": "t", "data": data.fingerprint})
    objectives = [
        match("memory", "memory@h", "memory@h"),
        match("memory_prefix", "memory@h", "embed"),
        match("hint", "embed", "embed"),
        match("attention_relations", "embed", "embed"),
    ]
    batch, found = data.batch(torch.stack([torch.arange(4), torch.zeros(4, dtype=torch.long)], 1)), []
    for told in (teacher, store):
        learner = Learner(Words(encode.size, 5, 2), copy.deepcopy(objectives), encode=encode)
        learner.size(batch, told(batch))
        found.append({name: float(value.detach()) for name, value in learner(batch, told(batch)).items()})
        settings = Training(steps=3, batch=4, lr=1e-2, schedule="constant")
        losses = [float(step.losses["loss"].detach()) for step in train(learner, data, told, settings)]
        assert len(losses) == 3 and all(0 < value < 1e3 for value in losses)
    assert found[0] == pytest.approx(found[1], rel=2e-2), "a store keeps what the steps stand for"
    short = {**batch, "inputs": batch["inputs"][:, :4]}
    assert learner(short, teacher(short))["memory"] > 0, "another length than at sizing"
