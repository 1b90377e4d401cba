"""What all tests share."""

from __future__ import annotations

import signal

# A shell starts what it puts in the background with Ctrl-C ignored, and children inherit that:
# then no test of Ctrl-C could pass. A handler is not inherited, the default is.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
