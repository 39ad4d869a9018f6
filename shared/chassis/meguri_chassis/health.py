"""Asks the service in this container whether it is ready: exit code 0 if so. Imports nothing of it, as it runs often.

HEALTHCHECK CMD ["python", "-m", "meguri_chassis.health"]
"""

import os
import sys
from urllib.error import HTTPError
from urllib.request import urlopen

PATIENCE = 2.0
"""Seconds to wait for the answer."""


def main() -> None:
    url = f"http://127.0.0.1:{os.environ['MEGURI_PORT']}/health/ready"
    try:
        with urlopen(url, timeout=PATIENCE):
            return
    except HTTPError as error:
        sys.exit(error.read().decode(errors="replace"))
    except OSError as error:
        sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    main()
