"""Frozen layers below LoRA cost no backward pass, unless TRL makes the embeddings' output require gradients."""

from argparse import Namespace

import pytest
from tiny import byte_tokenizer, tiny_llama

from examples.benchmarks.speed import upper_layers


@pytest.mark.parametrize(("row", "goes_back"), [("upper third", False), ("upper third, checkpointing", True)])
def test_what_the_backward_pass_goes_through(tmp_path, row, goes_back):
    tiny_llama(byte_tokenizer(), vocab_size=9001, num_hidden_layers=6, max_position_embeddings=1024).save_pretrained(
        tmp_path / "model"
    )
    byte_tokenizer().save_pretrained(tmp_path / "model")
    args = Namespace(model=str(tmp_path / "model"), imitation=0.1, pairs=2, tokens=8)
    trainer = upper_layers.trainer_of(row, args, str(tmp_path / "out"))
    trained = {
        name.split("layers.")[1][0]
        for name, p in trainer.model.named_parameters()
        if "lora" in name and p.requires_grad
    }
    assert trained == {"4", "5"}
    seen = []
    layers = trainer.model.get_base_model().model.layers
    layers[3].register_forward_hook(lambda _, args, output: seen.append(output.requires_grad))
    upper_layers.step(trainer, trainer.data_collator(list(trainer.train_dataset)))
    assert seen[0] is goes_back
