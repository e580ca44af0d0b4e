"""Accumulate counts, means and covariances of samples, exact to float32 and cheap: of any tensors, whoever made them.

weighting       what counts alike
covariance      the streaming accumulator
chunks          sums and products of a chunk of samples, about its own mean
fused           the same on a GPU, in two kernels
kernels         these, in Triton
products        samples times their transpose, exact to float32 whatever the process has set
packs           samples gathered in packs that fit a chunk of memory
"""
