"""Lines of dependencies that tell the user of a run nothing, each named by who writes it and by its words.

No other line is touched, nor any level. What a user can do something about stays.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

SAY_NOTHING = {  # by logger
    # bitsandbytes offers a faster kernel for 4 bits on some CPUs, and computes the same without it.
    "bitsandbytes.backends.cpu.ops": re.compile("Failed to load CPU gemm_4bit_forward from kernels-community"),
    # What LLM.int8() does by design, said in every pass.
    "bitsandbytes.autograd._functions": re.compile(r"MatMul8bitLt: inputs will be cast from \S+ to float16"),
}
WARN_OF_NOTHING = {  # by module
    # Trainer asks for pinned memory by default, also where there is no card to copy to.
    "torch.utils.data.dataloader": "'pin_memory' argument is set as true but no accelerator is found",
}
REPEATED = {  # by logger: the hub is not reached, said of each attempt at each file
    "huggingface_hub.utils._http": (re.compile(".* thrown while requesting "), re.compile("Retrying in ")),
}


def leave_out_noise() -> None:
    """Done once, when trl_ext is imported: some of these lines come while its dependencies are."""
    for logger, words in SAY_NOTHING.items():
        logging.getLogger(logger).addFilter(lambda record, words=words: not words.match(record.getMessage()))
    for module, words in WARN_OF_NOTHING.items():
        warnings.filterwarnings("ignore", re.escape(words), UserWarning, re.escape(module))


@contextmanager
def repeats_left_out() -> Iterator[None]:
    """Inside, of what is REPEATED the first line of each kind is said: a command has little else to say."""
    filters = [(logging.getLogger(logger), _first_of(kinds)) for logger, kinds in REPEATED.items()]
    for logger, is_first in filters:
        logger.addFilter(is_first)
    try:
        yield
    finally:
        for logger, is_first in filters:
            logger.removeFilter(is_first)


def _first_of(kinds: tuple[re.Pattern[str], ...]):
    said = set()

    def is_first(record: logging.LogRecord) -> bool:
        kind = next((words for words in kinds if words.match(record.getMessage())), None)
        is_new = kind is None or kind not in said
        said.add(kind)
        return is_new

    return is_first
