"""The program of this repository, also `python -m score_sde`.

python launch.py --config=configs/demo.py [--workdir=DIR] [--mode=train] [--config.sde.kwargs.beta_max=10 ...]
"""

import gc
import os
import signal

if __name__ == "__main__":  # before the slow imports, during which Ctrl-C must work
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed stderr's number would be the next file's
        pass
    os.close(opened)
    gc.disable()  # while objects are created that stay until the end

from score_sde.__main__ import FLAGS, MODES, UserError, app, main, parse_flags, run

__all__ = ["FLAGS", "MODES", "UserError", "app", "main", "parse_flags", "run"]

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    run()
