"""torchrun with the exit status of the process that ended first: python -m ba_lora.training.torchrun, with its options.

torchrun itself exits with 1 and a report whenever one of its processes fails. Our processes report the reason in one line when
they exit with a status of errors.py; that includes a stopped run, which has written its checkpoint.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ..errors import RunFailure, Stopped, UserError
from ..signals import ENDED


def main() -> None:
    try:
        run.main()
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        if status not in (RunFailure.status, UserError.status, Stopped.STATUS, *ENDED):
            raise
        sys.exit(status)
    except SignalException as error:  # it has already ended its processes
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
