"""Turn spectra and a budget into widths.

dimensions      what spectra show of each channel group
allocation      budgets, and widths in proportion to something
marginal        a budget spent multiple by multiple
rounding        from target widths to whole ones
intervals       how sure both are
views           what an allocator sees of a group
weighting       spectra weighted by what reads a map
sources         files that some allocators read beside spectra
targets         what an allocator gives, checked
made_up         spectra to try allocators with
derivation      from spectra to a file of widths
controls        widths to compare these with
matching        a factor and a ratio that bring widths to two costs
stages          the stage of every group
suggestion      the same in one call for a classifier of one's own
front           parameters against operations over a rule's option
readings        the same spectra read by every rule, moment and weighting
"""
