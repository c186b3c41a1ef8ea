"""Word tokenizers for the small world: one that keeps spaces (policy), one in BERT's manner (relevance encoder)."""

import re

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trl_ext.demo.answers import EVASIVE
from trl_ext.demo.attributes import ATTRIBUTES, OPEN_QUESTIONS
from trl_ext.demo.corpus import HEDGES, OPENERS, PEOPLE_ASK
from trl_ext.demo.world import Entity

PIECE = r" ?\w+|'s|[^\w\s]|\s"


def policy_tokenizer(world: list[Entity]) -> PreTrainedTokenizerFast:
    """One token per word or mark; a word carries the space before it, as in GPT-2.

    So a completion that begins with a space has the same tokens alone as after its prompt, and decoding is joining.
    """
    pieces = sorted({piece for text in _all_sentences(world) for piece in re.findall(PIECE, text)})
    vocab = {piece: i for i, piece in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *pieces])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def encoder_tokenizer(world: list[Entity]) -> PreTrainedTokenizerFast:
    """Lower-cased words and marks between [CLS] and [SEP]."""
    words = sorted({word for text in _all_sentences(world) for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def _all_sentences(world: list[Entity]) -> list[str]:
    """Everything that can be said in this world, also what is not true; each also in the middle of a text."""
    texts = [EVASIVE, PEOPLE_ASK, *HEDGES]
    for entity in world:
        texts += [template.format(s=entity.subject) for template in OPENERS + OPEN_QUESTIONS]
        for attribute in ATTRIBUTES[entity.kind].values():
            texts += [question.format(s=entity.subject) for question in attribute.questions]
            texts += [form.format(s=entity.subject, v=v) for form in attribute.sentences for v in attribute.values]
    return [start + text for text in texts for start in ("", " ")]
