"""FLYT's methods as baselines of DataComp: `python baselines.py --name m_flyt ...`.

A patched DataComp checkout uses the three functions below; `python -m baselines_plugin` is the
same program without a checkout.
"""

from baselines_plugin.flags import add_arguments
from baselines_plugin.registry import method_names
from baselines_plugin.run import run_if_ours

__all__ = ["add_arguments", "method_names", "run_if_ours"]
