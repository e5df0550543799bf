"""Reads YAML strictly: plain data, no key twice in a mapping, and no more than fits a settings file.

The last of two equal keys would win without a word, and aliases can make a short text mean billions of entries.
"""

from typing import Any

import yaml

MAX_ENTRIES = 100_000
"""Entries that a text may mean, with every alias written out."""


def read_yaml(text: str) -> Any:
    """The data of a YAML text. Raises yaml.YAMLError with what is wrong and where."""
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    # A number of thousands of digits, a date that does not exist, a mapping inside thousands of others.
    except (ValueError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's own rules; a subclass, so that nothing registered on SafeLoader elsewhere applies."""


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Entries below a node, itself included; `sizes` are those of nodes seen. Raises yaml.YAMLError."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = MAX_ENTRIES + 1  # for a node that holds itself
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_check(child, sizes) for child in children)
    if size > MAX_ENTRIES:
        raise yaml.YAMLError(f"it means more than {MAX_ENTRIES:,} entries, with its aliases written out")
    sizes[id(node)] = size
    return size


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: dict[tuple[str, str], yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        first = seen.setdefault((key.tag, key.value), key)
        if first is not key:
            raise yaml.YAMLError(
                f"key {key.value!r} stands twice, in line {first.start_mark.line + 1} and in line "
                f"{key.start_mark.line + 1}"
            )
