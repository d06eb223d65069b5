"""Train one model: python train.py --config FILE [--option value ...]; --help lists every option."""

from ba_lora.errors import Stopped, run_cli


def main() -> None:
    from ba_lora.training.first_checks import parse_and_check

    # --help and refusals of options and paths do not need the libraries, which take seconds to import
    arguments = parse_and_check()
    if arguments.dry_run:
        from ba_lora.planning.plan import show

        return show(arguments)
    from ba_lora.hub import push_after
    from ba_lora.training.run import leave_processes, train

    try:
        push_after(train(arguments), arguments)
    except Stopped as stopped:
        stopped.tell()
        leave_processes(stopped.STATUS)
        return stopped.STATUS
    leave_processes()


if __name__ == "__main__":
    run_cli(main)
