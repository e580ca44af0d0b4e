"""Run networks: training, evaluation, covariances, latency; and say before what all of it takes.

folder          the folder of a run, and the record that completes it
parallel        several processes that work together, each with a device of its own
losses          the losses of a step, read without keeping a GPU idle
training        one loop for both kinds of training
resuming        what an interrupted run goes on from
detections      what a detector says of a data set, beside what is there
evaluation      average precision, top-1 accuracy
examples        a few images with objects and detections, small enough for a page
definitions     the networks that an experiment names, and what they cost
stages          a run of each kind, from an experiment to a folder
images          images decoded once and ahead of the device
precision       the arithmetic that a network runs in
observation     which feature maps are observed, and the taps of a detector
gradients       the gradient of a detector's loss at them
covariances     the covariances of a run's feature maps, at every snapshot
readings        the last of these with the other weighting too, read by every rule
forecast        scores of initializations, before any of their training
export          a run's detector in files that need nothing of this package
latency         how long networks take for one image
network_check   every network built and tried before any run
footprint       bytes of the files that a run leaves
throughput      images a second that a device takes
plan            what an experiment takes: jobs, steps, images, disk, hours
proposal        settings that fit a user's own data
"""
