"""What trainers share: adapters, checkpoints and run records, config checks, reductions over real tokens, passes without
a gradient, files of rows, files that are complete or absent, and what differs between versions of TRL. Nothing here knows
a method."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.trainer_kit.checkpoints import newest_complete_checkpoint as newest_complete_checkpoint
    from trl_ext.trainer_kit.commands import ends_in_one_line as ends_in_one_line
    from trl_ext.trainer_kit.fingerprints import model_fingerprint as model_fingerprint
    from trl_ext.trainer_kit.own_folders import claim_folder as claim_folder
    from trl_ext.trainer_kit.row_files import READERS as READERS
    from trl_ext.trainer_kit.row_files import UNREADABLE as UNREADABLE
    from trl_ext.trainer_kit.row_files import json_rows as json_rows
    from trl_ext.trainer_kit.row_files import read_rows as read_rows
    from trl_ext.trainer_kit.seeds import check_seed as check_seed
    from trl_ext.trainer_kit.seeds import seeded as seeded
    from trl_ext.trainer_kit.seeds import stable_seed as stable_seed
    from trl_ext.trainer_kit.whole_files import written_whole as written_whole

lazy_exports(__name__)
