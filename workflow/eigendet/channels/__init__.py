"""Find which widths of a PyTorch model are tied, what they cost, and build the model with others.

groups          channel groups and their costs
tables          channel groups as a table
tracing         the groups of a network
rebuilding      a network built with other widths
trial           whether a network takes other widths, and what to keep where it does not
attributes      numbers of modules that are widths, and follow them
coarser         widths that code takes only in pairs, fours or eights
ties            widths that code takes from one another
naming          from the record of a forward pass to groups with names
follower        forward passes, followed operation by operation
operations      what each operation does to the axes of its operands
reshapes        what becomes of axes that are split or merged
weighted        what layers with weights do to them, and what is counted
arguments       arguments of an operation by their names
record          what is known of a forward pass
sizes           how the sizes of tensors follow from one another
construction    a network's own constructor with other sizes

    traced = channels.trace(build)  # build: a class or function; channels.trace_detector(build) for a detector
    print(channels.frame(traced))
    narrow = channels.rebuild(build, traced, {group: width // 2 for group, width in traced.widths.items()})
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
