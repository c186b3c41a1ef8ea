"""Models of a real shape whose weights are made in place, with outliers as trained ones have them; nothing is loaded.

transformers itself places and quantises the weights, one after the other, as it does with a checkpoint: it is given a
state dict whose tensors are drawn on the device when it asks for them.
"""

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trl_ext import SharedBase
from trl_ext.memory_planning.model_shapes import BUILT_IN, FIELDS
from trl_ext.shared_base.base_loading import quantisation
from trl_ext.trainer_kit.seeds import stable_seed

SMALL = {  # for computers without a GPU
    "tiny": ("llama", 512, 64, 128, 2, 4, 2, 16, False),
    "100m": ("llama", 32000, 640, 1728, 12, 10, 10, 64, False),
}
SHAPES = {name: dict(zip(FIELDS, sizes, strict=True)) for name, sizes in SMALL.items()} | BUILT_IN

OUTLIERS = 6  # channels; Dettmers et al. (2022, arXiv:2208.07339) find 6 to 7 of 4096 in a 6.7B model
OUTLIER_SCALE = 40.0  # of these channels; theirs reach 20 to 60, where all others stay below 6
OUTPUT_DEVIATION = 0.6  # of a linear layer's outputs: small enough for the MLP's products to stay below 6 too
SPECIALS = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 4


def config_of(shape: str, *, window: int) -> PreTrainedConfig:
    """The configuration of a shape, by name.

    Args:
        shape: One of `SHAPES`.
        window: Longest sequence in tokens.
    """
    if shape not in SHAPES:
        raise ValueError(f"config_of(shape={shape!r}): expected one of {', '.join(SHAPES)}. Choose one.")
    fields = dict(SHAPES[shape])
    config = AutoConfig.for_model(
        fields.pop("model_type"),
        **fields,
        max_position_embeddings=window,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config.name_or_path = shape
    return config


@dataclass(frozen=True)
class MadeWeight:
    """A weight that exists only when it is asked for, and is the same each time.

    Args:
        shape: Of the tensor.
        seed: Of its numbers.
        device, dtype: Where they are drawn, and in what.
        deviation: Of normal numbers; None: a norm's ones.
        outliers: Channels of a norm that are scaled up.
    """

    shape: tuple[int, ...]
    seed: int
    device: str
    dtype: torch.dtype
    deviation: float | None
    outliers: tuple[int, ...] = ()

    def __getitem__(self, index) -> Tensor:
        """The tensor, as transformers takes a lazily read one: `weight[...]`."""
        place = {"device": self.device, "dtype": self.dtype}
        if self.deviation is None:
            weight = torch.ones(self.shape, **place)
            weight[list(self.outliers)] = OUTLIER_SCALE
        else:
            generator = torch.Generator(self.device).manual_seed(self.seed)
            weight = torch.randn(self.shape, generator=generator, **place).mul_(self.deviation)
        return weight[index]


def made_weights(model: PreTrainedModel, *, device: str, dtype: torch.dtype, seed: int) -> dict[str, MadeWeight]:
    """A state dict for a model, of which only names and shapes are read.

    The norms in front of each layer's attention and MLP scale the same few channels up, through all layers.
    """
    hidden = model.config.hidden_size
    channels = tuple(sorted(random.Random(seed).sample(range(hidden), OUTLIERS)))
    return {
        name: MadeWeight(
            tuple(tensor.shape),
            seed=stable_seed(seed, name),
            device=device,
            dtype=dtype,
            deviation=_deviation(name, tensor, hidden),
            outliers=channels if ".layers." in name and tuple(tensor.shape) == (hidden,) else (),
        )
        for name, tensor in model.state_dict().items()
    }


def _deviation(name: str, tensor: Tensor, hidden: int) -> float | None:
    """Of a weight's numbers: what brings a block's outputs to `OUTPUT_DEVIATION`, outliers in the inputs included."""
    if name.endswith("norm.weight"):
        return None
    if tensor.dim() == 2 and ".layers." in name:
        width = tensor.size(1)
        loud = OUTLIERS * OUTLIER_SCALE**2 if width == hidden and "o_proj" not in name else 0.0
        return OUTPUT_DEVIATION / (width + loud) ** 0.5
    return 0.02  # embeddings, vocabulary head, biases


def made_model(
    shape: str, *, bits: int, device: str, window: int, threshold: float, scorer: bool = False, seed: int = 0
) -> PreTrainedModel:
    """A causal LM or a reward model in 8 or 4 bits, as `from_pretrained` would give it.

    Args:
        shape: One of `SHAPES`.
        bits: 8 or 4.
        device: Where its weights are made and stay.
        window: Longest sequence in tokens.
        threshold: Of LLM.int8(): activations above it are multiplied in 16 bits.
        scorer: Whether it has a head of one label in place of the vocabulary's.
        seed: Of its weights.
    """
    config = config_of(shape, window=window)
    config.num_labels = 1 if scorer else config.num_labels
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device("meta"):
        empty = (AutoModelForSequenceClassification if scorer else AutoModelForCausalLM).from_config(config)
    model = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=made_weights(empty, device=device, dtype=dtype, seed=seed),
        dtype=dtype,
        device_map={"": device},
        quantization_config=quantisation(bits, dtype, llm_int8_threshold=threshold),
    )
    model.config.name_or_path = shape
    return model


def made_base(shape: str, **options) -> SharedBase:
    """A shared base over a made model; `options` are those of `made_model`."""
    model = made_model(shape, **options)
    return SharedBase(model, word_tokenizer(model.config.vocab_size))


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One word per token, `w4`, `w5` and so on, so that what is sampled reads back as the same tokens."""
    vocabulary = SPECIALS | {f"w{i}": i for i in range(FIRST_WORD, vocab_size)}
    backend = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def random_text(source: random.Random, *, tokens: int, vocab_size: int) -> str:
    """So many words and a space behind them, at which a completion can begin."""
    return "".join(f"w{source.randrange(FIRST_WORD, vocab_size)} " for _ in range(tokens))


@torch.no_grad()
def outlier_columns(model: PreTrainedModel, *, tokens: int, seed: int = 0) -> dict[str, list[int]]:
    """By kind of linear layer, how many columns of its input pass LLM.int8()'s 6.0 in a pass over random tokens.

    Returns:
        One number per layer.
    """
    found: dict[str, list[int]] = {}

    def count(kind: str):
        def hook(module, args):
            found.setdefault(kind, []).append(int((args[0].abs() >= 6.0).flatten(0, -2).any(0).sum()))

        return hook

    handles = [
        module.register_forward_pre_hook(count(name.rsplit(".", 1)[-1]))
        for name, module in model.named_modules()
        if name.endswith("_proj")
    ]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_WORD, model.config.vocab_size, (1, tokens), generator=generator)
    model(input_ids=ids.to(model.device))
    for handle in handles:
        handle.remove()
    return found
