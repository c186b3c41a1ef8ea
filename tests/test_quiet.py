"""Lines of dependencies that are left out: those named, from whom they are named, and no others."""

import logging
import subprocess
import sys
import warnings

import pytest
from shared_case import base_path, lora, outputs

from trl_ext import SharedBase
from trl_ext.trainer_kit.commands import ends_in_one_line
from trl_ext.trainer_kit.quiet import WARN_OF_NOTHING, leave_out_noise

CAST = "MatMul8bitLt: inputs will be cast from torch.float32 to float16 during quantization"
KERNEL = "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'."


@pytest.mark.parametrize(
    ("logger", "words", "is_said"),
    [
        ("bitsandbytes.autograd._functions", CAST, False),
        ("bitsandbytes.backends.cpu.ops", KERNEL, False),
        ("bitsandbytes.autograd._functions", "MatMul8bitLt: something else", True),
        ("bitsandbytes.backends.cpu.ops", f"Now {KERNEL}", True),
        ("bitsandbytes", CAST, True),
        ("users.own", CAST, True),
    ],
)
def test_what_is_named_is_left_out_and_nothing_else(caplog, logger, words, is_said):
    logging.getLogger(logger).warning(words)
    assert (words in caplog.text) == is_said
    assert logging.getLogger(logger).level == logging.NOTSET


def test_importing_trl_ext_adds_the_named_filters_alone():
    code = (
        "import warnings, logging; before = list(warnings.filters); level = logging.getLogger().level\n"
        "import trl_ext, sys; added = [f for f in warnings.filters if f not in before]\n"
        "assert [f[3].pattern for f in added] == [r'torch\\.utils\\.data\\.dataloader'], added\n"
        "assert 'torch' not in sys.modules and not logging.getLogger().filters\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_pinned_memory_without_a_card_nothing_is_said():
    words = WARN_OF_NOTHING["torch.utils.data.dataloader"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leave_out_noise()
        for text, module in ((words, "torch.utils.data.dataloader"), (words, "users.own"), ("other", "torch")):
            warnings.warn_explicit(text, UserWarning, "file.py", 1, module=module)
    assert [str(warning.message) for warning in caught] == [words, "other"]


def test_an_8_bit_base_says_nothing_of_casts(tmp_path, caplog):
    outputs(SharedBase.from_pretrained(base_path(tmp_path), bits=8).policy(lora()))
    assert "MatMul8bitLt" not in caplog.text


def test_a_command_says_once_that_the_hub_is_not_reached(caplog):
    hub = logging.getLogger("huggingface_hub.utils._http")

    def three_attempts():
        for i in range(3):
            hub.warning(f"'no route' thrown while requesting HEAD https://huggingface.co/{i}")
            hub.warning(f"Retrying in {i}s [Retry {i}/5].")
        hub.warning("Rate limited. Waiting 9s before retry [Retry 1/5].")

    with ends_in_one_line("cmd", when_stopped=""):
        three_attempts()
    assert [record.message.split(" ")[0] for record in caplog.records] == ["'no", "Retrying", "Rate"]
    three_attempts()  # outside of a command
    assert len(caplog.records) == 3 + 7
