"""The measures by which query types are judged."""

import numpy as np
import pytest
from tiny import byte_tokenizer, tiny_llama

from examples.benchmarks.r3.query_types import FEW, asks, calibration_error, confusion, interval, n_words, stump
from examples.query_types.train_classifier import Row
from trl_ext import LanguageModelLabeler
from trl_ext.sequences import option_log_probs


def test_calibration_error_by_hand():
    # confidences .9 (right), .9 (wrong), .6 (right): bins .9: |1 − 1.8|, .6: |1 − .6|; (.8 + .4) / 3
    p_open, is_open = np.array([0.9, 0.1, 0.6]), np.array([True, True, True])
    assert calibration_error(p_open, is_open) == pytest.approx(1.2 / 3)


def test_sure_and_right_has_no_calibration_error():
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_confusion_by_hand():
    assert (
        confusion(np.array([0.9, 0.2, 0.7, 0.1, 0.5]), np.array([True, True, False, False, True])) == "2 / 1 / 1 / 1"
    )


def test_interval_holds_the_mean():
    mean, low, high = interval(np.array([0.0, 1.0] * 50))
    assert low < mean == 0.5 < high and high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)


def test_rules_are_learned():
    rows = [Row("tell a long long tale", "open", ""), Row("who?", "closed", ""), Row("what is it", "closed", "")]
    assert stump(rows, n_words)(["a b c d e f", "a"]).tolist() == [1, 0]
    assert stump(rows, asks)(["Where is it", "Tell me.", "Well?"]).tolist() == [0, 1, 0]


def test_a_cached_instruction_changes_no_label(monkeypatch):
    """What all questions share is read once, against each question read whole."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_tokens([" A", " B", "\n\n"])  # of bytes the letters would be two, and lines would not melt
    model = tiny_llama(tokenizer, max_position_embeddings=8192)
    queries = ["\nWhy?", "Write a song.", "2 + 2"]
    for examples in ((), FEW):
        labeler = LanguageModelLabeler(model, tokenizer, examples=examples)
        fast = list(labeler.label(queries))
        with monkeypatch.context() as without:
            without.setattr(option_log_probs, "can_share", lambda module: False)
            slow = list(labeler.label(queries))
        for (_, one), (_, other) in zip(slow, fast, strict=True):
            assert one.query_type == other.query_type and one.confidence == pytest.approx(other.confidence, abs=1e-5)
