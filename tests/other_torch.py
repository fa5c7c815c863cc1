"""What an older or a newer torch does otherwise: tests that say so, and are expected to fail with it."""

import torch
from packaging.version import Version

BEFORE, SINCE = Version("2.14"), Version("2.15")
"""Torch from the first of these on and below the second passes every test."""

OLDER = {
    "test_as_base.py::test_a_compiled_network_has_the_formulas_in_one_graph": "Dynamo can't trace __dict__.update",
    "test_compile.py::test_under_autocast": "Dynamo can't trace is_autocast_available",
    "test_guards.py::test_names_keep_their_signatures[first]": "BatchNorm1d has no argument bias",
    "test_kinks.py::test_a_reference_is_compared": "clamp has another slope at its ends",
    "test_kinks.py::test_the_command_shows_a_layer_of_ones_own": "clamp has another slope at its ends",
    "test_kinks.py::test_an_edited_table_is_a_change_of_torch": "clamp has another slope at its ends",
    **{
        f"test_layers.py::test_refuses_what_torch_refuses[{case}]": "another type of error"
        for case in (
            *("ReLU-0", "ReLU6-0", "Hardtanh-0", "BCEWithLogitsLoss-4", "BCEWithLogitsLoss-11", "L1Loss-2"),
            *("Softmax-4", "LogSoftmax-4", "Upsample-16"),
        )
    },
    "test_random_cases.py::test_what_was_once_wrong[NLLLoss]": "another order of its checks",
    "test_random_cases.py::test_a_few_random_trials[NLLLoss]": "another order of its checks",
}
"""Tests, and what torch 2.11 does otherwise."""

NEWER = {
    "test_activation.py::test_some_give_integers_of_integers[formula-Hardtanh]": "limits below 0 for uint8 are taken",
    "test_activation.py::test_some_give_integers_of_integers[fast-Hardtanh]": "limits below 0 for uint8 are taken",
    "test_layers.py::test_refuses_what_torch_refuses[L1Loss-1]": "another type of error",
    "test_layers.py::test_refuses_what_torch_refuses[SmoothL1Loss-4]": "another type of error",
    "test_kinks.py::test_torch_gives_what_the_table_says": "fmax and fmin have another slope beside NaN",
    "test_kinks.py::test_an_edited_table_is_a_change_of_torch": "fmax and fmin have another slope beside NaN",
}
"""Tests, and what torch 2.15 does otherwise."""


def difference(nodeid: str) -> str:
    """What this torch does otherwise in a test; empty for nothing."""
    version, name = Version(torch.__version__), nodeid.rpartition("/")[2]
    known = OLDER if version < BEFORE else NEWER if version >= SINCE else {}
    return known.get(name, "")
