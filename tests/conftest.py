"""Settings of every test: no hub is asked, and property tests are judged by what they find, however long it takes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: a name that no folder has is not waited for

from hypothesis import HealthCheck, settings

settings.register_profile("foveal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("foveal")
