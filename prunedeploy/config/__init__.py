"""The configuration of a build.

`blocks` has the keys, their defaults and what makes no sense, `reading` brings them from YAML and options,
`ratio_target` is what a ratio may be searched for.
"""

# "X as X": to be imported from here.
from prunedeploy.config.blocks import BUNDLED as BUNDLED
from prunedeploy.config.blocks import AllocationName as AllocationName
from prunedeploy.config.blocks import AtLeastOne as AtLeastOne
from prunedeploy.config.blocks import AttackConfig as AttackConfig
from prunedeploy.config.blocks import AugmentConfig as AugmentConfig
from prunedeploy.config.blocks import BelowOne as BelowOne
from prunedeploy.config.blocks import Block as Block
from prunedeploy.config.blocks import Budget as Budget
from prunedeploy.config.blocks import BuildConfig as BuildConfig
from prunedeploy.config.blocks import EvaluationConfig as EvaluationConfig
from prunedeploy.config.blocks import Feedback as Feedback
from prunedeploy.config.blocks import GatesConfig as GatesConfig
from prunedeploy.config.blocks import Method as Method
from prunedeploy.config.blocks import QatConfig as QatConfig
from prunedeploy.config.blocks import RobustnessConfig as RobustnessConfig
from prunedeploy.config.blocks import ScoreName as ScoreName
from prunedeploy.config.blocks import ScoresConfig as ScoresConfig
from prunedeploy.config.blocks import Start as Start
from prunedeploy.config.blocks import TrainingConfig as TrainingConfig
from prunedeploy.config.blocks import as_tuple as as_tuple
from prunedeploy.config.reading import OPTIONS as OPTIONS
from prunedeploy.config.reading import KeyPath as KeyPath
from prunedeploy.config.reading import as_dict as as_dict
from prunedeploy.config.reading import config_hash as config_hash
from prunedeploy.config.reading import default_out as default_out
from prunedeploy.config.reading import for_method as for_method
from prunedeploy.config.reading import known_keys as known_keys
from prunedeploy.config.reading import load_config as load_config
from prunedeploy.config.reading import read_yaml as read_yaml
from prunedeploy.config.reading import result_settings as result_settings
from prunedeploy.config.reading import validated as validated
