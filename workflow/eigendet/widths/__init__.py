"""Turn spectra and a budget into widths.

dimensions      what spectra show of each channel group
allocation      how a budget becomes widths
intervals       how sure both are
derivation      from spectra to a file of widths
controls        widths to compare these with
suggestion      the same in one call for a classifier of one's own
front           parameters against operations over a rule's option
"""
