"""What was trained, as a plain transformers model: an adapter merged, with tokenizer, generation config and card."""

from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_bitsandbytes_available

from trl_ext.cli.command_arguments import bits_of
from trl_ext.cli.export_serving import GGUF, MODELFILE, base_of_run
from trl_ext.rewards.reward_models import load_scorer, score_sequences
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.sequences.turn_end import end_with_turn
from trl_ext.shared_base.merge import FILES, MARK, TEXTS, Merged, compared, merge_of, write_merged_card
from trl_ext.shared_base.shared_base import SharedBase
from trl_ext.trainer_kit.free_disk import check_free_disk
from trl_ext.trainer_kit.loading import loading
from trl_ext.trainer_kit.own_folders import check_own_folder, mark_folder
from trl_ext.trainer_kit.run_log import LOG, lines
from trl_ext.trainer_kit.saved_adapters import is_adapter


class Asked(Protocol):
    """What is asked of the command's arguments here."""

    run: str
    output_dir: str
    base: str | None
    load_in_8bit: bool
    load_in_4bit: bool
    dtype: str | None


def write_policy(args: Asked) -> PreTrainedTokenizerBase:
    """Write a policy; its tokenizer."""
    base = args.base or base_name(args.run)
    _check_folder(args, base)  # before minutes of loading
    remove_made_of_it(Path(args.output_dir))
    if is_adapter(args.run):
        _write_merged(args, base)
        return tokenizer_beside(args.output_dir, call="trl-ext export")
    with loading(f"--run {args.run}"):
        model = AutoModelForCausalLM.from_pretrained(args.run, dtype=args.dtype or "auto")
    tokenizer = tokenizer_beside(args.run, call=f"--run {args.run}")
    end_with_turn(model, tokenizer, call=f"--run {args.run}")
    _write(model, tokenizer, args, "The policy")
    return tokenizer


def write_scorer(args: Asked) -> None:
    """Write a reward or value model as a plain sequence classifier."""
    base = base_name(args.run)
    _check_folder(args, base)
    model = load_scorer(args.run, dtype=args.dtype or "auto")
    tokenizer = tokenizer_beside(args.run, base, call=f"--run {args.run}")
    if isinstance(model, PeftModel):
        before = _scores(model, tokenizer)
        model = model.merge_and_unload(safe_merge=True)
        apart = max(abs(one - other) for one, other in zip(before, _scores(model, tokenizer), strict=True))
        print(f"merged: its scores of {len(TEXTS)} texts differ from the adapter's by at most {apart:.2g}")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    _write(model, tokenizer, args, "The reward or value model: one number per text, none of which it writes")


def _check_folder(args: Asked, base: str) -> None:
    folder, mark = Path(args.output_dir), merge_of(base, args.run)
    check_own_folder(folder, MARK, mark, names=FILES, call=f"--output_dir {args.output_dir}")


def _scores(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[float]:
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return score_sequences(model, ids, list(TEXTS), pad_token_id=tokenizer.pad_token_id or 0, batch_size=1)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: Asked, what: str) -> None:
    folder = Path(args.output_dir)
    check_free_disk(folder, sum(p.nbytes for p in model.parameters()), call=f"--output_dir {folder}")
    mark_folder(folder, MARK, merge_of(base_name(args.run), args.run))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_merged_card(folder, args.run, base=base_name(args.run), said=f"{what} of `{Path(args.run).resolve().name}`.")


def base_name(run: str) -> str:
    """What a run's adapter names as its base; of a whole model nothing."""
    return base_of_run(run) if is_adapter(run) else ""


def remove_made_of_it(folder: Path) -> None:
    """What was made of an earlier export into the folder is not of this one."""
    if (folder / MARK).is_file():
        for name in (GGUF, MODELFILE):
            (folder / name).unlink(missing_ok=True)


# An adapter's base, and its bits


def _write_merged(args: Asked, name: str) -> None:
    bits, trained = bits_of(args), recorded_bits(args.run)
    if bits is not None and trained not in (None, bits):
        was = f"in {trained} bits" if trained else "as its checkpoint is"
        raise ValueError(
            f"--load_in_{bits}bit: by the run's log, the base was loaded {was}. Leave it out, or say that."
        )
    base = SharedBase.from_pretrained(name, bits=bits, dtype=None if bits else "auto")
    merged = base.merge(args.run, args.output_dir, dtype=args.dtype)
    print(f"merged: {_differs(merged, 'its base')}")
    if trained and not bits:
        print(f"{_otherwise_than_trained(trained)}{_how_far(name, trained, args)}")


def recorded_bits(run: str) -> int | None:
    """In how many bits a run loaded its base, by its log; 0: as the checkpoint is; None: it is not known."""
    folder = Path(run).expanduser()
    begun = [line for place in (folder.parent, folder) for line in lines(place / LOG) if line["kind"] == "begin"]
    return begun[-1].get("bits") if begun else None


def _differs(merged: Merged, base: str) -> str:
    return f"{merged.kl:.2g} nats per token from the adapter on {base}, {merged.agreement:.1%} alike"


def _otherwise_than_trained(bits: int) -> str:
    return (
        f"The adapter was trained on its base in {bits} bits, and is merged here onto the base's own weights: what it has learned "
        f"about their rounding is left over. --load_in_{bits}bit merges it onto the rounded weights, dequantised. "
    )


def _how_far(base: str, bits: int, args: Asked) -> str:
    if not is_bitsandbytes_available():
        return "How far the two are apart was not measured: that needs bitsandbytes."
    trained_on = SharedBase.from_pretrained(base, bits=bits)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(args.output_dir, dtype=args.dtype or "auto")
        difference = compared(trained_on, args.run, merged)
    return f"On {len(TEXTS)} texts: {_differs(difference, f'the base in {bits} bits')}."
