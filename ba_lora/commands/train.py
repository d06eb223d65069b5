"""Train one model: ba-lora train, and train.py of a checkout. On several processes: torchrun -m ba_lora.commands.train."""

from ..errors import Stopped, run_cli


def main(words: list[str] | None = None) -> int | None:
    """Train with the options `words` (default: those of the command line), or plan that with --dry_run; returns the exit status."""
    from ..training.first_checks import parse_and_check

    # --help and refusals of options and paths do not need the libraries, which take seconds to import
    arguments = parse_and_check(words)
    if arguments.dry_run:
        from ..planning.plan import show

        return show(arguments)
    from ..hub import push_after
    from ..training.run import leave_processes, train

    try:
        push_after(train(arguments), arguments)
    except Stopped as stopped:
        stopped.tell()
        leave_processes(stopped.STATUS)
        return stopped.STATUS
    leave_processes()


if __name__ == "__main__":
    run_cli(main)
