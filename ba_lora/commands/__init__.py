"""Commands that join several parts of the package: a training with what comes before and after it, and the plan of one."""
