"""How to rebuild a network without pickle: its class path and its constructor's arguments, as JSON.

The convention is scikit-learn's: **a constructor argument is stored on the module under its own name**. With
it, ``Net(hidden=64)`` becomes::

    {"class": "mypackage.nets:Net", "arguments": {"hidden": 64}}

``nn.Sequential``, ``nn.ModuleList`` and ``nn.ModuleDict`` are described by their children instead, a list of
``[name, blueprint]`` under ``"children"``. At the top, ``"frozen"`` lists the parameters that do not train.
An argument is a JSON scalar or list, or an object with one key that says what it is:

    ============  ==============================================================
    ``tuple``     a list of values
    ``dict``      a list of [key, value]; a list because order counts
    ``module``    the blueprint of a module
    ``type``      the class path of a module
    ``function``  one of a few activation functions of torch, by name
    ============  ==============================================================

A blueprint comes from a file, so it can only construct subclasses of ``torch.nn.Module``: whatever its class
path names is checked before it is called. The module in which a class lives is imported, as ``import`` would.
"""

from fatwood.blueprint.building import build
from fatwood.blueprint.describing import describe
from fatwood.blueprint.frugal import Budget

__all__ = ["Budget", "build", "describe"]
