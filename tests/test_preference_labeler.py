"""Labels of a model, by hand and by enumeration; what they go into is in test_preference_training.py."""

import json
import math
import time
import warnings
from dataclasses import replace

import pytest
import torch
from ai_feedback_case import PREAMBLE, labeler, pairs
from datasets import Dataset
from forked import start
from option_case import byte_level_tokenizer, sentence_piece_tokenizer
from peft import LoraConfig
from tiny import byte_tokenizer, tiny_llama

from trl_ext import PreferenceLabeler, SharedBase
from trl_ext.ai_feedback import PREAMBLES, Example, Preamble
from trl_ext.ai_feedback.judging import Answer, judgement_of
from trl_ext.ai_feedback.preference_pairs import Pair
from trl_ext.ai_feedback.preference_report import report_of
from trl_ext.generation import TransformersGenerator
from trl_ext.sequences import grouped_choices
from trl_ext.sequences.option_log_probs import read_choices

LITTLE = pytest.mark.filterwarnings("ignore:.*of its probability to the answers")
pytestmark = LITTLE


def p_place(model, tokenizer, text: str) -> tuple[float, float]:
    """P(place 1) among both answers, and their mass, from all logits behind a text; the answers are " 1" and " 2"."""
    ids = tokenizer(text)["input_ids"]
    found = []
    for answer in (" 1", " 2"):
        whole = tokenizer(text + answer)["input_ids"]
        assert whole[: len(ids)] == ids
        with torch.no_grad():
            log_probs = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
        found.append(sum(log_probs[i - 1, whole[i]].item() for i in range(len(ids), len(whole))))
    one, two = map(math.exp, found)
    return one / (one + two), one + two


def test_judgement_by_hand():
    # σ(log 3) = 3/4 as given; σ(−log 4) = 1/5 turned around, so 4/5 for the first: ½ (3/4 + 4/5)
    log = math.log
    judgement = judgement_of(Answer([[log(0.6), log(0.2)], [log(0.1), log(0.4)]], 9))
    assert judgement.probability == pytest.approx(0.775)
    assert judgement.places == pytest.approx((0.75, 0.2))
    assert judgement.mass == pytest.approx((0.8 + 0.5) / 2)


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level_tokenizer(),
        byte_level_tokenizer(("Ġ", "1"), ("Ġ", "2")),
        sentence_piece_tokenizer(),
        sentence_piece_tokenizer("▁1", "▁2"),
    ],
    ids=["bytes split", "bytes merged", "pieces split", "pieces merged"],
)
def test_probabilities_by_enumeration(tokenizer):
    model = tiny_llama(tokenizer, max_position_embeddings=512)
    rows = pairs(3)
    found = PreferenceLabeler(model, tokenizer, preamble=PREAMBLE, batch_size=2).judge(rows)
    for row, judgement in zip(rows, found, strict=True):
        first, second = row["completion_1"], row["completion_2"]
        text = "Judge.\n\nP {}\n1 {}\n2 {}\n\nBetter:"
        one, mass = p_place(model, tokenizer, text.format(row["prompt"], first, second))
        other, mass_turned = p_place(model, tokenizer, text.format(row["prompt"], second, first))
        assert judgement.places == pytest.approx((one, other), abs=1e-5)
        assert judgement.probability == pytest.approx((one + 1 - other) / 2, abs=1e-5)
        assert judgement.mass == pytest.approx((mass + mass_turned) / 2, abs=1e-5)


def test_a_pair_turned_around_has_exactly_one_less():
    rows = pairs(6)
    turned = rows.rename_columns({"completion_1": "completion_2", "completion_2": "completion_1"})
    asked = labeler(seed=3)
    found, other = asked.judge(rows), asked.judge(turned)
    assert [each.probability for each in found] == [1 - each.probability for each in other]
    assert [1 - each.probability for each in found] == [each.probability for each in other]
    assert [each.places for each in found] == [each.places[::-1] for each in other]
    one, two = asked.label(rows).to_list(), asked.label(turned).to_list()
    assert one == two


def test_labels_are_the_likelier_one_first():
    rows, asked = pairs(5), labeler()
    found, labels = asked.judge(rows), asked.label(rows)
    assert labels.column_names == ["prompt", "chosen", "rejected", "chosen_probability"]
    for row, judgement, label in zip(rows, found, labels, strict=True):
        is_first = judgement.probability >= 0.5
        assert label["chosen"] == row["completion_1" if is_first else "completion_2"]
        assert label["rejected"] == row["completion_2" if is_first else "completion_1"]
        assert label["chosen_probability"] == max(judgement.probability, 1 - judgement.probability)


@pytest.mark.parametrize("probability, chosen, likelier", [(0.75, "a", 0.75), (0.25, "b", 0.75), (0.5, "a", 0.5)])
def test_a_label_by_hand(probability, chosen, likelier):
    label = Pair(0, "q", "a", "b", None).labelled(probability)
    rejected = "b" if chosen == "a" else "a"
    assert label == {"prompt": "q", "chosen": chosen, "rejected": rejected, "chosen_probability": likelier}


def test_messages_are_asked_as_a_users_turn_and_stay_messages():
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "Why?"}],
                "chosen": [{"role": "assistant", "content": "So."}],
                "rejected": [{"role": "assistant", "content": "No."}],
            }
        ]
    )
    asked = labeler(chat=True)
    label = asked.label(rows)[0]
    assert {label["chosen"][0]["content"], label["rejected"][0]["content"]} == {"So.", "No."}
    text = rows.map(lambda row: {"prompt": "Why?", "chosen": "So.", "rejected": "No."})
    assert asked.label(text)[0]["chosen_probability"] == label["chosen_probability"]
    assert asked.report.agreement == float(label["chosen"][0]["content"] == "So.")


def test_text_around_a_pair_by_hand():
    example = Example("e", "x", "y", 2, "y is short.")
    words = labeler(examples=[example], rationale=True).wording
    asked = words.context(_question(), 1, chat=False)
    assert asked == ("Judge.\n\nP e\n1 x\n2 y\n\nWhy: y is short.\n\nBetter: 2\n\nP q\n1 b\n2 a\n\nWhy:")
    assert words.behind(asked, " b is long. ") == f"{asked} b is long.\n\nBetter:"
    chat = words.behind(words.context(_question(), 0, chat=True), "a is long.")
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 3 + ["user"]
    assert [turn["content"] for turn in chat] == [
        "Judge.\n\nP e\n1 x\n2 y\n\nWhy:",
        "y is short.",
        "Better:",
        "2",
        "P q\n1 a\n2 b\n\nWhy:",
        "a is long.",
        "Better:",
    ]


def _question():
    from trl_ext.ai_feedback.preference_questions import Question

    return Question("q", ("a", "b"))


@pytest.mark.parametrize("chat", [False, True])
def test_reasons_are_given_first(chat):
    """The answer is read behind what the model writes; the same reasons, whatever else is asked."""
    rows = pairs(3)
    plain = labeler(chat=chat).judge(rows)
    reasoned = labeler(chat=chat, rationale=True, max_rationale_length=6)
    found = reasoned.judge(rows)
    assert [each.probability for each in found] != [each.probability for each in plain]
    warm = {"rationale": True, "max_rationale_length": 6, "temperature": 1.0}
    drawn = labeler(chat=chat, **warm).judge(rows)
    alone = labeler(chat=chat, **warm).judge(rows.select([2]))
    assert alone[0].probability == pytest.approx(drawn[2].probability, abs=1e-5)
    assert labeler(chat=chat, **warm, seed=1).judge(rows)[0] != drawn[0]


def test_reasons_and_answer_by_hand():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    model = tiny_llama(tokenizer, max_position_embeddings=512)
    asked = PreferenceLabeler(model, tokenizer, preamble=PREAMBLE, rationale=True, max_rationale_length=5)
    [found] = asked.judge(Dataset.from_list([{"prompt": "q", "completion_1": "a", "completion_2": "b"}]))
    places = []
    for first, second in ("ab", "ba"):
        text = f"Judge.\n\nP q\n1 {first}\n2 {second}\n\nWhy:"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        written = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        reason = tokenizer.decode(written, skip_special_tokens=True).strip()
        places.append(p_place(model, tokenizer, f"{text} {reason}\n\nBetter:")[0])
    assert found.places == pytest.approx(places, abs=1e-5)


def test_a_korean_pair():
    """Its words in full, one answer token behind them, and the same whichever comes first."""
    asked = labeler(chat=True, window=4096, preamble="helpfulness_korean")
    [context] = [asked.wording.context(_question(), 0, chat=True)]
    assert "어느 답변이 더 낫습니까?" in context[0]["content"] and "대화:\nq" in context[0]["content"]
    row = {
        "prompt": "서울은 어디에 있나요?",
        "completion_1": "서울은 한국의 수도입니다.",
        "completion_2": "모르겠습니다 😀",
    }
    [found] = asked.judge(Dataset.from_list([row]))
    turned = row | {"completion_1": row["completion_2"], "completion_2": row["completion_1"]}
    [other] = asked.judge(Dataset.from_list([turned]))
    assert found.probability == 1 - other.probability and found.cut == 0
    label = asked.label(Dataset.from_list([row]))[0]
    assert {label["chosen"], label["rejected"]} == {row["completion_1"], row["completion_2"]}


# -- kept, and gone on with ----------------------------------------------------------------------------------------


def count_contexts(monkeypatch) -> list[int]:
    asked = []

    def counted(model, choices, **options):
        asked.append(len(choices))
        return read_choices(model, choices, **options)

    monkeypatch.setattr("trl_ext.sequences.grouped_choices.read_choices", counted)
    return asked


def test_nothing_is_asked_twice(tmp_path, monkeypatch):
    rows, keep = pairs(6), tmp_path / "folder" / "kept.jsonl"
    asked, judge = count_contexts(monkeypatch), labeler()
    first = judge.label(rows.select(range(4)), keep=keep)
    assert sum(asked) == 8 and judge.report.asked == 4
    turned = rows.rename_columns({"completion_1": "completion_2", "completion_2": "completion_1"})
    again = labeler().label(turned, keep=keep)
    assert sum(asked) == 12
    assert again.select(range(4)).to_list() == first.to_list()
    assert not any(word in keep.read_text() for word in ("good", "bad", "q0"))
    other = labeler(seed=1)  # of other weights
    other.label(rows, keep=keep)
    assert other.report.asked == 6


def test_equal_pairs_are_asked_once(monkeypatch):
    asked = count_contexts(monkeypatch)
    rows = Dataset.from_list([*pairs(2), *pairs(2)])
    labels = labeler().label(rows)
    assert sum(asked) == 4 and labels[0] == labels[2]


PROGRAM = """
import sys, time
from ai_feedback_case import labeler, pairs
class Slow:
    def begin(self, total, done):
        pass
    def advance(self, tokens):
        time.sleep(0.1)
labeler(batch_size=1).label(pairs(20), keep=sys.argv[1], progress=Slow())
"""


def test_killed_and_gone_on(tmp_path):
    """kill −9 between parts: what was written stays, and the rest alone is asked; labels as if never killed."""
    keep, program = tmp_path / "kept.jsonl", tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = start(program, keep, output=tmp_path / "said")
    while not keep.exists() or keep.read_bytes().count(b"\n") < 6:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    with keep.open("a") as file:
        file.write('{"pair": "half of a li')
    kept = keep.read_bytes().count(b"\n")
    assert 6 <= kept < 20
    judge = labeler(batch_size=1)
    found = judge.label(pairs(20), keep=keep)
    assert judge.report.asked == 20 - kept
    assert found.to_list() == labeler(batch_size=1).label(pairs(20)).to_list()
    assert len({json.loads(line)["pair"] for line in keep.read_text().splitlines()}) == 20


class Watch:
    """Notes at each answer what is there of something."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def begin(self, total, done):
        pass

    def advance(self, tokens):
        self.seen.append(self.look())


def test_each_pass_is_written_down_before_the_next(tmp_path):
    """Ctrl-C loses what is being read, and no more."""
    keep, judge, passes = tmp_path / "kept.jsonl", labeler(batch_size=2), []
    judge._judge.model.register_forward_hook(lambda *_: passes.append(1))
    watch = Watch(lambda: (keep.read_bytes().count(b"\n"), len(passes)))
    judge.label(pairs(6), keep=keep, progress=watch)
    before = watch.seen[0][1] - 1  # that tell whether the model's cache can be shared
    assert watch.seen == [(i, before + i) for i in range(1, 7)]


def test_a_pair_that_cannot_be_cut_is_named_before_anything_is_read(tmp_path):
    rows, keep = pairs(3).to_list(), tmp_path / "kept.jsonl"
    rows[1] |= {"completion_1": "x" * 200, "prompt": "cut at first " * 9}
    with pytest.raises(
        ValueError, match=r"PreferenceLabeler.label: row 1: the pair has \d+ tokens, .*'bad 1' and 'xxx"
    ):
        labeler(window=128, batch_size=2).label(rows, keep=keep)
    assert not keep.exists() or not keep.read_text()


def test_reasons_are_written_for_a_batch_at_a_time(monkeypatch):
    written = []

    class Counted(TransformersGenerator):
        def generate(self, parts, sampling, policy):
            written.append(len(parts[0].rows))
            return super().generate(parts, sampling, policy)

    monkeypatch.setattr("trl_ext.ai_feedback.model_judge.TransformersGenerator", Counted)
    watch = Watch(lambda: sum(written))
    labeler(batch_size=4, rationale=True, max_rationale_length=2).label(pairs(4), progress=watch)
    assert watch.seen == [4, 4, 8, 8]  # both orders of two pairs


# -- what is reported ----------------------------------------------------------------------------------------------


def judgement(one: float, other: float, mass: float = 0.8, **changes):
    answers = [
        [math.log(mass / 2) + math.log(p / (1 - p)) / 2, math.log(mass / 2) - math.log(p / (1 - p)) / 2]
        for p in (one, other)
    ]
    return judgement_of(Answer(answers, 1))._replace(**changes)


def test_report_by_hand():
    judgements = [judgement(0.9, 0.9), judgement(0.8, 0.1), judgement(0.3, 0.9), judgement(0.51, 0.49)]
    # P = ½, .85, .2, .51; the first goes by place, and it and the last are undecided
    report = report_of(judgements, [1.0, 1.0, 1.0, None], equal=1, asked=4, tokens=10, seconds=2.0)
    assert (report.pairs, report.equal, report.position_bias, report.undecided) == (4, 1, 0.25, 0.5)
    assert report.first_place == pytest.approx((0.9 + 0.9 + 0.8 + 0.1 + 0.3 + 0.9 + 0.51 + 0.49) / 8)
    assert report.agreement == pytest.approx((0.5 + 1 + 0) / 3)
    low, high = report.agreement_interval
    assert 0 < low < 0.5 < high < 1
    # confidences ½, .85, .8 against right ½, 1, 0: (|.5 − .5| + |.85 − 1| + |.8 − 0|) / 3
    assert report.calibration_error == pytest.approx((0.15 + 0.8) / 3)
    assert "25.0%" in str(report) and "1 left out" in str(report) and report.to_dict()["tokens"] == 10
    none = report_of(judgements, [None] * 4, equal=0, asked=4, tokens=0, seconds=0.0)
    assert none.agreement is None and "none are given" in str(none)


def test_given_labels_may_be_soft_and_turned():
    rows = pairs(3).rename_columns({"completion_1": "chosen", "completion_2": "rejected"})
    asked = labeler()
    hard = asked.label(rows) and asked.report.agreement
    soft = asked.label(rows.add_column("chosen_probability", [0.9, 0.8, 0.7])) and asked.report.agreement
    turned = asked.label(rows.add_column("chosen_probability", [0.1, 0.2, 0.3])) and asked.report.agreement
    assert soft == hard and turned == pytest.approx(1 - hard)


# -- labelers ------------------------------------------------------------------------------------------------------


def test_a_role_of_a_shared_base_is_a_labeler():
    tokenizer = byte_tokenizer()
    base = SharedBase(tiny_llama(tokenizer, max_position_embeddings=512), tokenizer)
    role = base.policy(LoraConfig(r=2, target_modules=["q_proj"]))
    plain = PreferenceLabeler(tiny_llama(tokenizer, max_position_embeddings=512), tokenizer, preamble=PREAMBLE)
    asked = PreferenceLabeler(role, tokenizer, preamble=PREAMBLE)
    rows = pairs(3)
    expected = [each.probability for each in plain.judge(rows)]
    assert [each.probability for each in asked.judge(rows)] == pytest.approx(expected, abs=1e-6)
    before = asked.name
    with torch.no_grad():
        next(p for n, p in role.named_parameters() if "lora_B" in n).fill_(1.0)  # trained in place
    assert asked.name != before
    assert [each.probability for each in asked.judge(rows)] != pytest.approx(expected, abs=1e-6)


def test_an_8_bit_base_is_a_labeler(tmp_path):
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512}
    model = tiny_llama(tokenizer, **sizes)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    role = SharedBase.from_pretrained(tmp_path, bits=8).policy(LoraConfig(r=2, target_modules=["q_proj"]))
    rows = pairs(3)
    found = PreferenceLabeler(role, tokenizer, preamble=PREAMBLE).judge(rows)
    whole = PreferenceLabeler(tmp_path, preamble=PREAMBLE).judge(rows)
    assert [each.probability for each in found] == pytest.approx([each.probability for each in whole], abs=0.02)
    assert [each.probability for each in found] != [each.probability for each in whole]
    assert all(0 < each.mass < 1 for each in found)


# -- bad input -----------------------------------------------------------------------------------------------------


def test_equal_completions_are_left_out_and_said():
    rows = Dataset.from_list([*pairs(2), {"prompt": "q", "completion_1": "a", "completion_2": "a"}])
    asked = labeler()
    with pytest.warns(match=r"1 of 3 pairs, that of row 2 first, are left out: their completions are equal"):
        labels = asked.label(rows)
    assert len(labels) == 2 and asked.report.equal == 1
    with pytest.raises(ValueError, match="completions of all 1 pairs are equal"):
        asked.label(rows.select([2]))


@pytest.mark.parametrize("said", ["", " \n"])
def test_an_empty_completion_is_refused(said):
    rows = Dataset.from_list([*pairs(1), {"prompt": "q", "completion_1": "a", "completion_2": said}])
    with pytest.raises(ValueError, match=r"PreferenceLabeler.label: row 1 has no completion in column 'completion_2'"):
        labeler().label(rows)


@pytest.mark.parametrize("blank", [" ", "\n\t", [{"role": "assistant", "content": " "}]])
def test_a_blank_completion_is_an_empty_one(blank):
    other = "a" if isinstance(blank, str) else [{"role": "assistant", "content": "a"}]
    prompt = "q" if isinstance(blank, str) else [{"role": "user", "content": "q"}]
    with pytest.raises(ValueError, match=r"PreferenceLabeler.label: row 0 has no completion in column 'rejected'"):
        labeler().label([{"prompt": prompt, "chosen": other, "rejected": blank}])


def test_rows_are_labelled_as_a_dataset_of_them():
    assert labeler().label(pairs(3).to_list()).to_list() == labeler().label(pairs(3)).to_list()


def test_a_long_prompt_loses_its_beginning_and_it_is_said(monkeypatch):
    rows = pairs(3).to_list()
    rows[1]["prompt"] = "beginning " * 40 + "the end"
    asked, seen = labeler(window=128), []
    monkeypatch.setattr(
        "trl_ext.ai_feedback.model_judge.option_ids",
        lambda context, *rest: seen.append(context) or _option_ids(context, *rest),
    )
    with pytest.warns(
        match=r"1 of 3 prompts lost their beginning, to fit the labeler's window; that of row 1 most, \d+ tokens"
    ):
        found = asked.judge(Dataset.from_list(rows))
    shown = [context for context in seen if "the end" in context][-1]
    tokens = len(byte_tokenizer()(shown)["input_ids"]) + 2  # " 1"
    assert 120 <= tokens <= 128 and "P beginning" not in shown
    whole = len(rows[1]["prompt"])
    assert found[1].cut == whole - len(shown.partition("P ")[2].partition("\n1 ")[0])
    assert asked.report.cut == 1 and "prompts cut" in str(asked.report)
    rows[1]["completion_1"] = "x" * 200
    with pytest.raises(ValueError, match="of which the model's window takes 128"):
        asked.judge(Dataset.from_list(rows))


def _option_ids(*args):
    from trl_ext.sequences.option_log_probs import option_ids

    return option_ids(*args)


@pytest.mark.filterwarnings("default:.*of its probability")
def test_almost_no_mass_on_the_answers_is_said_with_the_share():
    asked = labeler()
    with pytest.warns(match=r"the labeler gives 0\.\d% of its probability to the answers '1' and '2'"):
        asked.label(pairs(2))
    assert asked.report.mass < 0.01
    model = asked._judge.model
    one, two = byte_tokenizer()("12")["input_ids"]
    blank = byte_tokenizer()(" ")["input_ids"][0]
    likely = torch.tensor([one, two, blank])

    def sure(module, args, logits):
        return logits.index_add(-1, likely, torch.full((*logits.shape[:-1], 3), 20.0))

    model.lm_head.register_forward_hook(sure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labeler_of = PreferenceLabeler(model, byte_tokenizer(), preamble=PREAMBLE)
        labeler_of.label(pairs(2))
    assert labeler_of.report.mass > 0.5


def test_nan_is_no_label():
    asked = labeler()
    with torch.no_grad():
        asked._judge.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="the model gives NaN for 4 of 4 contexts"):
        asked.label(pairs(2))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"preamble": "Which is better? {prompt} {completion_1}"}, r"it lacks \{completion_2\}"),
        ({"preamble": "Which is better, of these?"}, r"it lacks \{prompt\}, \{completion_1\}, \{completion_2\}"),
        (
            {"preamble": "{prompt} {completion1} {completion_2}"},
            r"no placeholder \{completion1\}. Did you mean \{completion_1\}",
        ),
        ({"preamble": "helpfullness"}, "Did you mean 'helpfulness'"),
        ({"preamble": 3}, "a Preamble, or text with placeholders"),
        ({"examples": [("a", "b", "c", 3)]}, "better 1 or 2"),
        ({"examples": [("a", "b", "c", True)]}, "better 1 or 2"),
        ({"examples": [("a", "b", "c", [1])]}, "better 1 or 2"),
        ({"examples": [("a", "b", "c", 1, None)]}, "a rationale is text too"),
        ({"examples": ["abcd"]}, "better 1 or 2"),
        ({"examples": None}, r"PreferenceLabeler\(examples=…\): expected a list, got NoneType"),
        ({"examples": "abcd"}, "expected a list, got str"),
        ({"examples": [("a", "b", "c", 1)], "rationale": True}, "Add its rationale as the fifth"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rationale": "yes"}, "rationale='yes'"),
        ({"rationale": True, "max_rationale_length": 0}, "max_rationale_length=0"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        labeler(**options)


def test_which_is_better_may_come_as_a_files_number():
    """Parquet and JSON have 1.0."""
    shown = labeler(examples=[("e", "x", "y", 2.0)])
    assert shown.wording == labeler(examples=[("e", "x", "y", 2)]).wording
    assert len(shown.label(pairs(1))) == 1


@pytest.mark.parametrize("name, given", [("instruction", None), ("pair", 3), ("ending", None), ("rationale", ["why"])])
def test_words_that_are_no_text_are_refused(name, given):
    with pytest.raises(ValueError, match=rf"Preamble\({name}=.*expected text"):
        replace(PREAMBLE, **{name: given})


@pytest.mark.parametrize("answers", [(1, 2), "12", ("1", "2", "3"), None, ("1", None), ("1", " ")])
def test_answers_that_are_no_two_words_are_refused(answers):
    with pytest.raises(ValueError, match=r"Preamble\(answers=.*expected two words that differ"):
        replace(PREAMBLE, answers=answers)


def test_answers_that_are_one_word_are_refused():
    with pytest.raises(ValueError, match="expected two words that differ"):
        Preamble("", PREAMBLE.pair, "", "", answers=("1", " 1"))


@pytest.mark.parametrize(
    "dataset, message",
    [
        ([{"prompt": "q"}], r"has the columns \['prompt'\]"),
        ([], "has the columns"),
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": 1}], "rows are not of one kind"),
        ("pairs.jsonl", r"expected a data set, got the name .pairs.jsonl.\. Read it"),
        (Dataset.from_list([{"prompt": "q", "completion": "a"}]), r"has the columns \['prompt', 'completion'\]"),
        (Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}), "has no rows"),
        (
            Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b", "chosen_probability": 2.0}]),
            "from 0 to 1",
        ),
        (Dataset.from_list([{"prompt": 3, "chosen": "a", "rejected": "b"}]), "row 0: 'prompt' is 3"),
    ],
)
def test_rows_that_are_no_pairs(dataset, message):
    with pytest.raises(ValueError, match=message):
        labeler().label(dataset)


def test_a_file_of_something_else_is_refused(tmp_path):
    keep = tmp_path / "kept.jsonl"
    keep.write_text('{"query": "x", "labeler": "y"}\n')
    with pytest.raises(ValueError, match=r"its line 1 is something else. Give a file that `PreferenceLabeler.label`"):
        labeler().label(pairs(1), keep=keep)


def test_presets_show_the_pair_and_ask_for_its_answers():
    for preamble in PREAMBLES.values():
        shown = preamble.shown("{prompt} x", "{completion_2}", "b")
        assert "{prompt} x" in shown and "{completion_2}" in shown and preamble.answers == ("1", "2")
        assert "1" in preamble.ending and "2" in preamble.ending


def test_both_orders_of_a_long_prompt_are_read_behind_it(monkeypatch):
    """As each alone, whose prompt is then all that both begin with; and in a pass of their own."""
    rows = [row | {"prompt": f"{i} " + "long " * 120} for i, row in enumerate(pairs(3).to_list())]
    asked, passes = labeler(window=2048), []
    alone = [asked.judge([row])[0].probability for row in rows]
    read = grouped_choices.read_choices
    monkeypatch.setattr(
        grouped_choices, "read_choices", lambda *args, **more: passes.append(len(args[1])) or read(*args, **more)
    )
    assert [each.probability for each in asked.judge(rows)] == pytest.approx(alone, abs=1e-5)
    assert passes == [2, 2, 2]
