"""Encoders small enough to work by hand, and a BERT small enough to run often."""

from types import SimpleNamespace

import torch
from tiny import byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, PreTrainedTokenizerFast

WORDS = ["<pad>", "<unk>", "<cls>", "sky", "blue", "why", "two", "is", "the", "grass"]


def word_tokenizer(special: bool = False) -> PreTrainedTokenizerFast:
    """One token per word, and `<cls>` before them if `special`."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        backend.post_processor = TemplateProcessing(single="<cls> $A", special_tokens=[("<cls>", vocab["<cls>"])])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", cls_token="<cls>")


class OneHot(nn.Module):
    """Each token's hidden state is its unit vector, so that a text's vector is the share of each word in it."""

    def __init__(self, window: int = 512):
        super().__init__()
        self.vectors = nn.Parameter(torch.eye(len(WORDS)))
        self.window = window
        self.shapes = []  # of each forward pass: rows, tokens

    @property
    def config(self):
        return LlamaConfig(max_position_embeddings=self.window)

    def forward(self, input_ids, attention_mask):
        self.shapes.append(tuple(input_ids.shape))
        return SimpleNamespace(last_hidden_state=self.vectors[input_ids])


def tiny_bert(tokenizer, seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def saved_bert(folder) -> str:
    """A folder with a tiny BERT over bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None  # with one, sentence-transformers would wrap each text in it
    tiny_bert(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
