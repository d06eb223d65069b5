"""torchrun that ends with the status of its processes where a signal stopped them: python -m ba_lora.torchrun, with its options.

torchrun itself ends with 1 whenever one of its processes fails, and a stopped run, which has written its checkpoint, is
one of those.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .errors import Stopped


def main() -> None:
    try:
        run.main()
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode != Stopped.STATUS:
            raise
        sys.exit(Stopped.STATUS)


if __name__ == "__main__":
    main()
