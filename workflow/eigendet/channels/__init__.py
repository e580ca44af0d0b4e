"""Find which widths of a PyTorch model are tied, what they cost, and build the model with others.

sizes           how the sizes of tensors follow from one another
operations      what each operation does to them
follower        one forward pass, followed operation by operation
groups          channel groups and their costs
construction    a network's own constructor with other sizes
tracing         the groups of a network, and the network rebuilt with other widths
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
