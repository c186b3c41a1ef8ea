"""Who samples for `trl-ext generate`, and the model that is sampled."""

import warnings
from argparse import Namespace

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from trl_ext import generation
from trl_ext.generation.endpoint_answers import public_url
from trl_ext.generation.extra_fields import read_extra_body
from trl_ext.generation.protocol import Generator, Policy
from trl_ext.generation.vllm_checks import check_installed
from trl_ext.sequences.tokenizers import tokenizer_at
from trl_ext.trainer_kit.device import default_device
from trl_ext.trainer_kit.loading import loading
from trl_ext.trainer_kit.saved_adapters import attach, read_adapter, same_base

LOADED = ("transformers", "vllm")  # generators that are given the model
SAMPLING = (*LOADED, "endpoint")
READ_BY = {  # options that not each generator reads: their defaults, and those that do
    "--base-url": (None, ("endpoint",)),
    "--extra-body": (None, ("endpoint",)),
    "--file": (None, ("file",)),
    "--adapter": (None, (*LOADED, "file")),
    "--tokenizer": (None, (*LOADED, "file")),
    "--dtype": ("auto", LOADED),
    "--batch-size": (None, ("transformers",)),
    "--temperature": (1.0, SAMPLING),
    "--top-p": (1.0, SAMPLING),
    "--top-k": (0, SAMPLING),
    "--min-p": (None, SAMPLING),
    "--repetition-penalty": (1.0, SAMPLING),
}


def make_generator(args: Namespace) -> Generator:
    """The generator that is named, or a ValueError for options that it lacks or has no use for."""
    for option, (default, users) in READ_BY.items():
        value = getattr(args, option.strip("-").replace("-", "_"))
        if value != default and args.generator not in users:
            shown = public_url(value) if option == "--base-url" else value
            raise ValueError(f"{option} {shown}: --generator {args.generator} has no use for it. Leave it out.")
    if args.generator == "file":
        if args.file is None:
            raise ValueError(
                "--generator file: expected --file, a .parquet or .jsonl file of prompts and completions."
            )
    elif not (args.model or (args.adapter and args.generator in LOADED)):
        raise ValueError(f"--generator {args.generator}: expected --model.")
    return _generator(args)


def _generator(args: Namespace) -> Generator:
    if args.generator == "transformers":
        return generation.TransformersGenerator(batch_size=args.batch_size)
    if args.generator == "vllm":
        check_installed(call="--generator vllm")  # before a model is loaded for it
        return generation.VLLMGenerator(dtype=args.dtype)
    if args.generator == "endpoint":
        extra = read_extra_body(args.extra_body, flag="--extra-body")
        return generation.EndpointGenerator(args.model, args.base_url, extra_body=extra)
    return generation.FileGenerator(args.file)


def make_policy(args: Namespace) -> Policy:
    """What the generator asks: for an endpoint nothing, for a file the tokenizer of its ids, else also the model."""
    if args.generator == "endpoint":
        return Policy(None, None)  # which it does not ask
    model, adapter = _model_and_adapter(args.model, args.adapter)
    policy = load_policy(model, adapter, args) if args.generator in LOADED else None
    return Policy(policy, load_tokenizer([args.tokenizer] if args.tokenizer else [adapter, model]))


def _model_and_adapter(model: str | None, adapter: str | None) -> tuple[str | None, str | None]:
    """Both, where only one is given that names the other."""
    if model and not adapter and _loaded("--model", model, lambda: find_adapter_config_file(model)) is not None:
        model, adapter = None, model
    if adapter and not model:
        model = _loaded("--adapter", adapter, lambda: PeftConfig.from_pretrained(adapter).base_model_name_or_path)
    return model, adapter


def load_tokenizer(places: list[str | None]) -> PreTrainedTokenizerBase:
    """The tokenizer at the first place that has one."""
    tokenizer = tokenizer_at(*places)
    if tokenizer is None:
        where = ", ".join(filter(None, places)) or "--tokenizer or --model, of which none is given"
        raise ValueError(f"no tokenizer could be loaded from {where}. Give --tokenizer the path or hub id of one.")
    return tokenizer


def load_policy(model: str, adapter: str | None, args: Namespace) -> PreTrainedModel | PeftModel:
    """The model, with its adapter if there is one, where it is to be sampled."""
    policy = _loaded("--model", model, lambda: AutoModelForCausalLM.from_pretrained(model, dtype=args.dtype))
    if adapter is not None:
        made_for = _loaded("--adapter", adapter, lambda: PeftConfig.from_pretrained(adapter).base_model_name_or_path)
        if not same_base(made_for, model):
            warnings.warn(f"--adapter {adapter}: it was made for {made_for}, and --model is {model}.", stacklevel=2)
        policy = attach(policy, read_adapter(adapter, call=f"--adapter {adapter}"), trainable=False)
    own_process = torch.device("cpu") if args.generator == "vllm" else default_device()
    with loading(f"--model {model}, --device {args.device or own_process}"):
        return policy.to(args.device or own_process).eval()


def _loaded(option: str, name: str, load):
    with loading(f"{option} {name}"):
        return load()
