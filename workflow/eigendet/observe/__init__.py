"""Accumulate the covariance of every feature map of a PyTorch model, as the model runs.

keys            what taps and their points are called
points          what a module's output stands for
calls           every call of every module, pass by pass
attention       torch's attention, run by its modules
padding         which positions of a map are padding
shortcuts       layers whose output's moments follow from the input's
lineage         what tensors were made from: where their channels are
sightings       what is noted of a tensor that was seen
faults          what is wrong with a tap, in one line
image_sums      sums over the positions of each image
observer        every tensor of interest accumulated once
taps            which tensors of a model are observed
gradients       the same of a loss's gradient at them
tap             one observed tensor, as it is stored
passes          the same under a memory limit
hdf5            HDF5 of plain arrays and values, checked
records         one tap at one step of a covariance file
store           the HDF5 file of covariances
merging         one such file made of several
"""
