"""Everything that is not about distillation. README.md says in a line what each file is."""
import sys

try:
    import fcntl  # noqa: F401
    import resource  # noqa: F401
except ImportError:
    sys.stderr.write("error: this needs Linux or macOS; on Windows use WSL, as README.md says\n")
    sys.exit(2)
