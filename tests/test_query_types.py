"""Where query types come from: the classifier, a language model, and what label_query_types makes of their labels."""

import json
import pickle
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from tiny import byte_tokenizer, tiny_llama

from trl_ext import LanguageModelLabeler, label_query_types
from trl_ext.query_types import Label, QueryTypeClassifier
from trl_ext.query_types.query_features import BUCKETS, bucket, counts, scripts, word_number
from trl_ext.query_types.query_questions import ORDERS, letter_of, question, question_text
from trl_ext.query_types.query_type_classifier import FEW, KIND, SHIPPED
from trl_ext.sequences.log_probs import completion_log_probs
from trl_ext.sequences.option_log_probs import choice_log_probs
from trl_ext.sequences.training_rows import training_row

VOCABULARY = np.array(sorted(map(word_number, "ab")), np.uint32)
POEM, CAPITAL = "Write a poem about a river.", "What is the capital of Peru?"


class Told:
    """A labeler that is sure by the length of a query, and counts what it is asked; it may die at one."""

    name, threshold, needs_file = "told", 0.5, False

    def __init__(self, dies_at=None, sure=0.9):
        self.asked, self.dies_at, self.sure = [], dies_at, sure

    def label(self, queries):
        for i, query in enumerate(queries):
            if query == self.dies_at:
                raise KeyboardInterrupt
            self.asked.append(query)
            yield i, Label("open" if len(query) > 3 else "closed", self.sure)


def rows(*prompts, **columns):
    return Dataset.from_dict({"prompt": list(prompts), **columns})


def small_classifier(**changes):
    """'a' weighs 2, 'b' −1; idf 1 and 3."""
    weights, idf = np.zeros(BUCKETS, np.float32), np.zeros(BUCKETS, np.float32)
    weights[[bucket("a"), bucket("b")]] = 2.0, -1.0
    idf[[bucket("a"), bucket("b")]] = 1.0, 3.0
    return QueryTypeClassifier(weights, idf, VOCABULARY, **{"bias": 0.5} | changes)


def test_probability_by_hand():
    # x = (1·1, 1·3), ‖x‖ = √10; the pair "a b" has idf 0. logit = .5 + (2·1 − 1·3) / √10 = .18377
    assert small_classifier().p_open("a b") == pytest.approx(1 / (1 + np.exp(-0.5 + 1 / 10**0.5)))
    # "A a": n = 2, x = (1 + log 2) · 1, which the norm makes 1
    assert small_classifier().p_open("A a") == pytest.approx(1 / (1 + np.exp(-2.5)))
    assert counts("a a")[bucket("a")] == pytest.approx(1 + np.log(2))


def test_no_known_word_leaves_the_bias():
    assert small_classifier().p_open("zzz") == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_it_abstains_where_it_has_not_learned():
    classifier = small_classifier(known=0.5)
    labels = dict(classifier.label(["a", "a zzz", "a zzz yyy", "서울은 어디", "서울 aaa", "", "  "]))
    assert [labels[i].query_type for i in range(7)] == ["open", "open", None, None, None, None, None]
    assert labels[2].reason == labels[3].reason and "language" in labels[2].reason
    assert "word" in labels[5].reason


@pytest.mark.parametrize(
    "query",
    [
        "바다에 대한 시를 써 줘.",
        "海について詩を書いて。",
        "写一首关于大海的诗。",
        "समुद्र पर एक कविता लिखो।",
        "Напиши стихи о море.",
    ],
)
def test_the_shipped_one_abstains_on_other_scripts(query):
    with pytest.warns(UserWarning, match=r"1 of 1 queries.*script or language.*LanguageModelLabeler(?!.*threshold)"):
        labelled = label_query_types(rows(query))
    assert labelled["query_type"][:] == [None] and labelled["query_type_confidence"][:] == [None]


@pytest.mark.parametrize("query", ["🎉🎉", "!!!", "…", "12 34", "x", "?", "Ciao", "Who?"])
def test_the_shipped_one_abstains_without_two_words_it_knows(query):
    with pytest.warns(UserWarning, match=r"1 of 1 queries.*(too few words|script or language)"):
        assert label_query_types(rows(query))["query_type_confidence"][:] == [None]


@pytest.mark.parametrize(
    "query", ["Napisz wiersz o morzu", "Viết một bài thơ về biển.", "Chi è?", "Quem é o presidente do Brasil?"]
)
def test_the_shipped_one_abstains_on_other_languages_in_its_letters(query):
    with pytest.warns(UserWarning, match="1 of 1 queries"):
        assert label_query_types(rows(query))["query_type_confidence"][:] == [None]


def test_a_word_is_not_taken_for_another_of_its_bucket():
    numbers = (f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}{'q' * (i % 7)}" for i in range(10**6))
    other = next(word for word in numbers if bucket(word) == bucket("a"))
    assert small_classifier(known=0.1).known_share(other) == 0.0 and small_classifier().known_share("A 1 !") == 1.0
    assert dict(small_classifier(fewest=2).label(["a b", "a zzz"]))[1].reason == FEW


def test_labels_of_other_weights_are_of_another_name():
    assert small_classifier().name == small_classifier().name != small_classifier(bias=0.6).name


def test_the_shipped_one_knows_plain_queries():
    queries = [POEM, "Suggest a name for a dog.", CAPITAL, "Translate to German\nthe train is late", "Sum 2 and 3."]
    assert label_query_types(rows(*queries), threshold=0)["query_type"][:] == ["open", "open", *["closed"] * 3]


def test_the_shipped_weights_are_small_and_fast():
    assert SHIPPED.stat().st_size < 10**6
    classifier = QueryTypeClassifier.load()
    start = time.process_time()
    list(classifier.label([POEM * 20] * 50))
    assert time.process_time() - start < 50 * 0.01


def test_scripts_are_counted_by_letters():
    assert scripts("né 12 é서") == {"LATIN": 3, "HANGUL": 1}


def test_the_last_user_turn_is_judged():
    chat = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "long enough"},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "hm?"},
    ]
    labeler = Told()
    assert label_query_types(rows(chat), labeler)["query_type"][:] == ["closed"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "why "}, {"type": "text", "text": "so?"}]}]
    assert label_query_types(rows(parts), labeler)["query_type"][:] == ["open"]
    assert labeler.asked == ["hm?", "why so?"]


def test_types_that_are_there_are_kept():
    dataset = rows("a", "long", "b", query_type=["poem", None, "open"])
    labeler = Told()
    labelled = label_query_types(dataset, labeler)
    assert labelled["query_type"][:] == ["poem", "open", "open"] and labeler.asked == ["long"]
    assert labelled["query_type_confidence"][:] == [None, 0.9, None]
    assert label_query_types(labelled, Told(), relabel=True)["query_type"][:] == ["closed", "open", "closed"]
    assert label_query_types(labelled, Told(sure=0.6))["query_type_confidence"][:] == [None, 0.9, None]


@pytest.mark.parametrize("kind", ["opem", "OPEN", "close", " closed ", "", 1])
def test_types_that_are_nearly_one_are_refused(kind):
    labeler, given = Told(), {"query_type": [None, kind] if isinstance(kind, str) else [0, kind]}
    with pytest.raises(ValueError, match=r"label_query_types: expected 'open', 'closed' or None.* in row [01]"):
        label_query_types(rows("a", "b", **given), labeler)
    assert labeler.asked == []
    assert label_query_types(rows("a", "b", **given), labeler, relabel=True)["query_type"][:] == ["closed"] * 2


def test_equal_queries_are_judged_once():
    labeler = Told()
    assert label_query_types(rows("a", "long", "a"), labeler)["query_type"][:] == ["closed", "open", "closed"]
    assert labeler.asked == ["a", "long"]


def test_all_columns_are_there_where_nothing_was_to_do():
    labelled = label_query_types(rows("a", query_type=["open"]), Told())
    assert labelled.column_names == ["prompt", "query_type", "query_type_confidence"]
    assert str(labelled.features["query_type_confidence"].dtype) == "float64"


def test_below_the_threshold_there_is_no_type():
    said = r"2 of 2 queries, e\.g\. that of row 0, .*2 less sure than threshold=0\.95.*lower `threshold`"
    with pytest.warns(UserWarning, match=said):
        labelled = label_query_types(rows("a", "b"), Told(), threshold=0.95)
    assert labelled["query_type"][:] == [None, None] and labelled["query_type_confidence"][:] == [0.9, 0.9]


@pytest.mark.parametrize(("sure", "count", "is_said"), [(0.54, 10, True), (0.55, 10, False), (0.54, 9, False)])
def test_labels_that_are_little_more_than_guesses_are_said(sure, count, is_said):
    queries = rows(*(f"query {i}" for i in range(count)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        label_query_types(queries, Told(sure=sure))
    assert [f"half of {count} types have a confidence of at most 0.540" in str(one.message) for one in caught] == [
        True
    ] * is_said


def test_a_killed_run_goes_on(tmp_path):
    """Nothing is asked twice, also where the kill has left half a line; another threshold asks nothing again."""
    keep, dataset = tmp_path / "labels.jsonl", rows("a", "b", "long", "c")
    with pytest.raises(KeyboardInterrupt):
        label_query_types(dataset, Told(dies_at="long"), keep=keep)
    with keep.open("a") as file:
        file.write('{"query": "12')
    labeler = Told()
    label_query_types(dataset, labeler, keep=keep)
    assert labeler.asked == ["long", "c"]
    assert [json.loads(line)["query_type"] for line in keep.read_text().splitlines()] == [
        *["closed"] * 2,
        "open",
        "closed",
    ]
    again = Told(dies_at="a")
    with pytest.warns(UserWarning, match="4 less sure"):
        label_query_types(dataset, again, keep=keep, threshold=0.99)
    assert again.asked == []


def test_a_file_that_cannot_be_kept_is_refused_before_anybody_is_asked(tmp_path):
    labeler = Told()
    (tmp_path / "a").write_text("")
    with pytest.raises(
        ValueError, match=r"keep='.*a/b\.jsonl'\): expected a file of labels, and it cannot be written"
    ):
        label_query_types(rows("a"), labeler, keep=tmp_path / "a/b.jsonl")
    with pytest.raises(ValueError, match=r"keep=3\): expected the name"):
        label_query_types(rows("a"), labeler, keep=3)
    assert labeler.asked == []
    label_query_types(rows("a"), labeler, keep=tmp_path / "new/labels.jsonl")
    assert (tmp_path / "new/labels.jsonl").read_text()


def test_labels_of_another_labeler_are_not_taken(tmp_path):
    label_query_types(rows("a"), Told(), keep=tmp_path / "labels.jsonl")
    other = Told()
    other.name = "other"
    label_query_types(rows("a"), other, keep=tmp_path / "labels.jsonl")
    assert other.asked == ["a"]


def test_a_list_of_rows_is_labelled_like_a_data_set():
    """A type that only a later row has is kept."""
    given = [{"prompt": "a"}, {"prompt": "b", "query_type": "closed"}]
    labeler = Told()
    labelled = label_query_types(given, labeler)
    assert labelled.to_list() == label_query_types(rows("a", "b", query_type=[None, "closed"]), Told()).to_list()
    assert labeler.asked == ["a"] and labelled["query_type"][1] == "closed"


@pytest.mark.parametrize(
    "content",
    [
        '{"query": "a", "labeler": "told", "query_type": "open", "confidence": NaN, "reason": ""}\n',
        "hello\n",
        "hello",
        '{"prompt": "a"}\n',
        "[1]\n",
        '{"query": 1, "query_type": "x"}\n',
    ],
)
def test_a_file_of_something_else_is_refused_and_left(tmp_path, content):
    keep = tmp_path / "labels.jsonl"
    keep.write_text(content)
    with pytest.raises(ValueError, match="expected a file of labels, and its line 1 is something else"):
        label_query_types(rows("a"), Told(), keep=keep)
    assert keep.read_text() == content


@pytest.mark.parametrize(
    "dataset, options, message",
    [
        (Dataset.from_dict({"question": ["a"]}), {}, r"rename_column\('question', 'prompt'\)"),
        (rows("a"), {"column": "query"}, r"column='query'\): the data set has \['prompt'\]"),
        (rows("a", ""), {}, "the prompt of row 1 is ''"),
        (rows("a", " \n"), {}, "nothing in it but white space"),
        ({"train": rows("a")}, {}, r"dataset\['train'\]"),
        (["a"], {}, "expected a Dataset, or a list of dicts, a row each; got list"),
        ("rows.jsonl", {}, r"expected a data set, got the name .rows.jsonl.\. Read it"),
        ([{"prompt": "a"}, {"prompt": 3}], {}, "its rows are not of one kind"),
        ([], {}, "expected a column `prompt`"),
        (rows("a"), {"threshold": 1.5}, r"threshold=1\.5.*probability"),
        (rows("a"), {"threshold": True}, "threshold=True"),
        (rows("a"), {"labeler": 3}, "labeler=int"),
        (rows("a"), {"labeler": __file__}, r"test_query_types\.py'\): expected weights .*\*\.safetensors"),
        (rows([{"role": "system", "content": "Be brief."}]), {}, "row 0: last_user_text.*role 'user'"),
    ],
)
def test_bad_input(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        label_query_types(dataset, **options)


def test_an_empty_last_turn_gets_no_type():
    chat = [{"role": "user", "content": " "}, {"role": "assistant", "content": "Yes?"}]
    labeler = Told()
    with pytest.warns(UserWarning, match="1 without any word"):
        assert label_query_types(rows(chat), labeler)["query_type"][:] == [None]
    assert labeler.asked == []


@pytest.mark.parametrize("sure", [float("nan"), 0.3, 1.5, None])
def test_what_is_no_label_is_not_taken(sure, tmp_path):
    with pytest.raises(
        ValueError, match=r"labeler=Told\).*expected 'open', 'closed' or None with a confidence.*for 'a'"
    ):
        label_query_types(rows("a"), Told(sure=sure), keep=tmp_path / "labels.jsonl")
    assert not (tmp_path / "labels.jsonl").read_text()


@pytest.mark.parametrize("chat", [False, True])
def test_a_query_beyond_the_window_loses_its_end(chat, monkeypatch):
    tokenizer = byte_tokenizer()
    if not chat:
        tokenizer.chat_template = None
    model = tiny_llama(tokenizer, max_position_embeddings=700)
    read = []

    def noted(model, choices, **options):
        read.extend(len(choice.context) + 1 for choice in choices)
        return choice_log_probs(model, choices, **options)

    monkeypatch.setattr("trl_ext.query_types.language_model_labeler.choice_log_probs", noted)
    labeler = LanguageModelLabeler(model, tokenizer)
    with pytest.warns(UserWarning, match=r"1 of 2 queries, e\.g\. '왜 왜.*lost their end, to fit the model's window"):
        labelled = label_query_types(rows("왜 " * 400, "why"), labeler)
    assert None not in labelled["query_type"][:] and 695 < max(read) <= 700
    [whole] = list(labeler.label(["why"]))
    assert labelled["query_type_confidence"][1] == pytest.approx(whole[1].confidence, abs=1e-5)
    with pytest.raises(ValueError, match="window of 700 tokens does not hold the question about 'why'"):
        list(LanguageModelLabeler(model, tokenizer, examples=[("x" * 300, "open")]).label(["why"]))


def test_a_language_model_that_gives_nan_is_refused():
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, max_position_embeddings=2048)
    model.lm_head.weight.data[:] = float("nan")
    with pytest.raises(
        ValueError, match=r"LanguageModelLabeler: the model gives NaN for 1 of 1 queries.*'Write a poem"
    ):
        list(LanguageModelLabeler(model, tokenizer).label([POEM]))


def wrong_tensors(path):
    save_file({"weights": np.zeros(3, np.float32)}, path)


def wrong_size(path):
    classifier = small_classifier()
    QueryTypeClassifier(classifier.weights[:5], classifier.idf[:5], VOCABULARY, bias=0.0).save(path)


def not_finite(path):
    small_classifier(bias=0.0).save(path)
    tensors = {"weights": np.full(BUCKETS, np.nan, np.float16), "idf": np.ones(BUCKETS, np.float16)}
    tensors["vocabulary"] = VOCABULARY
    save_file(tensors, path, metadata={"kind": KIND, "settings": '{"bias": 0.0, "scripts": ["LATIN"]}'})


@pytest.mark.parametrize(
    "write",
    [
        not_finite,
        wrong_tensors,
        wrong_size,
        lambda path: path.write_bytes(pickle.dumps({})),
        lambda path: path.write_text(""),
        lambda path: None,
    ],
)
def test_weights_that_are_something_else(tmp_path, write):
    path = tmp_path / "mine.safetensors"
    write(path)
    with pytest.raises(ValueError, match=r"mine\.safetensors'\): expected a file of its weights, and"):
        label_query_types(rows("a"), path)


def test_weights_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "mine.safetensors"
    written = small_classifier(scripts=("LATIN", "HANGUL"), known=0.25, threshold=0.6)
    written.save(path)
    read = QueryTypeClassifier.load(path)
    assert (read.scripts, read.known, read.threshold, read.bias) == (("LATIN", "HANGUL"), 0.25, 0.6, 0.5)
    assert read.p_open("a b c") == pytest.approx(written.p_open("a b c"))
    assert label_query_types(rows("a a"), path)["query_type"][:] == ["open"]


def log_prob(model, tokenizer, asked, answer):
    """Of an answer, token for token."""
    ids = tokenizer(asked)["input_ids"], tokenizer(answer)["input_ids"]
    [found] = completion_log_probs(model, [training_row(*ids)], pad_token_id=0, batch_size=1, device=model.device)
    return sum(found)


@pytest.mark.parametrize("chat", [True, False])
def test_a_language_model_is_read_in_both_orders(chat):
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, max_position_embeddings=2048)
    if not chat:
        tokenizer.chat_template = None

    def text(order):
        if not chat:
            return question_text(CAPITAL, order)
        return tokenizer.apply_chat_template(question(CAPITAL, order), tokenize=False, add_generation_prompt=True)

    blank = "" if chat else " "
    odds = [
        log_prob(model, tokenizer, text(order), blank + letter_of("open", order))
        - log_prob(model, tokenizer, text(order), blank + letter_of("closed", order))
        for order in ORDERS
    ]
    p_open = 1 / (1 + np.exp(-sum(odds) / 2))
    labels = dict(LanguageModelLabeler(model, tokenizer, batch_size=2).label([POEM, "b", CAPITAL]))
    assert labels[2].confidence == pytest.approx(max(p_open, 1 - p_open), abs=1e-5)
    assert labels[2].query_type == ("open" if p_open > 0.5 else "closed")


def test_a_language_model_labels_a_data_set(tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer, max_position_embeddings=2048)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    given = label_query_types(rows(POEM, CAPITAL), LanguageModelLabeler(model, tokenizer))
    loaded = label_query_types(rows(POEM, CAPITAL), tmp_path)
    assert given["query_type"][:] == loaded["query_type"][:] and None not in given["query_type"][:]
    examples = [("Why?", "open"), ("2 + 2?", "closed")]
    shown = label_query_types(rows(POEM, CAPITAL), LanguageModelLabeler(model, tokenizer, examples=examples))
    assert shown["query_type_confidence"][:] != given["query_type_confidence"][:]


def test_what_a_model_said_is_not_taken_for_anothers():
    """By its weights, its adapter and its question; not by where it lies."""
    tokenizer = byte_tokenizer()
    model, other = tiny_llama(tokenizer), tiny_llama(tokenizer, seed=1)
    name = LanguageModelLabeler(model, tokenizer).name
    assert name == LanguageModelLabeler(tiny_llama(tokenizer), tokenizer).name
    assert name != LanguageModelLabeler(model, tokenizer, examples=[("a", "open")]).name
    assert name != LanguageModelLabeler(other, tokenizer).name
    adapted = get_peft_model(tiny_llama(tokenizer), LoraConfig(r=2, target_modules=["q_proj"]))
    labeler = LanguageModelLabeler(adapted, tokenizer)
    before = labeler.name
    assert before != name
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if "lora_B" in n).fill_(1.0)  # trained in place
    assert labeler.name != before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": 3}, "expected a causal LM"),
        ({"model": "/nowhere/at/all"}, "cannot be loaded"),
        ({"model": tiny_llama(byte_tokenizer()), "examples": [("a", "poem")]}, r"examples=\[\('a', 'poem'\)"),
        ({"model": tiny_llama(byte_tokenizer()), "examples": [3]}, r"examples=\[3"),
        (
            {"model": tiny_llama(byte_tokenizer()), "examples": None},
            r"LanguageModelLabeler\(examples=…\): expected a list",
        ),
        ({"model": tiny_llama(byte_tokenizer()), "batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_a_language_model_labeler_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelLabeler(**{"tokenizer": byte_tokenizer()} | options)


def test_the_shipped_labels_have_no_queries():
    """Labels travel, rows do not; and no source has one label only."""
    folder = Path(__file__).parents[1] / "examples/query_types"
    header, *lines = (folder / "labels.csv").read_text().splitlines()
    assert header == "query_hash,source,query_type,second_pass" and len(lines) >= 400
    assert all(len(line.split(",")[0]) == 16 for line in lines)
