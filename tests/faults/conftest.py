"""What faults change a copy of: the finished experiment, and a file of covariances."""

from tests.faults.covariances import whole
from tests.workflow.conftest import copied, finished

__all__ = ["copied", "finished", "whole"]
