"""torchrun that ends with the status of the process that ended first: python -m ba_lora.torchrun, with its options.

torchrun itself ends with 1 and a report whenever one of its processes fails. A process of ours that ends with a status of
errors.py has said why in one line; a stopped run, which has written its checkpoint, is one of those.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .errors import RunFailure, Stopped, UserError


def main() -> None:
    try:
        run.main()
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        if status not in (RunFailure.status, UserError.status, Stopped.STATUS):
            raise
        sys.exit(status)


if __name__ == "__main__":
    main()
