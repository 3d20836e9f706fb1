"""The smallest graph that computes the same.

`Rule` is what other distributions derive rules from; see `graphopt.passes.fold.rules.installed`.
"""

from graphopt.passes.fold.fold import Fold
from graphopt.passes.fold.rules.rule import Outcome, Rule
from graphopt.passes.fold.workbench import Workbench

__all__ = ["Fold", "Outcome", "Rule", "Workbench"]
