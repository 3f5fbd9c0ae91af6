"""A process in which the package can't be imported."""

import importlib
import sys

import pytest

from vanilla_transformer.hub.hiding import hidden_package


def test_a_hidden_package_can_not_be_imported(monkeypatch):
    name = "vanilla_transformer.plots"
    monkeypatch.delitem(sys.modules, name, raising=False)
    with hidden_package(), pytest.raises(ModuleNotFoundError, match="No module named 'vanilla_transformer.plots'"):
        importlib.import_module(name)
    assert importlib.import_module(name).__doc__
