"""Bytes of the vocabulary head, in training and when it scores; `c` bytes of a number in the compute precision."""

from trl_ext.memory_planning.layer_pass import Pass

TILE_TOKENS, TILE_VOCABULARY = 4096, 32768  # of TRL's fused vocabulary head, which makes logits in such tiles
OUR_CPU_TILE = 512  # as `trainer_kit.head_tiles` has it
CHUNK_LOGITS = 2**24  # of the imitation loss, as `reward_modeling.imitation_loss` makes them at once


def head_kept(run: Pass, *, scored: int) -> int:
    """The last norm's input and output, and a copy of the states that the vocabulary head reads.

    Args:
        run: Of the policy.
        scored: Tokens whose log-probability is computed.
    """
    return 4 * run.tokens * (run.shape.hidden + 1) + run.residual + run.width * scored * run.shape.hidden


def tile(run: Pass, *, scored: int) -> int:
    """Logits of a tile: TRL's fused head holds room for 4096 tokens × 32768 words at most, ours on a CPU for 512 words."""
    return run.width * min(scored, TILE_TOKENS) * (run.tile or TILE_VOCABULARY)


def head_forward(run: Pass, *, scored: int) -> int:
    """Tiles of logits. On CUDA a kernel reads them in place; on the CPU three arrays in fp32 are made of one."""
    arrays = 0 if run.cuda else 12
    return tile(run, scored=scored) + arrays * _tile_numbers(run, scored)


def head_backward(run: Pass, *, scored: int) -> int:
    """The tile, the gradient of the states in fp32 and then in c bytes, and on the CPU seven arrays and a mask."""
    arrays = 0 if run.cuda else 29
    gradient = (4 + run.width) * scored * run.shape.hidden
    weight = (4 + run.width) * run.shape.embedding_params if run.trains_all else 0
    return tile(run, scored=scored) + arrays * _tile_numbers(run, scored) + gradient + weight


def _tile_numbers(run: Pass, scored: int) -> int:
    return min(scored, TILE_TOKENS) * min(run.shape.vocab, run.tile or TILE_VOCABULARY)


def imitation_kept(run: Pass, *, imitated: int) -> int:
    """The states that are read, and their gradient, which is made at once: 2 c n H for n tokens."""
    return 2 * run.width * imitated * run.shape.hidden


def imitation_logits(run: Pass, *, imitated: int) -> int:
    """Logits of a chunk as computed and in fp32, (4 + [16 bits] c) · min(n, 2²⁴ / V) · V; the head in c bytes if it is cast."""
    vocab = run.shape.vocab
    cast = run.width * run.shape.embedding_params if run.cast else 0
    return (4 + run.width % 4) * min(imitated, CHUNK_LOGITS // vocab) * vocab + cast
