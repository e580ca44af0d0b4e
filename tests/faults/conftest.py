"""The finished experiment, of which faults change a copy."""

from tests.workflow.conftest import copied, finished

__all__ = ["copied", "finished"]
