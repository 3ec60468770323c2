"""The words of runc as Docker 28.5.2 passes them on."""

import pytest

from compatd.errors import SystemFailure
from compatd.runtime import oci

pytestmark = pytest.mark.unit


def test_texts() -> None:
    early, late = oci.create_failed("A"), oci.init_failed("B")
    assert isinstance(early, SystemFailure)
    prefix = "failed to create task for container: failed to create shim task: OCI runtime create failed: "
    assert str(early) == prefix + "runc create failed: A"
    assert str(late) == (
        prefix + "runc create failed: unable to start container process: error during container init: B"
    )
