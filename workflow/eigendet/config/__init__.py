"""Describe an experiment as typed, validated values, without importing torch.

sections        the sections of a configuration, each a value that checks itself
arms            the arms that every experiment may have
plain_yaml      YAML without what may stop a process
experiment      the whole of it: read, merged, checked, written
faults          what is wrong with a configuration, in words
commented       settings as YAML with comments
installation    the library's checkout, and what pip installs it from
layout          every path below results/EXPERIMENT, and the versions of what stands there
"""

from eigendet.config.arms import AFTER_DERIVED as AFTER_DERIVED
from eigendet.config.arms import ARMS as ARMS
from eigendet.config.arms import UNIFORM as UNIFORM
from eigendet.config.experiment import Experiment as Experiment
from eigendet.config.experiment import dump_yaml as dump_yaml
from eigendet.config.experiment import load as load
from eigendet.config.experiment import parse as parse
from eigendet.config.experiment import schema_text as schema_text
from eigendet.config.experiment import validate_options as validate_options
