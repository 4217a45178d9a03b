"""What comes before everything else: is this system one of ours, and Ctrl-C during the imports."""
import multiprocessing
import signal
import sys
from pathlib import Path

try:
    import fcntl  # noqa: F401
    import resource  # noqa: F401
except ImportError:
    sys.stderr.write("error: this needs Linux or macOS; on Windows use WSL, as README.md says\n")
    sys.exit(2)

# While a command loads torch, two seconds, Ctrl-C ends it without a traceback. Then support/cli.py
# takes over. A notebook or a program that imports this project keeps its own handler.
program, project = Path(sys.argv[0]), Path(__file__).resolve().parents[1]
is_command = program.name == "-m" or (program.is_file() and program.resolve().parent == project)
is_main = multiprocessing.parent_process() is None and "IPython" not in sys.modules
if is_command and is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
