"""A small corpus: 37 training tasks, held against 20 evaluation tasks, opened in half a second.

The whole one takes three seconds of a core.
"""

from arcd.arc.tasks import load
from arcd.pretrain.corpus import Sources
from arcd.pretrain.decontamination import EvaluationSet


def small_sources() -> Sources:
    """The first tasks of each bundled set, among them 007bbfb7; three are in both."""
    evaluation = EvaluationSet([load("arc1-eval:10"), load("arc2-eval:10")])
    return Sources(load("arc1-train:20"), load("arc2-train:20"), evaluation)
