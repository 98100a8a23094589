"""YAML from strangers: plain data only, bounded, no duplicate keys, no aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.api.errors import ConfigError

MAX_BYTES = 1 << 20


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        ConfigError: unreadable, larger than 1 MiB, not UTF-8, not YAML (tabs, say), no mapping, a key twice, or
            an alias (a few of them can expand to gigabytes).
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError("YAML file is larger than 1 MiB", where=path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("YAML file is not UTF-8 text", where=f"{path}, byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", where=path) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """As :func:`load_yaml`, for text at hand."""
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader that refuses aliases and repeated keys."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                line = self.peek_event().start_mark.line + 1
                raise ConfigError(
                    "YAML aliases are not accepted", where=f"{where}, line {line}", fix="write the value out"
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str | int | float | bool | None):
                    raise ConfigError(
                        "a YAML key must be a plain word", where=f"{where}, line {node.start_mark.line + 1}"
                    )
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise ConfigError(
                        f"key {key!r} stands twice", where=f"{where}, line {line}", fix="keep one of them"
                    )
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not YAML"
        fix = "indent with spaces, not tabs" if "\\t" in str(error) or "\t" in text else None
        raise ConfigError(f"cannot read the YAML: {problem}", where=f"{where}{line}", fix=fix) from None
    except (RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        # what PyYAML raises on values that do not suit their tag, `!!int ""` for one
        raise ConfigError(f"cannot read the YAML: {type(error).__name__}: {error}", where=where) from None
    if not isinstance(content, dict):
        raise ConfigError(f"the file holds a {type(content).__name__}, not a mapping", where=where)
    return content
