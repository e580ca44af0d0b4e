"""Name the arms that every experiment may have; all others are named by the user."""

# Arms by their names, and what sets each apart. Others have a file of widths, or weights that they start from, or both.
ARMS = {
    "finetune": "from the pre-trained backbone",
    "scratch": "from random weights",
    "derived": "from random weights, with the widths derived from the spectra",
    "derived_finetune": "with the widths of derived, from a backbone that was pre-trained with these",
    "reference": "control: the reference's widths, trained as derived is",
    "uniform_parameters": "control: all widths scaled alike, to the parameters of derived",
    "uniform_macs": "control: all widths scaled alike, to the multiply-accumulates of derived",
    "profile": "control: widths scaled by a factor and a constant ratio from stage to stage, to the parameters and "
    "multiply-accumulates of derived",
    "untrained": "control: widths derived from the spectra before training, with such a factor and ratio",
    "permuted": "control: widths derived with the spectra of other layers, at random, with such a factor and ratio",
}
UNIFORM = "uniform scaling"  # the rule, in a table of the front, of widths that all have one factor
AFTER_DERIVED = ("uniform_parameters", "uniform_macs", "profile", "permuted")
FROM_SPECTRA = ("derived", "untrained", *AFTER_DERIVED)  # themselves, or of what they are compared with
