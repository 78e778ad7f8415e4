"""Ray on this machine, for the processes that tests start."""

import ray


def start_ray(cpus: int) -> None:
    """Start Ray with ``cpus`` processors. It gives itself 30 seconds, too few on a busy machine, so there are three tries."""
    for last in (False, False, True):
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            return
        except Exception:
            if last:
                raise
            ray.shutdown()
