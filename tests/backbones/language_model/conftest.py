"""The policies and token data of the training tests serve here too."""

from tests.training.conftest import bench, policies  # noqa: F401
