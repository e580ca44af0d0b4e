"""Watch the spectra of a network's layers while it is trained, in a training loop of one's own.

monitor         observe every so many steps, and write what was measured
measures        metrics of a spectrum, by name
writers         to CSV, to TensorBoard
callbacks       the same for Lightning and for transformers
"""
