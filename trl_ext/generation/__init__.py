"""Who samples: the protocol of a generator, four of them (transformers, vLLM, an endpoint, a file), their samples as TRL's
trainers take them, and the files that samples are kept in."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.generation.endpoint_answers import public_url as public_url
    from trl_ext.generation.endpoint_generator import EndpointGenerator as EndpointGenerator
    from trl_ext.generation.endpoint_log_probs import EndpointLogProbs as EndpointLogProbs
    from trl_ext.generation.file_generator import FileGenerator as FileGenerator
    from trl_ext.generation.protocol import Generator as Generator
    from trl_ext.generation.protocol import Part as Part
    from trl_ext.generation.protocol import Policy as Policy
    from trl_ext.generation.protocol import Sampling as Sampling
    from trl_ext.generation.rollouts import vllm_rollouts as vllm_rollouts
    from trl_ext.generation.sample_files import read_table as read_table
    from trl_ext.generation.sample_files import write_table as write_table
    from trl_ext.generation.transformers_generator import TransformersGenerator as TransformersGenerator
    from trl_ext.generation.vllm_generator import VLLMGenerator as VLLMGenerator
    from trl_ext.sequences.samples import Sample as Sample

lazy_exports(__name__)
