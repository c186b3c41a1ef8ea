"""Where query types come from, open or closed, by which R³ routes: the shipped classifier, a language model, an endpoint."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.query_types.endpoint_labeler import EndpointLabeler as EndpointLabeler
    from trl_ext.query_types.labelling import label_query_types as label_query_types
    from trl_ext.query_types.labels import Label as Label
    from trl_ext.query_types.labels import Labeler as Labeler
    from trl_ext.query_types.language_model_labeler import LanguageModelLabeler as LanguageModelLabeler
    from trl_ext.query_types.query_questions import QUESTION as QUESTION
    from trl_ext.query_types.query_type_classifier import QueryTypeClassifier as QueryTypeClassifier

lazy_exports(__name__)
