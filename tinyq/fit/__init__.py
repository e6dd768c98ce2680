"""Bits and encoding of every layer's weights, chosen under limits on flash, RAM and time.

What each choice costs comes from the compiler's own estimates, what it does to the output from
onnxruntime; an integer program takes the assignment of least error within the limits.
"""

from tinyq.fit.front import Point, front
from tinyq.fit.measure import (
    FORMS,
    GROUPS,
    Candidates,
    Lowered,
    assigned,
    forms_of,
    measure,
    quantize_forms,
)
from tinyq.fit.problem import Budget, Choice, Layer, Option, Prediction, Problem
from tinyq.fit.search import FitResult, fit, least_reachable
from tinyq.fit.solve import least, solve

__all__ = [
    "FORMS",
    "GROUPS",
    "Budget",
    "Candidates",
    "Choice",
    "FitResult",
    "Layer",
    "Lowered",
    "Option",
    "Point",
    "Prediction",
    "Problem",
    "assigned",
    "fit",
    "forms_of",
    "front",
    "least",
    "least_reachable",
    "measure",
    "quantize_forms",
    "solve",
]
