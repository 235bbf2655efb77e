"""Methods of installed plugins that the laws are run on beside the built-in ones: RMKIT_CONTRACT_METHODS=one,another."""

import os

from robustmerge_kit.method import Method
from robustmerge_kit.methods import find

PLUGGED: tuple[Method, ...] = tuple(find(name) for name in os.environ.get("RMKIT_CONTRACT_METHODS", "").split(",") if name)
