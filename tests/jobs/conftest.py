"""The hub double, for jobs that download."""

from tests.hub.conftest import hub as hub
