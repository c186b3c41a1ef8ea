"""What a notebook does on a card, `ON_A_CARD = True`, with stand-ins for the models and the data of the hub.

8 bits, gradient checkpointing, messages instead of text, a reward model from the hub; that of SharedBase is in
test_notebooks.py.
"""

from pathlib import Path

import pytest
from forked import start
from test_notebooks import ON_A_CARD, save_like_llama_2
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_ext.demo import ASSETS

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder where the models that the notebooks name are folders."""
    monkeypatch.chdir(tmp_path)
    policy, scorer, encoder = (
        Path(name)
        for name in (
            "Qwen/Qwen2.5-7B-Instruct",
            "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
            "sentence-transformers/all-MiniLM-L6-v2",
        )
    )
    save_like_llama_2(policy)
    model = AutoModelForSequenceClassification.from_pretrained(ASSETS / "policy", num_labels=1)
    model.save_pretrained(scorer)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "policy")
    tokenizer.chat_template = TEMPLATE
    for folder in (policy, scorer):
        tokenizer.save_pretrained(folder)
    encoder.parent.mkdir()
    encoder.symlink_to(ASSETS / "encoder")


@pytest.mark.slow
@pytest.mark.parametrize("path", ON_A_CARD, ids=lambda path: path.stem)
def test_with_the_settings_for_a_card(path, hub, tmp_path):
    program = Path(__file__).with_name("card_notebook.py")
    process = start(program, path, output=tmp_path / "said", TRL_EXT_NOTEBOOK_FAST="1")
    process.join()
    said = "".join((tmp_path / f"said.{end}").read_text()[-4000:] for end in ("out", "err"))
    assert process.exitcode == 0, said
    assert float(Path("seconds").read_text()) < 30, said  # 5, where nothing else runs
