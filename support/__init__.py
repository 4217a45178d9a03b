"""Everything that is not about distillation. README.md says in a line what each file is."""
import support.startup  # noqa: F401
