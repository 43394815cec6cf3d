"""A network as the operators it consists of, in JSON: for a process that cannot import the network's class.

`torch.export` traces the network; what it finds is written as a list of operators, and run operator by operator. torch's own
file of an exported program is not used: reading it unpickles (``torch.load(weights_only=False)`` where the safe way fails) and
evaluates formulas from the file (``sympy.sympify``). Here a file can name nothing but the operators of
`fatwood.program.operators`.

    {"inputs":  ["i", {"name": "x", "keyword": true}],           as the network is called
     "state":   {"p_weight": "layer.weight"},                    value -> name in the state dict
     "parameters": ["layer.weight"],                             of these, the trained ones
     "constants": {"c_0": "lifted_tensor_0"},                    value -> name among the constants
     "nodes":   [["linear", "aten.linear.default", [{"v": "i"}, {"v": "p_weight"}], {}], ...],
     "output":  {"d": [["y", {"v": "linear"}]]}}

Arguments are JSON values, or objects with one key: ``v`` a value, ``t`` a tuple, ``d`` a dict, ``dtype``, ``layout``, ``memory``
a format of memory, ``device`` that of the inputs, ``f`` a float that JSON cannot say.
"""

from fatwood.program.network import ExportedNetwork
from fatwood.program.tracing import Program, trace

__all__ = ["ExportedNetwork", "Program", "trace"]
